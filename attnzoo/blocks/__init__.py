"""The table of contents: importing a block's file registers it."""

from . import ltae as ltae
from . import se as se
from . import trend_aware as trend_aware
