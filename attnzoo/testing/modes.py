"""Contexts that watch the operators of a call: dtypes, devices."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .._torch import TorchDispatchMode, schema_name
from .causes import current_line
from .inputs import tensors


class DevicesMeet(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the lines whose operators mix tensors of `device` with others, single numbers apart."""

    def __init__(self, device: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device, self.places = device, list[str]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kinds = {t.device.type for t in tensors(args, kwargs or {}) if t.ndim}
        moves = "copy" in str(func)  # .to(device), which the module does on purpose
        if self.device in kinds and len(kinds) > 1 and not moves:
            self.places.append(current_line())
        return func(*args, **(kwargs or {}))


class _WideResults(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, kind: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kind, self.places = kind, list[str]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {t.dtype for t in tensors(args, kwargs or {})}
        wide = any(_is_other(t, self.kind) for t in tensors(out))
        if wide and self.kind in given:
            self.places.append(current_line())
        return out


def _is_other(tensor: Tensor, kind: torch.dtype) -> bool:
    return tensor.is_floating_point() and tensor.dtype != kind


@contextlib.contextmanager
def first_wide_result(kind: torch.dtype) -> Iterator[list[str]]:
    """Lines at which `kind` meets another floating dtype and gives way to it."""
    with _WideResults(kind) as watched:
        yield watched.places


class _Writes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, inputs: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.given = {_storage(t) for t in tensors(inputs) if t.numel()}
        self.places = list[str]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        written = next(tensors(args), None)
        name = schema_name(func)
        in_place = name.endswith("_") and not name.endswith("detach_")
        if in_place and written is not None and _storage(written) in self.given:
            self.places.append(current_line())
        return func(*args, **(kwargs or {}))


def _storage(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # a tensor without storage
        return -1


@contextlib.contextmanager
def first_write_to(inputs: Any) -> Iterator[list[str]]:
    """Lines that write into the inputs' memory."""
    with _Writes(inputs) as watched:
        yield watched.places
