"""Every private symbol of torch that this package uses, each with a fallback.

No other module of the package uses one. If the installed torch lacks a symbol, the functions here
return the value that makes callers use their reference form, which is slower but correct.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad as _forward_ad
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.modules.conv import _ConvNd as Convolution
from torch.nn.modules.instancenorm import _InstanceNorm as InstanceNorm
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
from torch.utils._pytree import tree_map_only as tree_map_only

__all__ = ["BatchNorm", "Convolution", "InstanceNorm"]  # of any dimension


def _symbol(path: str) -> Any:
    """`torch.<path>`, or None if this version of torch has no such name."""
    found: Any = torch
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


_tracing_state = _symbol("_C._get_tracing_state")
_functorch_active = _symbol("_C._are_functorch_transforms_active")
_dispatch_mode = _symbol("_C._get_dispatch_mode")
_proxy_key = _symbol("_C._TorchDispatchModeKey.PROXY")
_dispatch_depth = _symbol("_C._len_torch_dispatch_stack")
_is_legacy_batched = _symbol("_C._functorch.is_legacy_batchedtensor")
_is_wrapped = _symbol("_C._functorch.is_functorch_wrapped_tensor")
_any_autocast = _symbol("_C._is_any_autocast_enabled")
_softmax_backward_data = _symbol("_softmax_backward_data")
_is_exporting = _symbol("compiler.is_exporting")  # public since torch 2.7
cast_operator = _symbol("ops.aten._to_copy.default")  # that `.to(dtype)` calls
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = tuple(f"_global{kind}" for kind in _HOOKS)


def is_exporting() -> bool:
    """Whether `torch.export` is tracing this call."""
    if _is_exporting is None:
        return torch.compiler.is_compiling()  # what is written for export also compiles
    return bool(_is_exporting())


def autocast_possible() -> bool:
    """Whether autocast may be enabled for some device type: a question cheaper than which."""
    return _any_autocast is None or bool(_any_autocast())


def autocast_enabled(device_type: str) -> bool:
    """Whether autocast is enabled for the device type; some, such as "meta", do not support it."""
    if torch.compiler.is_compiling():  # torch 2.11 cannot trace `is_autocast_available`
        return device_type != "meta" and torch.is_autocast_enabled(device_type)
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype in which autocast computes matrix products of `x`, or None if it is disabled."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if autocast_enabled(kind) else None


def jit_tracing() -> bool:
    """Whether `torch.jit.trace` is recording this call."""
    return _tracing_state is None or _tracing_state() is not None


def transforms_active() -> bool:
    """Whether a `torch.func` transform is active in this call."""
    return _functorch_active is None or bool(_functorch_active())


def forward_mode_active() -> bool:
    """Whether forward-mode derivatives are being computed."""
    return getattr(_forward_ad, "_current_level", 0) >= 0


def proxy_tracing() -> bool:
    """Whether `make_fx` is recording this call."""
    if torch.compiler.is_compiling():  # torch.compile cannot trace `_get_dispatch_mode`
        return False
    if _dispatch_mode is None or _proxy_key is None:
        return True
    return _dispatch_mode(_proxy_key) is not None


def dispatch_modes_active() -> bool:
    """Whether a `TorchDispatchMode`, such as a counter or fake tensors, is active."""
    return _dispatch_depth is None or _dispatch_depth() > 0


def is_batched(grad: Tensor) -> bool:
    """Whether a gradient is a batch of gradients (`is_grads_batched`, `torch.func.vmap`)."""
    if _is_legacy_batched is None or _is_wrapped is None:
        return True
    return bool(_is_legacy_batched(grad) or _is_wrapped(grad))


def is_view(tensor: Tensor) -> bool:
    """Whether a tensor is a view of another."""
    method: Callable[[], bool] | None = getattr(tensor, "_is_view", None)
    return True if method is None else method()


def version(tensor: Tensor) -> int:
    """How many times a tensor has been modified in place, or -1 if unknown."""
    count: int = getattr(tensor, "_version", -1)
    return count


def softmax_backward(grad: Tensor, softmax: Tensor) -> Tensor:
    """The gradient of a softmax over the last axis, in the dtype of its result."""
    if _softmax_backward_data is None:
        product = grad * softmax
        return product - softmax * product.sum(-1, keepdim=True)
    gradient: Tensor = _softmax_backward_data(grad, softmax, -1, softmax.dtype)
    return gradient


def decompose(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run the operator's decomposition into other operators, or return NotImplemented."""
    if getattr(operator, "decompose", None) is None:
        return NotImplemented
    return operator.decompose(*args, **kwargs)


