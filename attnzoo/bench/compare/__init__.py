"""What changed between two versions: measured side by side, or read from two result files."""
