"""Blocks into existing networks, and out again.

A matched module gives way to an `Inserted`, which calls it and the block. Nothing else of the
network changes: no class, no key of its state dict.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import nn

from ..registry import Entry, build, find
from ..validation import check
from . import probe
from .host import How, Inserted, InsertedSequence, innermost, past_fused_paths
from .placement import STANDARD, InsertOptions, Placement, Plan, ancestors, plan
from .probe import Where

_NESTED = "_attnzoo_use_nested_tensor"  # what an encoder of torch had before an insertion


@dataclass(frozen=True, kw_only=True)
class Insertion:
    """What `insert` did, or with `dry_run` would do; as text it is a table."""

    block: str
    placements: tuple[Placement, ...]
    network_parameters: int  # before
    network_macs: int  # of one sample's forward pass, before
    dry_run: bool

    @property
    def parameters(self) -> int:
        """Parameters added in all."""
        return sum(p.parameters for p in self.placements)

    @property
    def macs(self) -> int:
        """Multiply-adds added to one sample's forward pass in all."""
        return sum(p.macs for p in self.placements)

    def __str__(self) -> str:
        rows = [("", "where", "shape", "parameters", "MACs", "config")]
        for p in self.placements:
            config = ", ".join(f"{key}={value!r}" for key, value in p.config.items())
            rows.append((p.how, p.path, _by(p.shape), f"{p.parameters:+,}", f"{p.macs:+,}", config))
        rows.append(("", "in all", "", f"{self.parameters:+,}", f"{self.macs:+,}", ""))
        before = (f"{self.network_parameters:,}", f"{self.network_macs:,}")
        rows.append(("", "the network had", "", *before, ""))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        places = f"{len(self.placements)} place{'s' * (len(self.placements) != 1)}"
        verb = "would go" if self.dry_run else "went"
        return "\n".join(
            [f"{self.block} {verb} to {places}; MACs are of one sample", *_lines(rows, widths)]
        )


def insert(
    model: nn.Module,
    where: Where,
    name: str,
    example_input: Any,
    options: InsertOptions,
    dry_run: bool,
) -> Insertion:
    """What `attnzoo.insert` does."""
    entry = _checked(model, name, options)
    check.flag(dry_run=dry_run)
    found = probe.matches(model, where)
    run = probe.run(model, found, example_input)
    plans = {path: plan(entry, model, path, run, options) for path in found}
    report = Insertion(
        block=entry.name,
        placements=tuple(one.placement for one in plans.values()),
        network_parameters=sum(p.numel() for p in model.parameters()),
        network_macs=run.macs // run.batch,
        dry_run=dry_run,
    )
    if not dry_run:
        made = {path: _made(entry.name, found[path], one) for path, one in plans.items()}
        for path, module in made.items():
            _put(model, path, module)
            _keep_dense(model, path)
    return report


def remove(model: nn.Module) -> nn.Module:
    """What `attnzoo.remove` does."""
    _check_model(model)
    for path, module in [*probe.walk(model)]:
        if isinstance(module, Inserted) and path:
            _put(model, path, innermost(module))
    for encoder in (m for m in model.modules() if _NESTED in m.__dict__):
        encoder.use_nested_tensor = encoder.__dict__.pop(_NESTED)
    return model


def _keep_dense(model: nn.Module, path: str) -> None:
    """In eval mode torch's encoder packs padded batches as nested tensors, which no block takes."""
    for module in ancestors(model, path):
        if isinstance(module, nn.TransformerEncoder):
            module.__dict__.setdefault(_NESTED, module.use_nested_tensor)
            module.use_nested_tensor = False


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, not {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("model is scripted, and its modules stay; insert before scripting")


def _checked(model: nn.Module, name: str, options: InsertOptions) -> Entry:
    entry = find(name)
    _check_model(model)
    check.choice("how", options.how, get_args(How))
    check.flag(residual=options.residual, zero_init=options.zero_init)
    if options.zero_init and options.how == "instead":
        raise ValueError(
            "zero_init=True keeps what the network computed, which how='instead' takes out; "
            "take how='after' or 'before'"
        )
    inputs = [
        key
        for key, parameter in inspect.signature(entry.cls.forward).parameters.items()
        if parameter.default is parameter.empty and key != "self"
    ]
    if len(inputs) > 1 or not set(entry.layouts) & set(STANDARD):
        raise ValueError(
            f"{name!r} is called with {', '.join(inputs)} (layout {', '.join(entry.layouts)}); "
            "a block that is inserted takes one tensor"
        )
    for key in options.cfg.keys() & {"c", "device", "dtype"}:
        raise TypeError(
            f"{key}={options.cfg[key]!r} is not for insert: every place has channels, device and "
            "dtype of its own"
        )
    return entry


def _made(name: str, matched: nn.Module, plan: Plan) -> Inserted:
    block = build(name, **plan.placement.config, device=plan.device, dtype=plan.dtype)
    gain = torch.zeros(1, device=plan.device, dtype=plan.dtype) if plan.gain else None
    sized = hasattr(matched, "__len__")
    made = (InsertedSequence if sized else Inserted)(matched, block, plan.site, gain)
    block.train(plan.training)
    made.training = plan.training
    if plan.fused:
        made.register_forward_hook(past_fused_paths)
    return made


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    innermost(model.get_submodule(parent))._modules[name] = module


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _lines(rows: Sequence[tuple[str, ...]], widths: list[int]) -> list[str]:
    """Rows as lines, the two columns of numbers set to the right."""
    return [
        "  ".join(
            cell.rjust(width) if i in (3, 4) else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
