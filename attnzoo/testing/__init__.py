"""What every block must do, and what it takes to ask for it."""