def uncompiled(module: nn.Module) -> nn.Module:
    """The module that was passed to `torch.compile`, or the module itself if not compiled."""
    original: nn.Module = getattr(module, "_orig_mod", module)
    return original


def cuda_spin(cycles: int) -> None:
    """Keep the current CUDA stream busy; uses matrix products if `torch.cuda._sleep` is missing."""
    sleep = getattr(torch.cuda, "_sleep", None)
    if sleep is not None:
        sleep(cycles)
        return
    square = torch.ones(2048, 2048, device="cuda")
    for _ in range(1 + cycles // 10**6):
        square @ square


def out_arguments(operator: Any) -> frozenset[str]:
    """Names of the arguments that an operator writes its results to, such as `out`."""
    arguments = getattr(getattr(operator, "_schema", None), "arguments", ())
    return frozenset(a.name for a in arguments if getattr(a, "is_out", a.name == "out"))


def schema_name(operator: Any) -> str:
    """`aten::relu` for `torch.ops.aten.relu.default`; a higher-order operator's own name."""
    name: str = getattr(getattr(operator, "_schema", None), "name", str(operator))
    return name


def overload_packet(operator: Any) -> Any:
    """`torch.ops.aten.relu` for `torch.ops.aten.relu.default`."""
    return getattr(operator, "_overloadpacket", operator)


class Joined(MutableMapping[str, Any]):
    """Two dicts as one: new names go to the second, where there is one."""

    def __init__(self, own: dict[str, Any], theirs: MutableMapping[str, Any]) -> None:
        self.own, self.theirs = own, theirs

    def __getitem__(self, name: str) -> Any:
        return self.own[name] if name in self.own else self.theirs[name]

    def __setitem__(self, name: str, value: Any) -> None:
        (self.own if name in self.own else self.theirs)[name] = value

    def __delitem__(self, name: str) -> None:
        del (self.own if name in self.own else self.theirs)[name]

    def __iter__(self) -> Iterator[str]:
        return iter([*self.theirs, *(name for name in self.own if name not in self.theirs)])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def copy(self) -> dict[str, Any]:
        """Both in one dict."""
        return dict(self)


class Facade(nn.Module):
    """A module in front of another one, whose parameters and buffers are listed at its own path.

    So `named_parameters`, `get_buffer`, `torch.func.functional_call` and `torch.export` find them
    under the path they had before. The module itself is an ordinary child.
    """

    _is_replica = False  # set on the copies that nn.DataParallel makes

    def fronted(self) -> nn.Module | None:
        """The module whose tensors are listed, or None."""
        return None

    def companions(self) -> list[nn.Module]:
        """Modules that are no children, and still move and are cast along with this one."""
        return []

    def own_parameters(self) -> dict[str, Any]:
        """The parameters of this module itself."""
        found: dict[str, Any] = self.__dict__[_own("_parameters")]
        return found

    def is_replica(self) -> bool:
        """Whether this is one of `nn.DataParallel`'s copies, which hold tensors of their own."""
        return self._is_replica

    def _apply(self, fn: Any, recurse: bool = True) -> "Facade":
        for module in self.companions() if recurse else ():
            module._apply(fn)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """As of any module; without `recurse` its own alone, since the child lists its own.

        Without `remove_duplicate` the child is not among the modules, and all are listed here.
        """
        if recurse or not remove_duplicate:
            yield from super().named_parameters(prefix, recurse, remove_duplicate)
            return
        for name, parameter in self.own_parameters().items():
            if parameter is not None:
                yield f"{prefix}.{name}".lstrip("."), parameter

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """As of any module; without `recurse` none, since the child lists its own."""
        if recurse:
            yield from super().named_buffers(prefix, True, remove_duplicate)

    def _fqn_modifiers(self) -> dict[str, str]:
        """For torch.distributed.checkpoint: the names that are behind a child, whose own is in no
        key of the state dict."""
        behind = self.fronted()
        names = [name for name, child in self.named_children() if child is behind]
        if behind is None or not names:
            return {}
        inner = behind._fqn_modifiers() if isinstance(behind, Facade) else {}
        found = (*behind._parameters, *behind._buffers, *behind._modules, *inner)
        return dict.fromkeys(found, names[0])

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for name, parameter in self.own_parameters().items():
            destination[prefix + name] = parameter if keep_vars else parameter.detach()

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        missing: list[str] = []
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing, unexpected_keys, error_msgs
        )
        own = {prefix + name for name in self.own_parameters()}
        missing_keys.extend(key for key in missing if key in own)  # the rest is the child's to load


