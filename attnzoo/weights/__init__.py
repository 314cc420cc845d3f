"""Loading the authors' weights: key matching, and reading files without running their code."""

from .upstream import from_upstream as from_upstream
from .upstream import upstream_keys as upstream_keys
