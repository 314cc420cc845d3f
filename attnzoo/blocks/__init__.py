"""The table of contents: importing a block's file registers it."""

from . import coordatt as coordatt
from . import se as se
from . import sknet as sknet
