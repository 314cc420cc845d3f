"""How long passes take, and what this machine can do at best."""
