"""Helpers for testing a block: example inputs, gradient checks, rounding errors and costs."""
