"""Reads files of weights without running any code that they contain."""

import os
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def read(path: str | os.PathLike[str]) -> Mapping[str, Tensor]:
    """Read the tensors of a file by their keys, on the CPU.

    If a checkpoint nests its weights, such as `{"state_dict": ..., "epoch": 3}`, the one mapping of
    tensors in it is returned.

    Args:
        path: a .safetensors file, or a file written by `torch.save`.

    Raises:
        ValueError: the file does not exist, is damaged, or contains code or several state dicts.
    """
    file = Path(path)
    if not os.path.isfile(file):  # noqa: PTH113  # Path.is_file raises for names too long
        raise ValueError(f"state_dict={str(path)!r} must be a mapping or the path of a file")
    if file.suffix == ".safetensors":
        return _safetensors(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # for pickles that are refused below
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"state_dict={str(path)!r} contains more than tensors, or is damaged; none of its code "
            "was run. Save only the weights: torch.save(module.state_dict(), ...) "
            f"({_first_line(error)})"
        ) from None
    except Exception as error:  # the unpickler may raise anything on a damaged file
        raise _unreadable(file, error) from None
    return unwrapped(content, str(file))


def _safetensors(file: Path) -> Mapping[str, Tensor]:
    from safetensors import SafetensorError  # not needed to build a block
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(file, error) from None


def unwrapped(content: Any, label: str) -> Mapping[str, Tensor]:
    """The content itself, or the one mapping of tensors in it, such as under "state_dict".

    Raises ValueError where there is none, or several; the message shows the label.
    """
    found = {"": content} if _is_weights(content) else {}
    if not found and isinstance(content, Mapping):
        found = {key: value for key, value in content.items() if _is_weights(value)}
        found = found or {
            f"{key}.{inner}": weights
            for key, value in content.items()
            if isinstance(value, Mapping)
            for inner, weights in value.items()
            if _is_weights(weights)
        }
    if len(found) != 1:
        places = f"several: {', '.join(map(repr, found))}" if found else "none"
        raise ValueError(
            f"state_dict={label!r} must contain one mapping of names to tensors, but contains "
            f"{places}; load it and pass the mapping"
        )
    return next(iter(found.values()))


def _is_weights(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def _unreadable(file: Path, error: Exception) -> ValueError:
    return ValueError(f"state_dict={str(file)!r} cannot be read as weights: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0][:200]
