"""Nested lists, tuples and dicts of tensors, as modules take and return them."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor


def tensors(*values: Any) -> Iterator[Tensor]:
    """All tensors of nested lists, tuples and dicts, in their order."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict):
            yield from tensors(*value.values())
        elif isinstance(value, (list, tuple)):
            yield from tensors(*value)


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """The same structure with `function` applied to every tensor; other values are kept."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: map_tensors(function, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [map_tensors(function, item) for item in value]
        if hasattr(value, "_fields"):  # a namedtuple
            return type(value)(*items)
        return type(value)(items)
    return value


def first_sample(value: Any) -> Any:
    """The same structure with the first sample of every tensor, whose first axis is the batch.

    Zero-dimensional tensors are kept.
    """
    return map_tensors(lambda tensor: tensor[:1] if tensor.ndim else tensor, value)
