"""The table of contents: importing a block's file registers it."""

from . import dtm as dtm
from . import mamba as mamba
from . import se as se
