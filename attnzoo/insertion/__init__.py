"""Blocks into existing networks, and out again."""

from .api import insert as insert
from .api import remove as remove
