"""Checks of arithmetic: derivatives, half precision, large inputs."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.autograd.gradcheck import gradcheck as torch_gradcheck
from torch.autograd.gradcheck import gradgradcheck as torch_gradgradcheck
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...registry import Inputs
from .. import gradcheck as directional
from ..closeness import assert_close
from ..inputs import call, leaves, map_tensors, tensors
from ..outcome import FaultError, NotApplicableError, check, not_applicable, require
from ..step import finite, step
from ..subject import FEW, Subject, count_of

HALVES = (torch.bfloat16, torch.float16)
MAX_NUMEL = 2**20  # numbers of parameters and inputs up to which derivatives are checked


@check(
    "gradcheck",
    capability="gradcheck",
    remedy="compare backward with the formula's derivative; look for .detach() and .data",
)
def gradcheck(subject: Subject) -> str | None:
    """first derivatives agree with finite differences in float64"""
    run, points, module, inputs = _differentiable(subject)
    if not points:
        return not_applicable("nothing wants a gradient")
    stated = subject.entry is not None and "gradcheck" in subject.entry.limits
    if subject.registered and not stated:
        torch_gradcheck(run, points, fast_mode=True, atol=1e-6)  # raises
        return None
    # Not torch's check: its tolerance grows with the size, and where it fails it takes minutes.
    with directional.Float64Throughout():
        grads = [torch.randn_like(output) for output in run()]
        for name, error in directional.errors(module, inputs, grads):
            if not error <= directional.LIMIT:
                raise FaultError(*_in_words(name, _custom_functions(run())))
    return None


@check(
    "gradgradcheck",
    capability="gradcheck",
    remedy="write the backward of a custom Function of differentiable torch operations",
)
def gradgradcheck(subject: Subject) -> str | None:
    """second derivatives agree with finite differences in float64"""
    run, points, module, inputs = _differentiable(subject)
    if not points:
        return not_applicable("nothing wants a gradient")
    with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
        if subject.registered:
            torch_gradgradcheck(run, points, fast_mode=True, atol=1e-4)  # raises
            return None
        try:
            with directional.Float64Throughout():
                grads = [torch.randn_like(output) for output in run()]
                found = directional.errors(module, inputs, grads, order=2)
                wrong = [name for name, error in found if not error <= directional.LIMIT]
        except RuntimeError as error:
            if "is not implemented" in str(error):
                return not_applicable(f"torch has no second derivative here: {error}")
            if "once_differentiable" not in str(error):
                raise
            wrong = ["all"]
    if wrong:
        names = _custom_functions(run())
        own = f"the backward of {', '.join(names)}" if names else "a backward"
        raise FaultError(f"second derivatives are wrong or missing: {own} is not differentiable")
    return None


def _differentiable(
    subject: Subject,
) -> tuple[Callable[..., tuple[Tensor, ...]], list[Tensor], nn.Module, Inputs]:
    """The call as a function of its leaves in float64, the leaves, the module, the inputs."""
    if subject.registered:
        module, inputs = subject.made(FEW, torch.float64)
    else:
        module, inputs = subject.in_float64()
        inputs = _few(subject, module, subject.samples(inputs, slice(2)))
    if not subject.registered and _numel(module) + count_of(inputs) > MAX_NUMEL:
        raise NotApplicableError(
            f"more than {MAX_NUMEL:,} numbers: check a smaller configuration of the module"
        )
    wanting = leaves(inputs)
    points = [t for t in (*tensors(wanting), *module.parameters()) if t.requires_grad]

    def run(*_: Tensor) -> tuple[Tensor, ...]:
        torch.manual_seed(0)
        outputs = tuple(t for t in tensors(call(module, wanting)) if t.is_floating_point())
        return outputs if subject.registered else _of_graph(outputs)

    return run, points, module, inputs


def _few(subject: Subject, module: nn.Module, inputs: Inputs) -> Inputs:
    """Inputs of a smaller size, if the module takes it: a failing check goes number by number."""
    smaller = subject.inputs(FEW._replace(batch=2, height=4), torch.float64)
    if count_of(smaller) >= count_of(inputs):
        return inputs
    try:
        with torch.no_grad():
            call(module, smaller)
    except Exception:
        return inputs
    return smaller


def _of_graph(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    graph = tuple(t for t in outputs if t.requires_grad)
    if not graph:
        raise NotApplicableError("no output requires a gradient; see gradients")
    return graph


def _numel(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _in_words(whose: str, custom: list[str]) -> tuple[str, str]:
    if custom:
        return (
            f"the gradient of {whose} disagrees with finite differences: the backward of "
            f"{', '.join(custom)} is wrong",
            "differentiate the forward formula again, every argument of it",
        )
    return (
        f"the gradient of {whose} disagrees with finite differences: a branch is detached, or a "
        "tensor was changed where autograd does not see it",
        "look for .detach(), .data, torch.no_grad() and in-place changes",
    )


def _custom_functions(outputs: Sequence[Tensor]) -> list[str]:
    """Names of the custom autograd functions in the graph of the outputs."""
    seen: set[Any] = set()
    found, left = list[str](), [o.grad_fn for o in outputs]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, BackwardCFunction):
            found.append(type(node).__name__.removesuffix("Backward"))
        left += [parent for parent, _ in node.next_functions]
    return sorted(set(found))


CAST_REMEDY = "make constants in the input's dtype; sum and exponentiate in float32 inside"


@check("bfloat16", capability="bfloat16", remedy=CAST_REMEDY)
def bfloat16(subject: Subject) -> str | None:
    """cast whole to bfloat16: dtype kept, outputs and gradients finite, near float32's"""
    return _cast(subject, torch.bfloat16)


