"""Which block, where, at what price: every block tried in a network of the user's."""

from .api import survey as survey
from .report import Survey as Survey
