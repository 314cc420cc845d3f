"""The authors' own numbers, which ship with the package, and their re-run."""

from .cases import TOLERANCE as TOLERANCE
from .cases import Case as Case
from .cases import Verdict as Verdict
from .cases import arrange as arrange
from .cases import cases as cases
from .cases import verify as verify
