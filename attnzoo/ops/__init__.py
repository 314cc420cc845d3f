"""Arithmetic that several blocks share, as plain torch functions; one subject per file."""
