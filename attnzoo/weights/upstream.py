"""Loads the authors' weights by their own key names; every key and shape is checked."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..registry import Entry, build, find
from ..validation import messages
from . import files, network
from .keys import best_match, mismatch_message, without_wrappers


def from_upstream(
    name: Any = None,
    state_dict: Any = None,
    *args: Any,
    model: nn.Module | None = None,
    prefix: str | None = None,
    **config: Any,
) -> nn.Module:
    """Build a block and load the authors' own weights into it; or load a network with blocks.

        block = attnzoo.from_upstream("se", weights, c=64)
        net = attnzoo.from_upstream(model=net, state_dict=checkpoint)

    Args:
        name: a name of `attnzoo.names()`.
        state_dict: the weights, in one of three forms: tensors by the authors' key names (any
            registered naming, or ours); a checkpoint of a larger network, with the block's keys
            under one prefix; or the path of such a file, written by safetensors or `torch.save`,
            which is read without unpickling any code. Weights nested in a checkpoint, such as
            under "state_dict", are found. Names that torch.compile, FSDP and activation
            checkpointing add to keys are removed.
        *args: the channels `c`, by position.
        model: instead of a name, a network whose blocks, inserted or built in, are loaded together
            with its other layers, in place. Blocks take the authors' names, under the prefix
            nearest to their own path; the other layers have the checkpoint's names, or its order
            where all shapes and the ends of all names agree. Weights of linear layers and of 1x1
            convolutions fit each other.
        prefix: the prefix of the block's keys (`"layer1.0.se"`), needed if several match; "" is
            the root, where keys of other layers are then ignored.
        **config: the block's keywords.

    Returns:
        The block in the default dtype, in training mode, as `build` returns it; or the network.

    Raises:
        ValueError: keys are missing, unexpected or of another shape, or several prefixes match (the
            message lists them, and names the known variant whose keys they are, if any); or the
            file cannot be read.
        TypeError: `state_dict` is not a mapping of str to Tensor.
    """
    if model is not None:
        state_dict = _only_weights(model, name, state_dict, args, config)
        return network.load(model, *_read(state_dict, prefix))
    entry = find(name)
    state_dict, prefix = _read(state_dict, prefix)
    block = build(name, *args, **config)
    own = block.state_dict()
    if not own:
        return block
    if any(tensor.is_meta for tensor in own.values()):
        raise ValueError("a block on the meta device has no values; build it on another device")
    match = best_match(entry, own, state_dict, prefix)
    if not match.fits:
        hint = _fitting_flag(entry, state_dict, args, config, prefix)
        raise ValueError(mismatch_message(entry, match, state_dict) + hint)
    block.load_state_dict(
        {
            ours: state_dict[match.keys[ours]].reshape(tensor.shape)
            if ours in match.keys
            else tensor  # a counter that old checkpoints lack
            for ours, tensor in own.items()
        }
    )
    return block


def _only_weights(
    model: Any, name: Any, state_dict: Any, args: tuple[Any, ...], config: Mapping[str, Any]
) -> Any:
    """The weights among the arguments of a call with `model=`, which takes nothing else."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model={messages.shown(model)} must be an nn.Module; a block is loaded by its name: "
            'attnzoo.from_upstream("se", state_dict, c=64)'
        )
    if args or config or (name is not None and state_dict is not None):
        raise TypeError(
            "from_upstream takes a block's name and config, or model= and its state_dict, not "
            "both: attnzoo.from_upstream(model=net, state_dict=state_dict)"
        )
    return name if state_dict is None else state_dict


def _read(state_dict: Any, prefix: str | None) -> tuple[dict[str, Tensor], str | None]:
    """The weights of a mapping or file, and the prefix, without the names that wrappers add."""
    if isinstance(state_dict, (str, os.PathLike)):
        state_dict = files.read(state_dict)
    elif isinstance(state_dict, Mapping) and any(
        isinstance(value, Mapping) for value in state_dict.values()
    ):
        state_dict = files.unwrapped(state_dict, ", ".join(map(str, state_dict)))
    _check(state_dict, prefix)
    return _plain_keys(state_dict), None if prefix is None else without_wrappers(prefix)


def _fitting_flag(
    entry: Entry,
    state_dict: Mapping[str, Tensor],
    args: tuple[Any, ...],
    config: Mapping[str, Any],
    prefix: str | None,
) -> str:
    """`; they fit with ...` where one flag of the block turned the other way makes them fit."""
    bound = entry.bind(*args, **config)
    for key in (key for key, value in bound.items() if isinstance(value, bool)):
        try:
            block = build(entry.name, **{**bound, key: not bound[key]}, device="meta")
            fits = best_match(entry, block.state_dict(), state_dict, prefix).fits
        except (TypeError, ValueError):
            continue
        if fits:
            return f"; they fit with {key}={not bound[key]}"
    return ""


def upstream_keys(name: str, block: nn.Module, state_dict: Mapping[str, Tensor]) -> dict[str, str]:
    """Map our parameter and buffer names to the authors' keys found in `state_dict`."""
    own = block.state_dict()
    return best_match(find(name), own, state_dict, None).keys if own else {}


def _check(state_dict: Mapping[str, Tensor], prefix: str | None) -> None:
    if not (prefix is None or isinstance(prefix, str)):
        raise TypeError(
            f"prefix={messages.shown(prefix)} must be a str or None, not {type(prefix).__name__}"
        )
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            f"state_dict must map names to tensors, not be a {type(state_dict).__name__}; "
            "for a module, pass module.state_dict()"
        )
    for key, value in state_dict.items():
        if not (isinstance(key, str) and isinstance(value, Tensor)):
            raise TypeError(
                f"state_dict[{messages.shown(key)}] is a {type(value).__name__}, not a Tensor; "
                "if a checkpoint nests its weights, pass the inner mapping"
            )
        if is_lazy(value):
            raise ValueError(
                f"state_dict[{messages.shown(key)}] is uninitialized; run its module once"
            )
        if value.is_meta or value.is_complex():
            kind = "on the meta device, without values" if value.is_meta else "complex"
            raise ValueError(
                f"state_dict[{messages.shown(key)}] is {kind}; weights must be real numbers"
            )
        if value.is_quantized or value.is_nested or value.layout != torch.strided:
            raise ValueError(
                f"state_dict[{messages.shown(key)}] is {value.dtype}, {value.layout}; "
                "weights must be dense"
            )


def _plain_keys(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, by keys without the names that wrappers add."""
    plain = {without_wrappers(key): value for key, value in state_dict.items()}
    if len(plain) < len(state_dict):
        twice = next(key for key in state_dict if without_wrappers(key) != key)
        raise ValueError(f"state_dict has {twice!r} with and without its wrapper; keep one")
    return plain
