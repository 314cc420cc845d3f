"""The one counter of multiply-adds, bytes and saved memory."""
