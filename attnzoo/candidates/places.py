"""Proposes places for blocks: what `where="auto"` means. Each rule says what it looks for."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from .. import _torch
from ..insertion.matching import named_modules
from ..insertion.probe import arguments, state_restored
from ..validation.tensors import tensors

RULES = {
    "residual": "after the last norm of each residual branch",
    "attention": "after each attention of a transformer",
    "temporal": "after each layer of a stack over time",
    "branch": "after each residual branch that does not end in a norm",
    "stage": "after each stage, the last module of a resolution",
}


def proposed(model: nn.Module, example: Any) -> dict[str, tuple[str, ...]]:
    """The places that each rule finds in one run of the network; rules without any are left out.

    Raises:
        ValueError: no rule finds a place.
    """
    seen = _Run(model)
    args, kwargs = arguments(example)
    handles = [m.register_forward_hook(seen.after) for m in seen.modules.values()]
    try:
        with state_restored(model), torch.no_grad(), seen:
            seen.result = next(tensors(model(*args, **kwargs)), None)
    except Exception as error:
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors(args, kwargs))
        raise ValueError(
            f"the model does not take example_input of shape {shapes}: "
            f"{type(error).__name__}: {error}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    found = {
        "residual": seen.residual(),
        "attention": seen.attention(),
        "temporal": seen.temporal() if max(t.ndim for t in tensors(args, kwargs)) < 4 else [],
        "branch": seen.residual(norms=False),
        "stage": seen.stages(),
    }
    places = {rule: tuple(dict.fromkeys(paths)) for rule, paths in found.items() if paths}
    if not places:
        raise ValueError(
            'where="auto" finds no place: no residual branches, attention, stack of layers over '
            'time, or stages; give a path, such as where="layer[1-4].*.bn2"'
        )
    return places


class _Run(_torch.TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records which module made each tensor, how deep it lies, and where tensors are added."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.modules = dict(named_modules(model))
        self.paths = {id(module): path for path, module in self.modules.items()}
        self.outputs: dict[str, Any] = {}  # of modules that were called once, in the order of calls
        self.calls: dict[str, int] = {}
        self.maker: Any = WeakIdKeyDictionary()  # the innermost module's path
        self.depth: Any = WeakIdKeyDictionary()  # operators between it and inputs
        self.result: Tensor | None = None  # of the network
        self.branches: list[str] = []  # makers of the deeper operand of sums

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        taken = list(tensors(args))
        if operator.overloadpacket in (torch.ops.aten.add, torch.ops.aten.add_):
            self._sum(taken)
        out = operator(*args, **(kwargs or {}))
        depth = 1 + max((self.depth.get(t, 0) for t in taken), default=0)
        for tensor in tensors(out):
            self.depth[tensor] = depth
        return out

    def _sum(self, taken: list[Tensor]) -> None:
        if len(taken) == 2 and taken[0].shape == taken[1].shape and taken[0].ndim > 2:
            deeper = max(taken, key=lambda tensor: self.depth.get(tensor, 0))
            if deeper in self.maker:
                self.branches.append(self.maker[deeper])

    def after(self, module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(module, nn.Identity):
            return
        path = self.paths[id(module)]
        self.calls[path] = self.calls.get(path, 0) + 1
        first = next(tensors(output), None)
        if isinstance(output, Tensor):
            self.maker.setdefault(output, path)
            self.outputs[path] = output.shape
        elif first is not None and first in self.maker:  # stands for the tuple
            self.outputs[self.maker[first]] = first.shape

    def residual(self, norms: bool = True) -> list[str]:
        """Modules, norms or others, whose result is added to a shortcut."""
        return [p for p in self.branches if ("norm" in self._kind(p)) is norms and self._once(p)]

    def attention(self) -> list[str]:
        """The outermost modules that are called attention, or what makes the first of a tuple."""
        found: list[str] = []
        for path in self.modules:
            inside = any(path.startswith(f"{other}.") for other in found)
            if path and "attention" in self._kind(path).replace("attn", "attention") and not inside:
                found.append(path)
        return [p for path in found for p in [self._result_of(path)] if p and self._once(p)]

    def temporal(self) -> list[str]:
        """Layers of one class in one stack, whose outputs have three axes."""
        for path, parent in self.modules.items():
            children = [f"{path}.{name}".lstrip(".") for name, _ in parent.named_children()]
            if len(children) < 2 or not isinstance(parent, (nn.ModuleList, nn.Sequential)):
                continue
            layers = [c for c in children if self._axes(c) == 3 and any(self.modules[c].children())]
            if len(layers) == len(children) and len({self._kind(c) for c in layers}) == 1:
                return [layer for layer in layers if self._once(layer)]
        return []

    def stages(self) -> list[str]:
        """The last module before each change of the maps' size, on the level of the changes."""
        end = self.maker.get(self.result, "") if self.result is not None else ""
        parts = [p for p in self._parts("") if p != end and not end.startswith(f"{p}.")]
        sizes = [self._size(part) for part in parts]
        last = [p for i, p in enumerate(parts) if [sizes[i]] != sizes[i + 1 : i + 2]]
        return [path for path in last if self._once(path)] if len(last) > 1 else []

    def _parts(self, path: str) -> list[str]:
        """Modules of two layers or more; one whose sizes change inside is replaced by its own."""
        found: list[str] = []
        for name, module in self.modules[path].named_children():
            part = f"{path}.{name}".lstrip(".")
            if sum(p.ndim > 1 for p in module.parameters()) < 2:
                continue
            inner = self._parts(part)
            if self._axes(part) != 4 or len({self._size(p) for p in inner}) > 1:
                found += inner
            else:
                found.append(part)
        return found

    def _size(self, path: str) -> tuple[int, ...]:
        return tuple(self.outputs[path][-2:])

    def _result_of(self, path: str) -> str | None:
        if path in self.outputs:
            return path
        inside = [p for p in self.outputs if p.startswith(f"{path}.")]
        return inside[-1] if inside else None

    def _kind(self, path: str) -> str:
        return type(self.modules[path]).__name__.lower()

    def _axes(self, path: str) -> int:
        return len(self.outputs.get(path, ()))

    def _once(self, path: str) -> bool:
        return self.calls.get(path) == 1


Places = Mapping[str, tuple[str, ...]]
