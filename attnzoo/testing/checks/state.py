"""Checks of state: copies, files, the meta device, functional calls, checkpointing."""

import copy
import functools
import io
import itertools
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from ... import _torch
from ...registry import Inputs
from ..closeness import assert_close
from ..inputs import arguments, batch_axis, call, map_tensors, randomize_parameters, tensors
from ..memory import kept_bytes
from ..outcome import FaultError, check, not_applicable, require
from ..resize import batch_size
from ..step import step
from ..subject import ODD, SMALL, Subject
from .calls import BOTH


@check("copy", capability="copy", remedy="let __deepcopy__ and __getstate__ keep all there is")
def deepcopy(subject: Subject) -> str | None:
    """deepcopy gives the same module, hooks too"""
    module, inputs = _original(subject)
    _tell_nonleaf(module)
    twin = copy.deepcopy(module)
    _assert_twin(module, twin, inputs, "deepcopy")
    return None


@check("pickle", capability="copy", remedy="hold functions by name: no lambda, no local class")
def pickled(subject: Subject) -> str | None:
    """pickle gives the same module"""
    module, inputs = _original(subject)
    _tell_nonleaf(module)
    try:
        data = pickle.dumps(module)
    except Exception:
        lost = _not_picklable(module)
        if lost:
            raise FaultError(f"{lost} cannot be pickled") from None
        raise
    _assert_twin(module, pickle.loads(data), inputs, "pickle")
    return None


def _original(subject: Subject) -> tuple[nn.Module, Inputs]:
    """The module that is to be copied, not a copy of it."""
    if subject.given is None:
        return subject.made()
    module = subject.given()
    kinds = [p.dtype for p in module.parameters() if p.is_floating_point()]
    return module, subject.inputs(dtype=kinds[0] if kinds else torch.float32)


def _assert_twin(module: nn.Module, twin: nn.Module, inputs: Inputs, how: str) -> None:
    lost = sorted(set(_torch.hooks(module)) - set(_torch.hooks(twin)))
    if lost:
        raise FaultError(f"{how} loses a hook ({lost[0]})")
    require(repr(twin) == repr(module), f"{how} changes the module's repr")
    wanted, found = _eval_step(module, inputs), _eval_step(twin, inputs)
    absent = sorted(wanted["parameters"].keys() - found["parameters"].keys())
    if absent:
        raise FaultError(
            f"{how} leaves a reference to the original: {absent[0]} of the copy gets no gradient",
            "a hook or function that closes over self stays the original's; use bound methods",
        )
    try:
        assert_close(found, wanted)
    except AssertionError as error:
        raise FaultError(f"{how} gives other numbers: {error}") from error


