"""What moved between two versions: measured side by side, or told from two result files."""
