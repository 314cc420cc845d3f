"""The table of contents: importing a block's file registers it."""

from . import dia as dia
from . import dilated_inception as dilated_inception
from . import m_gtu as m_gtu
from . import se as se
