"""Other people's libraries, a file each, imported only when called."""