def _joined(name: str) -> property:
    """`_parameters` or `_buffers` of a facade: its own, and those of the module behind it.

    They are read from `__dict__`, since torch.compile of torch 2.6 cannot trace `vars`, and by a
    second key: that of torch 2.11 takes the property for what `__dict__` holds under its name.
    """

    def read(self: Facade) -> Any:
        own = self.__dict__[_own(name)]
        behind = None if self.is_replica() else self.fronted()
        return own if behind is None else Joined(own, getattr(behind, name))

    def write(self: Facade, value: dict[str, Any]) -> None:
        self.__dict__[name] = self.__dict__[_own(name)] = value

    return property(read, write)


def _own(name: str) -> str:
    return f"attnzoo_own{name}"


def _non_persistent(self: Facade) -> set[str]:
    own: set[str] = self.__dict__["_non_persistent_buffers_set"]
    behind = self.fronted()
    return own if behind is None else own | behind._non_persistent_buffers_set


# Set here, since type checkers know them as attributes of every module.
for _name, _property in {
    "_parameters": _joined("_parameters"),
    "_buffers": _joined("_buffers"),
    "_non_persistent_buffers_set": property(
        _non_persistent,
        lambda self, value: self.__dict__.update(_non_persistent_buffers_set=value),
    ),
}.items():
    setattr(Facade, _name, _property)


def children_by_name(module: nn.Module) -> dict[str, nn.Module | None]:
    """The children of a module, those that are None too; writing to it runs no hook."""
    return module._modules


def parameters_by_name(module: nn.Module) -> MutableMapping[str, Tensor | None]:
    """The parameters of a module itself, those that are None too."""
    return module._parameters  # type: ignore[return-value]


def buffers_by_name(module: nn.Module) -> MutableMapping[str, Tensor | None]:
    """The buffers of a module itself, those that are None too."""
    return module._buffers


def put_parameter(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace a parameter with a plain tensor."""
    module._parameters[name] = tensor  # type: ignore[assignment]


def metadata(state_dict: Any) -> dict[str, Any]:
    """Versions of the modules in a state dict, by their paths."""
    found: dict[str, Any] = getattr(state_dict, "_metadata", {})
    return found


def normalizes_batches(module: nn.Module) -> bool:
    """Whether a module is a BatchNorm of any dimension."""
    return isinstance(module, BatchNorm)


def is_hooked(module: nn.Module) -> bool:
    """Whether a call of the module runs more than its class's `forward`: hooks, its own or all
    modules', or a `forward` put on this one; True if that cannot be determined.
    """
    for kind in _GLOBAL_HOOKS:
        if getattr(torch.nn.modules.module, kind, True):
            return True
    for kind in _HOOKS:
        if getattr(module, kind, True):
            return True
    return "forward" in module.__dict__


def own_parameters(module: nn.Module) -> Iterable[Tensor]:
    """The parameters of a module without those of its children."""
    own: dict[str, Tensor | None] | None = getattr(module, "_parameters", None)
    if own is None:
        return module.parameters(recurse=False)
    return [parameter for parameter in own.values() if parameter is not None]


def hooks(module: nn.Module) -> list[str]:
    """The path and the kind of every hook of a module's layers; none if that cannot be told."""
    kinds = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_backward_hooks",
        "_backward_pre_hooks",
        "_state_dict_hooks",
        "_load_state_dict_pre_hooks",
    )
    return [
        f"{path}{'.' * bool(path)}{kind.strip('_')}[{i}]"
        for path, part in module.named_modules()
        for kind in kinds
        for i, _ in enumerate(getattr(part, kind, ()))
    ]


def declared_ties(module: nn.Module) -> list[str]:
    """Parameters that a network of transformers declares to be others' too."""
    return [*(getattr(module, "_tied_weights_keys", None) or ())]


@contextlib.contextmanager
def no_duck_shapes() -> Iterator[None]:
    """Within it, torch.compile takes sizes that are equal at first for different ones."""
    try:
        from torch.fx.experimental import _config
    except ImportError:
        yield
        return
    with _config.patch(use_duck_shape=False):  # type: ignore[attr-defined]
        yield
