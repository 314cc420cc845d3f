"""Hand-written gradients: a file for each block or operation, and the one place that picks them.

The reference form, ordinary torch, is the specification. `custom_gradient` joins the two.
"""

from .custom_gradient import Pair as Pair
from .custom_gradient import custom_gradient as custom_gradient
from .custom_gradient import needs_reference_form as needs_reference_form
from .custom_gradient import reference_forms as reference_forms
