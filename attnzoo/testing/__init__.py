"""The helpers that test a block: example inputs, gradient checks, rounding errors and costs."""
