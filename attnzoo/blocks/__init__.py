"""The table of contents: importing a block's file registers it."""

from . import dilated_inception as dilated_inception
from . import se as se