@check("float16", capability="float16", remedy=CAST_REMEDY)
def float16(subject: Subject) -> str | None:
    """cast whole to float16: dtype kept, outputs and gradients finite, near float32's"""
    return _cast(subject, torch.float16)


def _cast(subject: Subject, dtype: torch.dtype) -> str | None:
    module, inputs = subject.made()
    wanted = step(module, inputs)
    for train in (False, True):
        half = subject.module().to(dtype).train(train)
        try:
            found = step(half, scaled(inputs, 1, dtype))
        except (RuntimeError, NotImplementedError) as error:
            if not subject.registered and "not implemented for" in str(error):
                return not_applicable(f"torch itself cannot on this device: {error}")
            raise
        _keeps_dtype(found, dtype)
        if not finite(found):
            largest = max((float(t.abs().max()) for t in tensors(wanted) if t.numel()), default=0)
            raise FaultError(
                f"{_plain(dtype)} overflows where float32 does not (its largest number is "
                f"{largest:.3g}, {_plain(dtype)}'s {torch.finfo(dtype).max:.5g})",
                "compute sums, squares and exponentials in float32, or scale before the sum",
            )
        if not train:  # dropout and batch statistics are other numbers
            _near(found["outputs"], wanted["outputs"], dtype)
    return None


def _keeps_dtype(found: dict[str, Any], dtype: torch.dtype) -> None:
    for kind in ("outputs", "inputs", "parameters"):
        for tensor in tensors(found[kind]):
            if tensor.is_floating_point() and tensor.dtype != dtype:
                raise FaultError(
                    f"{_plain(dtype)} inputs give {kind} in {_plain(tensor.dtype)}",
                    "end with y.to(x.dtype), and make constants in the input's dtype",
                )


def _near(found: list[Tensor], wanted: list[Tensor], dtype: torch.dtype) -> None:
    try:
        assert_close(found, wanted, dtype)
    except AssertionError as error:
        raise FaultError(f"{_plain(dtype)} outputs are far from float32's: {error}") from error


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


AUTOCAST_REMEDY = "give y.to(x.dtype) where dtypes meet, and keep large sums out of autocast"


@check("autocast", capability="autocast", remedy=AUTOCAST_REMEDY)
def autocast(subject: Subject, dtypes: Sequence[torch.dtype] = HALVES) -> str | None:
    """under torch.autocast to either half: outputs and gradients finite, near float32's"""
    for dtype in dtypes:
        module, inputs = subject.made()
        wanted = step(module, inputs)

        def run(points: Inputs, module: nn.Module = module, dtype: torch.dtype = dtype) -> Any:
            with torch.autocast("cpu", dtype):
                return call(module, points)

        found = step(module, inputs, run)
        with torch.autocast("cpu", dtype):  # backward() within it, torch advises against it, works
            inside = step(module, inputs)
        for each in (found, inside):
            require(finite(each), f"not finite under autocast to {dtype}")
            _near(each["outputs"], wanted["outputs"], dtype)
    return None


