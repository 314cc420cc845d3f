"""Contexts that watch the operators of a call: dtypes, devices."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .._torch import TorchDispatchMode, schema_name
from .causes import called_by_torch, current_line
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


class ReadsOfValues(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the lines of the module's own code that read a value of a tensor into Python."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.places = list[str]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if "_local_scalar_dense" in schema_name(func) and not called_by_torch():
            self.places.append(current_line())
        return func(*args, **(kwargs or {}))


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


class FormatLost(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operators of torch that turn a channels_last image into one that is not.

    Copies and views are left out, since those a module makes by itself.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators = list[str]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        given, made = next(tensors(args), None), next(tensors(out), None)
        name = schema_name(func).removeprefix("aten::")
        copies = name.startswith(
            ("clone", "copy", "_to_copy", "contiguous", "_unsafe_view", "view")
        )
        if given is None or made is None or copies or made.shape != given.shape:
            return out
        if _only_channels_last(given) and not made.is_contiguous(memory_format=_FORMAT):
            self.operators.append(name.strip("_"))
        return out


_FORMAT = torch.channels_last


def _only_channels_last(tensor: Tensor) -> bool:
    image = tensor.ndim == 4 and not tensor.is_contiguous()
    return image and tensor.is_contiguous(memory_format=_FORMAT)
