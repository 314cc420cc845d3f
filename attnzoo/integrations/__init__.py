"""Integrations with other libraries, one file each; a library is imported only when used."""
