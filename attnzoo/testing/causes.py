"""Puts torch's errors into words: the cause, the line of the module's own code, the remedy."""

import re
import traceback
from pathlib import Path

import torch
from torch import nn

PACKAGE = Path(__file__).parents[1]
TORCH = Path(torch.__file__).parent

# What an error says, the cause, and the remedy.
KNOWN: tuple[tuple[str, str, str], ...] = (
    (
        r"modified by an inplace operation",
        "a tensor that the backward pass needs is changed in place",
        "write y = y + z instead of y += z, relu(y) instead of relu_(y)",
    ),
    (
        r"leaf Variable that requires grad is being used in an in-place|"
        r"view of a leaf Variable that requires grad",
        "an input or parameter is changed in place",
        "work on a new tensor: x = x * y instead of x *= y",
    ),
    (
        r"view size is not compatible",
        "view() of a tensor that is not contiguous",
        "call reshape(), or contiguous() first",
    ),
    (
        r"Only Tensors created explicitly by the user",
        "a buffer or an attribute is no leaf: it was computed from a parameter",
        "compute it in forward, or register it with .detach()",
    ),
    (
        r"[Cc]an't pickle|[Cc]an't get local object|cannot pickle|Can't get attribute",
        "it holds what pickle cannot store, such as a lambda or a local function",
        "use a function of the module's file, or a method, in its place",
    ),
    (
        r"Expected more than 1 (value per channel|spatial element)",
        "a norm in train mode gets a single value for each channel",
        "raise a ValueError that says so, or use a norm that needs no batch, such as GroupNorm",
    ),
    (
        r"marked with @?once_differentiable|once_differentiable",
        "a custom Function has no second derivative (once_differentiable)",
        "write its backward of differentiable torch operations, without once_differentiable",
    ),
    (
        r"\.item\(\)|_local_scalar_dense|data-dependent|Tensor\.item|Could not guard on data",
        "a value of a tensor decides what forward does (.item(), bool(tensor), int(tensor))",
        "stay in tensors: torch.where, masks, torch.clamp",
    ),
    (
        r"same dtype|expected scalar type|to have the same dtype|dtype .* but got|mixed dtype",
        "tensors of two dtypes meet",
        "make constants in the input's dtype: x.new_tensor(...), torch.ones(..., dtype=x.dtype)",
    ),
    (
        r"same device|Expected all tensors to be on|not on the expected device|device meta",
        "tensors of two devices meet: a constant stays on the CPU",
        "register_buffer, or make it with device=x.device",
    ),
    (
        r"used in this iteration|find_unused_parameters|did not receive grad",
        "a parameter gets no gradient, which DistributedDataParallel refuses",
        "remove the parameter, or let it act",
    ),
    (
        r"element 0 of tensors does not require grad",
        "the output does not depend on anything that wants a gradient: its graph is cut",
        "look for .detach(), .data, torch.no_grad() and NumPy",
    ),
    (
        r"share memory|shared tensors|Some tensors share",
        "two names in the state dict are one tensor",
        "build a layer for each name, or declare the pair in `tied_parameters`",
    ),
)


def explained(error: BaseException) -> tuple[str, str]:
    """Cause, with the line of the module's code, and remedy, empty where it is not known."""
    text = str(error)
    places = [submodule_of(error), line_of(error)]
    where = f" ({', '.join(filter(None, places))})" if any(places) else ""
    for pattern, cause, remedy in KNOWN:
        if re.search(pattern, text):
            return f"{cause}{where}", remedy
    first = next(iter(text.strip().splitlines()), "")
    if isinstance(error, AssertionError) and first:
        return first, ""
    return f"{type(error).__name__}: {first[:300]}{where}", ""


LIMITS_OF_TORCH = (
    r"Batching rule not implemented|could not create a primitive|not implemented for '|"
    r"derivative for .* is not implemented|NYI|RNN, GRU|allow_rnn|"
    r"No C\+\+ compiler|InvalidCxxCompiler"
)


def is_limit_of_torch(error: BaseException) -> bool:
    """Whether an operator of torch's own lacks what is asked, whatever module calls it."""
    return re.search(LIMITS_OF_TORCH, str(error)) is not None


def submodule_of(error: BaseException) -> str:
    """`layer1.0.norm`, the innermost submodule whose forward the error left."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    owners = [frame.f_locals.get("self") for frame in frames if frame.f_code.co_name == "forward"]
    modules = [owner for owner in owners if isinstance(owner, nn.Module)]
    if not modules:
        return ""
    return next((path for path, m in modules[0].named_modules() if m is modules[-1]), "")


def line_of(error: BaseException) -> str:
    """`my_block.py:12`, the innermost line that is neither torch's nor a check's."""
    in_user_code = re.findall(r'File "([^"]+)", line (\d+)', str(error))  # as compilers say it
    frames = [(f.filename, str(f.lineno)) for f in traceback.extract_tb(error.__traceback__)]
    return _innermost(in_user_code) or _innermost(frames)


def current_line() -> str:
    """The line of the module's code that is running now."""
    return _innermost([(f.filename, str(f.lineno)) for f in traceback.extract_stack()])


def called_by_torch() -> bool:
    """Whether torch's own Python code, not the module's, calls the operator that is running."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        wraps = path.is_relative_to(TORCH / "_dynamo") or path == TORCH / "_compile.py"
        if not (wraps or path.is_relative_to(PACKAGE / "testing")):
            return path.is_relative_to(TORCH)
    return False


def _innermost(frames: list[tuple[str, str]]) -> str:
    for filename, line in reversed(frames):
        path = Path(filename)
        checks = path.is_relative_to(PACKAGE / "testing") or path.is_relative_to(PACKAGE / "cli")
        library = path.is_relative_to(TORCH) or "importlib" in filename or filename[:1] == "<"
        if not (checks or library):
            return f"{path.name}:{line}"
    return ""
