"""The contract, one check a function; the order of these imports is that of the report."""

from . import calls as calls
from . import compilers as compilers
from . import distributed as distributed
from . import export as export
from . import numbers as numbers
from . import samples as samples
from . import state as state
