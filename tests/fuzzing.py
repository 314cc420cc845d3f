"""Hypothesis strategies for valid and invalid constructor and forward calls of blocks."""

import inspect
import math
import types
from dataclasses import dataclass, field
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

import attnzoo
from attnzoo.reference.cases import Case, cases
from attnzoo.registry import Entry, find

HOSTILE: tuple[Any, ...] = (
    *(0, -1, 1.5, 2**31 - 1, 2**31, 10**9, 10**30, -(10**30), 10**400),
    *(math.nan, math.inf, -math.inf, 1e300, 1e-300, -0.5, 1j),
    *(True, False, None, "", "x", "64", b"64", ..., int, object()),
    *([], (), [[1]], [0], [10**9], (math.nan,), ((),), {}, {"c": 1}, {1, 2}),
    *(np.int64(4), np.float32(0.5), np.ones(2), torch.tensor(3), torch.ones(2, 2)),
)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
WRONG_DTYPES = (torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float16)


@dataclass(frozen=True)
class Call:
    """One way to build a block and call it."""

    name: str
    config: dict[str, Any]
    direct: bool  # the class itself, not `attnzoo.build`
    input_size: attnzoo.InputSize
    dtype: torch.dtype = torch.float32
    train: bool = False
    autocast: bool = False
    corrupt: tuple[int, str] | None = None  # which input, and what is done to it
    extras: dict[str, Any] = field(default_factory=dict)  # further arguments of the call


def calls(name: str) -> st.SearchStrategy[Call]:
    """Calls of one block: a valid config with up to three values replaced, and any input."""
    entry = find(name)
    extents = st.builds(attnzoo.InputSize, _sizes(3), _sizes(13), _sizes(7), _sizes(7))
    return st.builds(
        Call,
        name=st.just(name),
        config=_configs(entry),
        direct=st.booleans(),
        input_size=extents,
        dtype=_mostly(st.just(torch.float32), st.sampled_from(DTYPES)),
        train=st.booleans(),
        autocast=_mostly(st.just(False), st.just(True)),
        corrupt=_mostly(
            st.none(), st.tuples(st.integers(0, 5), st.sampled_from(sorted(CORRUPTIONS)))
        ),
        extras=_extras(entry),
    )


def _mostly(often: st.SearchStrategy[Any], seldom: st.SearchStrategy[Any]) -> Any:
    """One draw in twelve is from `seldom`, which `one_of` would draw half of the time."""
    return st.sampled_from(range(12)).flatmap(lambda i: seldom if i == 7 else often)


def _sizes(most: int) -> st.SearchStrategy[int]:
    return _mostly(st.integers(1, most), st.just(0))


def _configs(entry: Entry) -> st.SearchStrategy[dict[str, Any]]:
    hints = get_type_hints(entry.cls.__init__)
    keys = list(entry.signature.parameters)
    bases = [dict(entry.example), *(Case.load(path).config for path in cases(entry.name))]
    bases = [base for base in bases if set(base) <= set(keys)]

    def replaced(chosen: set[str]) -> st.SearchStrategy[dict[str, Any]]:
        return st.fixed_dictionaries({key: values(hints[key]) for key in sorted(chosen)})

    changes = st.sets(st.sampled_from(keys), max_size=3).flatmap(replaced)
    return st.builds(lambda base, change: {**base, **change}, st.sampled_from(bases), changes)


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Values that fit an annotation and, seldom, any others."""
    return _mostly(_legal(hint), st.sampled_from(HOSTILE))


def _legal(hint: Any) -> st.SearchStrategy[Any]:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return st.one_of(*map(_legal, arguments))
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple and arguments[1:] == (...,):
        return st.lists(values(arguments[0]), max_size=4)
    if origin is tuple:
        return st.tuples(*map(values, arguments))
    kinds: dict[Any, st.SearchStrategy[Any]] = {
        int: st.one_of(st.integers(1, 9), st.sampled_from((12, 16, 24, 32))),
        float: st.sampled_from((0.0, 0.1, 0.5, 1, 2.0, 1e-6, 30.0)),
        bool: st.booleans(),
        type(None): st.none(),
    }
    return kinds[hint]


def _extras(entry: Entry) -> st.SearchStrategy[dict[str, Any]]:
    """Arguments of `forward` after the first, by their annotations."""
    parameters = list(inspect.signature(entry.cls.forward).parameters.values())[2:]
    hints = get_type_hints(entry.cls.forward)
    flags = _mostly(st.booleans(), st.sampled_from(("yes", 1, None)))
    shapes = st.lists(st.integers(0, 9), max_size=4).map(tuple)
    kinds = st.sampled_from((torch.bool, torch.float32, torch.int64, torch.complex64))
    tensors = st.one_of(
        st.builds(_filled, shapes, kinds),
        st.sampled_from(("steps", "batch and steps")),
        st.sampled_from((None, 3, [1.0], np.ones(3))),
    )
    optional = {p.name: flags if hints[p.name] is bool else tensors for p in parameters}
    return _mostly(st.just({}), st.fixed_dictionaries({}, optional=optional))


def _filled(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.ones(shape).to(dtype)


CORRUPTIONS: dict[str, Any] = {
    "an axis more": lambda x: x.unsqueeze(0),
    "an axis less": lambda x: x[..., 0] if x.ndim and x.shape[-1] else x,
    "no axis": lambda x: x.flatten()[:1].sum(),
    "wider": lambda x: torch.cat((x, x), -1),
    "more channels": lambda x: torch.cat((x, x), 1) if x.ndim > 1 else x,
    "more samples": lambda x: torch.cat((x, x), 0) if x.ndim else x,
    "on meta": lambda x: x.to("meta"),
    "array": lambda x: x.numpy() if x.dtype != torch.bfloat16 else x.tolist(),
    "list": lambda x: x.tolist(),
    "none": lambda x: None,
    "text": lambda x: "x",
    "parameter": lambda x: torch.nn.Parameter(x.clone()) if x.is_floating_point() else x,
    "sparse": lambda x: x.to_sparse(),
    "transposed": lambda x: x.mT.contiguous().mT if x.ndim > 1 else x,
    "expanded": lambda x: x[:1].expand(x.shape) if x.ndim and len(x) else x,
    "zeros": torch.zeros_like,
    "constant": torch.ones_like,
    "large": lambda x: x * 100,
    **{str(dtype): lambda x, dtype=dtype: x.to(dtype) for dtype in WRONG_DTYPES},
}
