"""The contract of a module as checks, for the package's own blocks and for anyone's modules.

`check_module(module, inputs)` runs the checks and raises with all that fail, `suite(cls, ...)`
makes a pytest test of them, and `attnzoo check` prints them as a table.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import check_module as check_module
    from .api import outcomes_of as outcomes_of
    from .api import suite as suite
    from .closeness import assert_close as assert_close
    from .outcome import ContractError as ContractError
    from .outcome import Outcome as Outcome

_LAZY = {  # loaded when asked for, which keeps `import attnzoo` fast
    "check_module": ".api",
    "outcomes_of": ".api",
    "suite": ".api",
    "assert_close": ".closeness",
    "ContractError": ".outcome",
    "Outcome": ".outcome",
}
__all__ = sorted(_LAZY)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
