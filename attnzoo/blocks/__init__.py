"""The table of contents: importing a block's file registers it."""

from . import agent as agent
from . import cbam as cbam
from . import coordatt as coordatt
from . import ct_msa as ct_msa
from . import danet as danet
from . import danet_channel as danet_channel
from . import danet_position as danet_position
from . import dia as dia
from . import dilated_inception as dilated_inception
from . import dtm as dtm
from . import ltae as ltae
from . import m_gtu as m_gtu
from . import mamba as mamba
from . import mix_attention as mix_attention
from . import pyraformer as pyraformer
from . import pyraformer_cscm as pyraformer_cscm
from . import relu_linear as relu_linear
from . import se as se
from . import self_self as self_self
from . import sknet as sknet
from . import swiftformer as swiftformer
from . import trend_aware as trend_aware
from . import triplet as triplet
from . import utae_aggregator as utae_aggregator