@check("autocast_step", capability="autocast", remedy=AUTOCAST_REMEDY)
def autocast_step(
    subject: Subject, parameters: Sequence[torch.dtype] = (torch.float32, torch.bfloat16)
) -> str | None:
    """the same with the whole step inside, and with parameters cast before"""
    for dtype in parameters:
        module, inputs = subject.made()
        wanted = step(module, inputs)
        with torch.autocast("cpu", torch.bfloat16):
            try:
                found = step(module.to(dtype), inputs)
            except RuntimeError as error:
                if subject.registered or dtype == torch.float32:
                    raise
                return not_applicable(f"parameters cast before do not meet float32 inputs: {error}")
        require(finite(found), "not finite under autocast")
        _near(found["outputs"], wanted["outputs"], torch.bfloat16)
    return None


@check("zeros", remedy="add eps inside the root: (x.square().sum(-1) + eps).sqrt(); F.normalize")
def zeros(subject: Subject) -> str | None:
    """inputs of zeros, as padding is, give finite outputs and gradients"""
    module, inputs = subject.made()
    found = step(module, scaled(inputs, 0, torch.float32))
    for kind, name in (("outputs", "outputs"), ("inputs", "gradients of inputs")):
        require(finite(found[kind]), f"inputs of zeros give {name} that are not finite")
    for key, gradient in found["parameters"].items():
        require(finite(gradient), f"inputs of zeros give a gradient of {key} that is not finite")
    return None


SCALES = ("1", "10", "30", *(f"1e{power}" for power in (2, 3, 4, 6, 9, 12, 18, 24, 30, 36)))
SCALE_REMEDY = "compute sums, squares and exponentials in float32, or scale before the sum"


@check("scale_bfloat16", capability="scale_bfloat16", remedy=SCALE_REMEDY)
def scale_bfloat16(subject: Subject) -> str | None:
    """bfloat16 does not overflow at inputs of a standard deviation of up to 30"""
    return largest_scale(subject, torch.bfloat16)


@check("scale_float16", capability="scale_float16", remedy=SCALE_REMEDY)
def scale_float16(subject: Subject) -> str | None:
    """float16 does not overflow at inputs of a standard deviation of up to 30"""
    return largest_scale(subject, torch.float16)


def largest_scale(subject: Subject, dtype: torch.dtype) -> str:
    """The last scale at which all is finite; up to 30, only what does not fit may overflow."""
    module, inputs = subject.made()
    module.to(dtype)
    reached = ""
    for text in SCALES:
        large = scaled(inputs, float(text), dtype)
        if not finite(large):
            break  # no such input exists in this dtype
        try:
            found = _mean_step(module, large)
        except (RuntimeError, NotImplementedError) as error:
            if not subject.registered:
                return not_applicable(f"see {_plain(dtype)}: {error}")
            raise
        if not finite(found):
            if float(text) <= 30:
                exact = subject.module().to(dtype).double()
                _assert_too_large(_mean_step(exact, scaled(large, 1, torch.float64)), found, text)
            break
        reached = text
    if not reached:
        raise FaultError("overflows at a standard deviation of 1")
    return reached


def _mean_step(module: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """Outputs over their number, as a mean loss has them, and the gradients of that."""

    def run(points: Inputs) -> list[Tensor]:
        return [o / max(1, o.numel()) for o in tensors(call(module, points))]

    return step(module, inputs, run)


def _assert_too_large(true: dict[str, Any], found: dict[str, Any], scale: str) -> None:
    """What is not finite is so in truth: the number, or the output before it, passes the dtype."""
    largest = torch.finfo(found["outputs"][0].dtype).max
    if any(t.abs().max() * t.numel() > largest for t in true["outputs"]):
        return
    for a, b in zip(tensors(found), tensors(true), strict=True):
        if not (a.isfinite().all() or b.abs().max() > largest):
            raise FaultError(
                f"an overflow at inputs of scale {scale} that float64 does not have, where every "
                f"number is below {largest:.5g}"
            )


def scaled(inputs: Inputs, factor: float, dtype: torch.dtype) -> Inputs:
    """Floating inputs times `factor`, cast; others as they are."""

    def change(tensor: Tensor) -> Tensor:
        return (tensor * factor).to(dtype) if tensor.is_floating_point() else tensor

    changed: Inputs = map_tensors(change, inputs)
    return changed
