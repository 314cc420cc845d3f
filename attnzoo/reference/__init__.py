"""Results of the authors' own code, shipped with the package, and the comparison with them."""

from .cases import TOLERANCE as TOLERANCE
from .cases import Case as Case
from .cases import Verdict as Verdict
from .cases import arrange as arrange
from .cases import cases as cases
from .cases import verify as verify
