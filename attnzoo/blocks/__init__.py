"""The table of contents: importing a block's file registers it."""

from . import ct_msa as ct_msa
from . import pyraformer as pyraformer
from . import pyraformer_cscm as pyraformer_cscm
from . import se as se
