"""The table of contents: importing a block's file registers it."""

from . import se as se
from . import swiftformer as swiftformer
