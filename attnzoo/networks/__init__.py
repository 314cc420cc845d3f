"""Whole networks, built from blocks; importing a network's file registers it."""

from . import adcd_net as adcd_net
from . import paps as paps
from . import segearth_ov as segearth_ov
from . import tsvit as tsvit
from . import u_mixformer as u_mixformer
from . import unet_tsf as unet_tsf
from . import utae as utae
