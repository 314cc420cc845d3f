"""Insert blocks into existing networks, and remove them again."""

from .api import insert as insert
from .api import remove as remove
from .decay import no_weight_decay as no_weight_decay
from .recipe import apply as apply
