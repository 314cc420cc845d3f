"""Validation of arguments: ranges in the signature, tensors, and the wording of errors."""
