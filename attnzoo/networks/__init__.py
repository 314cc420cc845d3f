"""Whole networks, built from blocks of the catalogue; importing a file registers its network."""