def _eval_step(module: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """A step in eval mode that leaves the module's modes and gradients as they were."""
    modes = [(part, part.training) for part in module.modules()]
    grads = [(p, p.grad) for p in module.parameters()]
    try:
        for p, _ in grads:
            p.grad = None
        torch.manual_seed(3)
        return step(module.eval(), inputs)
    finally:
        for p, before in grads:
            p.grad = before
        for part, mode in modes:
            part.training = mode


def _tell_nonleaf(module: nn.Module) -> None:
    for key, value in module.named_buffers():
        if value.grad_fn is not None:
            raise FaultError(
                f"buffer {key} is no leaf: it was computed from a parameter when it was built",
                "compute it in forward, or register it with .detach()",
            )


def _not_picklable(module: nn.Module) -> str:
    """The attribute that pickle does not take."""
    for path, part in module.named_modules():
        for key, value in vars(part).items():
            try:
                if not isinstance(value, Mapping) or "hook" in key:
                    pickle.dumps(value)
            except Exception:
                name = f"{path}.{key}".lstrip(".")
                shown = getattr(value, "__qualname__", "") or type(value).__name__
                return f"{name} ({shown})"
    return ""


@check("registered", remedy="nn.ModuleList, nn.ParameterList, nn.Parameter or register_buffer")
def held(subject: Subject) -> str | None:
    """parameters and layers are registered, none stands in a plain list, dict or tuple"""
    module = subject.build()
    known = {id(m) for m in module.modules()} | {id(p) for p in module.parameters()}
    for path, part in module.named_modules():
        for key, value in vars(part).items():
            if key.startswith("_") and key in vars(nn.Module()):
                continue
            for item in _contents(value):
                wants = isinstance(item, nn.Module) or (
                    isinstance(item, Tensor) and item.requires_grad and item.is_leaf
                )
                if wants and id(item) not in known:
                    name = f"{path}.{key}".lstrip(".")
                    what = "a layer" if isinstance(item, nn.Module) else "a parameter"
                    raise FaultError(
                        f"{name} holds {what} that is not registered: .to(), parameters() and the "
                        "state dict do not see it"
                    )
    return None


def _contents(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [item for v in value.values() for item in _contents(v)]
    if isinstance(value, (list, tuple)):
        return [item for v in value for item in _contents(v)]
    return [value]


@check("tied", remedy="build a layer for each, or declare `tied_parameters` where it is meant")
def tied(subject: Subject) -> str | None:
    """no parameter has two names, unless the module declares it in `tied_parameters`"""
    module = subject.build()
    declared = [*getattr(module, "tied_parameters", ()), *_torch.declared_ties(module)]
    flat = {key for pair in declared for key in ([pair] if isinstance(pair, str) else pair)}
    names: dict[int, str] = {}
    for key, parameter in module.named_parameters(remove_duplicate=False):
        first = names.setdefault(id(parameter), key)
        if first != key and not {first, key} & flat:
            raise FaultError(f"{first} and {key} are one and the same parameter")
    return None


@check("state_dict", capability="state_dict", remedy="register_buffer what a result depends on")
def state_dict(subject: Subject) -> str | None:
    """strict round trips through torch.save, weights_only, and safetensors"""
    from safetensors.torch import load, save

    module, inputs = subject.made(train=True)
    step(module, inputs)  # running statistics of its own
    state = module.eval().state_dict()
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    plain = state if subject.registered else {k: v.clone().contiguous() for k, v in state.items()}
    for loaded in (saved, load(save(plain))):
        fresh = _other(subject)
        fresh.load_state_dict(loaded, strict=True)
        try:
            assert_close(step(fresh, inputs), step(module, inputs))
        except AssertionError as error:
            raise FaultError(
                f"a module that loads the state dict gives other numbers: {error}: something that "
                "results depend on is not in it"
            ) from error
    return None


def _other(subject: Subject) -> nn.Module:
    """A module with other numbers, to be loaded."""
    torch.manual_seed(7)
    module = subject.build().float().eval()
    if not subject.registered:
        for _ in range(2):  # what is copied, not built, has the same numbers after once
            randomize_parameters(module)
    return module


@check(
    "meta",
    capability="meta",
    remedy="keep what is computed in __init__ in persistent buffers, or compute it in forward",
)
def meta(subject: Subject) -> str | None:
    """built on the meta device, to_empty and load_state_dict give the same module"""
    module, inputs = subject.made()
    lost = _not_in_state(module)
    if not subject.registered and lost:
        return not_applicable(f"buffer {lost} is not in the state dict")
    ghost = _on_meta(subject)
    require(
        all(t.is_meta for t in (*ghost.parameters(), *ghost.buffers())),
        "a tensor is not on the meta device",
    )
    torch.use_deterministic_algorithms(True)  # what nobody loads starts as NaN
    try:
        real = ghost.to_empty(device="cpu").eval()
    finally:
        torch.use_deterministic_algorithms(False)
    real.load_state_dict(module.state_dict())
    assert_close(step(real, inputs), step(module, inputs))
    return None


def _on_meta(subject: Subject) -> nn.Module:
    if not subject.registered:
        return subject.build().to("meta")
    with torch.device("meta"):
        return subject.build()


def _not_in_state(module: nn.Module) -> str:
    state = module.state_dict()
    return next((key for key, _ in module.named_buffers() if key not in state), "")


@check("functional", capability="functional", remedy="no branch on values, no change in place")
def functional(subject: Subject) -> str | None:
    """torch.func: functional_call, grad, vmap; per-sample gradients are a loop's"""
    module, inputs = subject.made()
    state = {key: value.detach() for key, value in module.named_parameters()}
    wanted = list(tensors(call(module, inputs)))
    assert_close(list(tensors(_outputs(module, state, inputs))), wanted)
    if not subject.registered and any(len(t) != batch_size(inputs) for t in tensors(inputs)):
        return not_applicable("an input has no sample for each of the batch")
    axes = {key: batch_axis(module, key) for key in inputs}

    def one(state: dict[str, Tensor], sample: Inputs) -> list[Tensor]:
        batch: Inputs = {}
        for key, axis in axes.items():
            if axis is None:
                batch[key] = sample[key]
                continue
            batch |= map_tensors(functools.partial(torch.unsqueeze, dim=axis), {key: sample[key]})
        return [t[0] for t in tensors(_outputs(module, state, batch))]

    def loss(state: dict[str, Tensor], sample: Inputs) -> Tensor:
        return _height(one(state, sample))

    assert_close(vmap(one, (None, axes))(state, inputs), wanted)
    if not state:
        return None  # no parameters, no gradients of theirs
    found = vmap(grad(loss), (None, axes))(state, inputs)
    for i in range(ODD.batch if subject.registered else batch_size(inputs)):
        module.zero_grad()
        _height(call(module, subject.samples(inputs, slice(i, i + 1)))).backward()  # type: ignore[no-untyped-call]
        assert_close(
            {key: value[i] for key, value in found.items()},
            {key: value.grad for key, value in module.named_parameters()},
        )
    return None


def _height(outputs: Any) -> Tensor:
    return sum((t.sin().sum() for t in tensors(outputs)), torch.zeros(()))


def _outputs(module: nn.Module, state: dict[str, Tensor], inputs: Inputs) -> Any:
    return functional_call(module, state, *arguments(module, inputs))


@check("memory", remedy="keep numbers, not tensors: float(loss), or nothing at all")
def memory(subject: Subject) -> str | None:
    """calls and training steps keep no more memory each time"""
    module, inputs = subject.made()
    if grown := kept_bytes(lambda: step(module, inputs)):
        raise FaultError(f"every training step keeps {grown:,} bytes more")
    return None


@check("caches", remedy="make it anew if the size differs, or cache it by size, dtype and device")
def caches(subject: Subject) -> str | None:
    """calls of one module do not depend on the sizes of its earlier calls"""
    if (sizes := _two_sizes(subject)) is None:
        return not_applicable("it takes inputs of one size alone")
    wanted = [_eval_step(subject.module(), inputs) for inputs in sizes]
    for order in ((0, 1), (1, 0)):
        module = subject.module()
        for i in order:
            shapes = ", ".join(str(tuple(t.shape)) for t in tensors(sizes[i]))
            try:
                assert_close(_eval_step(module, sizes[i]), wanted[i])
            except Exception as error:  # a tensor of another size meets the module's
                raise FaultError(
                    f"after inputs of another size, those of shape {shapes} fail or give other "
                    f"results: something of the earlier call is used ({str(error)[:120]})"
                ) from error
    return None


def _two_sizes(subject: Subject) -> tuple[Inputs, Inputs] | None:
    """Inputs of two sizes that the module takes, each in a module of its own."""
    usual, other = subject.inputs(), subject.inputs(SMALL)
    shapes = [[t.shape[1:] for t in tensors(inputs)] for inputs in (usual, other)]
    if shapes[0] == shapes[1]:
        return None
    try:
        with torch.no_grad():
            call(subject.module(), other)
    except Exception:  # refused, or a fault that `sizes` tells
        return None
    return usual, other


@check("checkpoint", capability="checkpoint", remedy="draw from torch's generator; keep no state")
def checkpoint(
    subject: Subject, kinds: Sequence[bool] = BOTH, modes: Sequence[bool] = BOTH
) -> str | None:
    """activation checkpointing of either kind changes no gradient"""
    for reentrant, train in itertools.product(kinds, modes):
        module, inputs = subject.made(train=train)
        if reentrant and not any(t.is_floating_point() for t in tensors(inputs)):
            continue  # that kind gives no gradient without an input that wants one
        torch.manual_seed(3)  # dropout is drawn again as it was
        wanted = step(module, inputs)

        def run(points: Inputs, module: nn.Module = module, reentrant: bool = reentrant) -> Any:
            def again(*given: Tensor) -> Any:
                rest = iter(given)
                outputs = call(module, map_tensors(lambda _: next(rest), points))
                return tuple(tensors(outputs))  # of a dict it would keep no gradient

            return torch_checkpoint(again, *tensors(points), use_reentrant=reentrant)

        torch.manual_seed(3)
        assert_close(step(module, inputs, run), wanted)
    return None
