"""What an argument may be: ranges in the signature, tensors, and the wording of refusals."""
