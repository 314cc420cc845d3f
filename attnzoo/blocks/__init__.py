"""The table of contents: importing a block's file registers it."""

from . import agent as agent
from . import relu_linear as relu_linear
from . import se as se
from . import swiftformer as swiftformer
