"""The reference vectors shipped with the package, and the comparison of blocks with them.

Each file was computed by running the authors' own code in float64. It contains inputs, weights
under the authors' names, outputs, all gradients and, for a call in training mode, the updated
BatchNorm buffers.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..registry import find, names
from ..weights.upstream import from_upstream, upstream_keys
from .closeness import relative_errors

FOLDER = Path(__file__).parent / "golden"
TOLERANCE = 1e-9  # largest relative error; float64 rounding is near 1e-15
# Order of the positional inputs of a call; all others are passed by keyword.
_POSITIONAL = ("query", "key", "value", "source", "x", "[]", "y", "attn", "guidance", "filters")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The result of comparing a block with one reference case."""

    block: str
    case: str
    error: float  # the largest relative error of a tensor, as `closeness` defines it
    worst: str  # the tensor with the largest error
    tensors: int  # how many were compared
    source: str
    notes: str

    @property
    def passed(self) -> bool:
        """Whether every tensor agrees within `TOLERANCE`."""
        return self.error <= TOLERANCE


@dataclass(frozen=True)
class Case:
    """One reference file: inputs and weights, and the outputs and gradients they give."""

    block: str
    name: str
    mode: str
    config: dict[str, Any]
    call: dict[str, Any]
    source: str
    notes: str
    tensors: dict[str, Tensor]

    @classmethod
    def load(cls, path: Path) -> "Case":
        """Read a reference file."""
        from safetensors import safe_open  # not needed to build a block

        with safe_open(path, framework="pt") as file:
            meta = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return cls(
            block=meta["block"],
            name=meta["case"],
            mode=meta["mode"],
            config=json.loads(meta["config"]),
            call=json.loads(meta["call"]),
            source=meta["source"],
            notes=meta["notes"],
            tensors=tensors,
        )

    def part(self, kind: str) -> dict[str, Tensor]:
        """The tensors of one kind, such as `weight`, by the name after the dot."""
        return {
            key.removeprefix(f"{kind}."): tensor
            for key, tensor in self.tensors.items()
            if key.startswith(f"{kind}.")
        }

    def build(self) -> nn.Module:
        """The block with the authors' weights, in float64 and the case's mode."""
        block = from_upstream(self.block, self.part("weight"), **self.config).double()
        return block.train(self.mode == "train")

    def run(self, block: nn.Module) -> dict[str, Tensor]:
        """Outputs, gradients and buffers of `block` on this case, by their keys in the file."""
        weights = self.part("weight")
        keys = upstream_keys(self.block, block, weights)
        inputs = {
            key: value.clone().requires_grad_(value.is_floating_point())
            for key, value in self.part("input").items()
        }
        positional, keywords = arrange(inputs)
        block.zero_grad()
        result = block(*positional, **keywords, **self.call)
        outputs = result if isinstance(result, tuple) else (result,)
        grads = {int(i): grad for i, grad in self.part("grad_output").items()}
        torch.autograd.backward([outputs[i] for i in grads], list(grads.values()))
        found = {f"output.{i}": output.detach() for i, output in enumerate(outputs)}
        for key, value in inputs.items():
            if value.grad is not None:
                found[f"grad_input.{key}"] = value.grad
        for ours, parameter in block.named_parameters():
            if parameter.grad is not None and ours in keys:
                theirs = keys[ours]
                found[f"grad_weight.{theirs}"] = parameter.grad.reshape(weights[theirs].shape)
        for ours, buffer in block.named_buffers():
            if ours in keys:
                found[f"after.{keys[ours]}"] = buffer.reshape(weights[keys[ours]].shape)
        return found

    def verdict(self) -> Verdict:
        """Rerun the case and compare every element of every stored result."""
        found = self.run(self.build())
        errors = self._errors(found)
        worst = max(errors, key=lambda key: errors[key])
        return Verdict(
            block=self.block,
            case=self.name,
            error=errors[worst],
            worst=worst,
            tensors=len(errors),
            source=self.source,
            notes=self.notes,
        )

    def _errors(self, found: Mapping[str, Tensor]) -> dict[str, float]:
        """The relative error of each stored result; infinite if ours is missing or misshaped."""
        errors: dict[str, float] = {}
        for kind in ("output", "grad_input", "grad_weight", "after"):
            wanted = {f"{kind}.{key}": tensor for key, tensor in self.part(kind).items()}
            errors |= relative_errors({key: found.get(key) for key in wanted}, wanted)
        return errors


def arrange(inputs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """A case's inputs as positional and keyword arguments; `f0, f1, ...` form one list."""
    series = sorted(
        (k for k in inputs if k[:1] in "fx" and k[1:].isdigit()), key=lambda k: int(k[1:])
    )
    whole: dict[str, Any] = {k: v for k, v in inputs.items() if k not in series}
    if series:
        whole["[]"] = [inputs[k] for k in series]
    positional = [whole.pop(key) for key in _POSITIONAL if key in whole]
    return positional, whole


def cases(name: str | None = None) -> list[Path]:
    """The reference files of one block, or of all."""
    return sorted(FOLDER.glob(f"{name or '*'}__*.safetensors"))


def verify(name: str | None = None) -> list[Verdict]:
    """Compare one block, or all, with their reference vectors; needs no network access.

    Returns one verdict for each case, in the order of the files; none for a block without vectors.
    Raises `UnknownBlockError` for an unknown name.
    """
    wanted = names() if name is None else [find(name).name]
    return [Case.load(path).verdict() for block in wanted for path in cases(block)]
