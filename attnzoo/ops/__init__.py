"""Arithmetic that several blocks share: plain functions in eager torch, one idea a file."""
