"""Parameters that must not decay, marked where a block creates them.

Weight decay pulls towards zero, which is no neutral value of a table of positions or biases, of a
temperature or of the rates of a state-space model. The mark is kept by the module, and not by the
parameter alone: copies, and conversions such as `to_empty`, make new parameters.
"""

from torch import nn

_MARK = "attnzoo_undecayed"


def exempt(module: nn.Module, *names: str) -> None:
    """Mark parameters of a module: weight decay leaves them out."""
    vars(module)[_MARK] = (*vars(module).get(_MARK, ()), *names)
    for name in names:
        getattr(module, name)._no_weight_decay = True  # as Mamba's authors mark them


def exempted(module: nn.Module) -> set[str]:
    """Names of the marked parameters of a module and of all modules inside of it."""
    return {
        f"{path}.{name}".lstrip(".")
        for path, part in module.named_modules()
        for name in vars(part).get(_MARK, ())
    }
