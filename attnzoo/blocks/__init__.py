"""The table of contents: importing a block's file registers it."""

from . import cbam as cbam
from . import se as se
from . import triplet as triplet
