"""Counts multiply-adds, elementwise operations, bytes and memory saved for the backward pass."""
