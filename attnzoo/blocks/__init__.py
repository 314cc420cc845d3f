"""The table of contents: importing a block's file registers it."""

from . import ct_msa as ct_msa
from . import se as se
