"""Insert blocks into existing networks, and remove them again."""

from .api import insert as insert
from .api import remove as remove
