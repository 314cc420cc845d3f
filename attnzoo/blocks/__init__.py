"""The list of the package's blocks; importing a block's file registers it."""

from . import aff as aff
from . import agent as agent
from . import bam as bam
from . import bilinear as bilinear
from . import carafe as carafe
from . import carafe_stack as carafe_stack
from . import cbam as cbam
from . import coordatt as coordatt
from . import ct_msa as ct_msa
from . import danet as danet
from . import danet_channel as danet_channel
from . import danet_position as danet_position
from . import dia as dia
from . import dilated_inception as dilated_inception
from . import dtm as dtm
from . import eca as eca
from . import ema as ema
from . import gate_exchange as gate_exchange
from . import gated_fusion as gated_fusion
from . import gc as gc
from . import iaff as iaff
from . import ifa as ifa
from . import implicit as implicit
from . import jbu as jbu
from . import jbu_one as jbu_one
from . import jbu_stack as jbu_stack
from . import ltae as ltae
from . import m_gtu as m_gtu
from . import mamba as mamba
from . import mix_attention as mix_attention
from . import ms_cam as ms_cam
from . import psa as psa
from . import pyraformer as pyraformer
from . import pyraformer_cscm as pyraformer_cscm
from . import relu_linear as relu_linear
from . import resize_conv as resize_conv
from . import sapa as sapa
from . import sapa_stack as sapa_stack
from . import se as se
from . import self_gate as self_gate
from . import self_self as self_self
from . import simam as simam
from . import sknet as sknet
from . import swiftformer as swiftformer
from . import trend_aware as trend_aware
from . import triplet as triplet
from . import utae_aggregator as utae_aggregator


def __getattr__(name: str) -> object:
    """A block's class by its name: `attnzoo.blocks.CBAM`."""
    from ..registry import class_named

    cls = None if name.startswith("_") else class_named(name)
    if cls is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return cls
