"""Hand-written gradients, one file per block or operation, and the rule that selects them.

`custom_gradient` attaches one to its reference form, a function of ordinary torch operations, which
is its specification.
"""

from .custom_gradient import Pair as Pair
from .custom_gradient import custom_gradient as custom_gradient
from .custom_gradient import needs_reference_form as needs_reference_form
from .custom_gradient import reference_forms as reference_forms
