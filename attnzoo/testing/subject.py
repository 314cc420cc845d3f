"""The module under test: fresh copies of it, and inputs of any size."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..registry import Entry, Inputs, InputSize, build, find
from .inputs import batch_axis, call, make_inputs, map_tensors, randomize_parameters, tensors
from .outcome import NotApplicableError
from .resize import batch_size, resized, varied_axes

SMALL = InputSize(batch=2, steps=7, height=5, width=6)
ODD = InputSize(batch=3, steps=13, height=9, width=11)
SINGLE = InputSize(batch=1, steps=24, height=14, width=14)
FEW = InputSize(batch=1, steps=7, height=3, width=4)  # for checks that go number by number


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A module under test, and all that a check needs to know of it.

    Args:
        name: what reports call it.
        build: returns a module in the state that it is built in; a new one, or the same one put
            back into that state.
        inputs_of: `inputs_of(size, dtype, seed)`, the arguments of a forward call by name; a size
            of None is the usual one.
        entry: the catalogue's record, if the module is a registered block.
        config: the arguments of the constructor, if known.
        given: returns the module that a copy is to be compared with.
        spec: the words from which another process can build the subject, if any can.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs_of: Callable[[InputSize | None, torch.dtype, int], Inputs]
    entry: Entry | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    given: Callable[[], nn.Module] | None = None
    spec: Mapping[str, Any] | None = None

    @property
    def registered(self) -> bool:
        """Whether it is a block of the catalogue, which promises more than any module does."""
        return self.entry is not None

    def module(self, dtype: torch.dtype = torch.float32, train: bool = False) -> nn.Module:
        """A module with random parameters, none of them left at zero."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # all modules of one subject are alike
            module = self.build().to(dtype).train(train)
        randomize_parameters(module)
        return module

    def inputs(
        self, size: InputSize | None = None, dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> Inputs:
        """Arguments of a forward call, by name."""
        return self.inputs_of(size, dtype, seed)

    def made(
        self,
        size: InputSize | None = None,
        dtype: torch.dtype = torch.float32,
        train: bool = False,
    ) -> tuple[nn.Module, Inputs]:
        """A module with random parameters, and inputs for it."""
        return self.module(dtype, train), self.inputs(size, dtype)

    def in_float64(
        self, size: InputSize | None = None, train: bool = False
    ) -> tuple[nn.Module, Inputs]:
        """The same in float64. Raises NotApplicableError if the module does not run in it."""
        module, inputs = self.made(size, torch.float64, train)
        if self.registered:
            return module, inputs
        try:
            with torch.no_grad():
                call(module, inputs)
        except Exception:
            raise NotApplicableError("the module does not run in float64; see dtype") from None
        return module, inputs

    def samples(self, inputs: Inputs, which: slice) -> Inputs:
        """The given samples of every input that has as many as the first."""
        module = self.build()
        count = batch_size(inputs)

        def taken(key: str, value: Any) -> Any:
            axis = batch_axis(module, key)
            if axis is None:
                return value
            place = (slice(None),) * axis + (which,)
            return map_tensors(
                lambda t: t[place] if t.ndim > axis and t.shape[axis] == count else t, value
            )

        return {key: taken(key, value) for key, value in inputs.items()}


def registered(name: str, usual: InputSize = ODD, **config: Any) -> Subject:
    """A block of the catalogue, built from its example config with `config` put over it."""
    entry = find(name)
    settings = {**entry.example, **config}

    def inputs_of(size: InputSize | None, dtype: torch.dtype, seed: int) -> Inputs:
        return make_inputs(entry, settings, size or usual, dtype=dtype, seed=seed)

    return Subject(
        name=name,
        build=lambda: build(name, **settings),
        inputs_of=inputs_of,
        entry=entry,
        config=settings,
        spec={"target": name, "config": dict(config)},
    )


def subject_of(
    make: nn.Module | Callable[[], nn.Module], inputs: Inputs, name: str = "", **known: Any
) -> Subject:
    """Any module, or a function that builds it, with one set of example inputs.

    Inputs of other sizes are made from the example: its batch, and the axes of time or space,
    which are those that the module lets vary, are filled with values drawn from the example's.
    """
    builder: Callable[[], nn.Module] = Copies(make) if isinstance(make, nn.Module) else make
    usual = _three_samples(builder, inputs)
    axes: list[dict[int, str]] = []

    def inputs_of(size: InputSize | None, dtype: torch.dtype, seed: int) -> Inputs:
        if size is not None and not axes:
            axes.append(varied_axes(builder().eval(), usual))
        chosen = usual if size is None else resized(usual, axes[0], size, seed=seed)
        return _cast(chosen, dtype)

    return Subject(
        name=name or type(builder()).__name__,
        build=builder,
        inputs_of=inputs_of,
        given=(lambda: make) if isinstance(make, nn.Module) else None,
        **known,
    )


class Copies:
    """Builds copies of a module; where it cannot be copied, puts the module itself back."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.modes = [(part, part.training) for part in module.modules()]
        self.tensors = [
            (part, key, tensor, tensor.data.clone(), tensor.grad if tensor.is_leaf else None)
            for part in module.modules()
            for key, tensor in (
                *part.named_parameters(recurse=False),
                *part.named_buffers(recurse=False),
            )
        ]

    def __call__(self) -> nn.Module:
        try:
            return copy.deepcopy(self.module)
        except Exception:  # a check of its own tells
            self.restore()
            return self.module

    def restore(self) -> None:
        """Give the module its own tensors, their values, gradients and modes again."""
        for part, key, tensor, value, grad in self.tensors:
            tensor.data = value.clone()
            if tensor.is_leaf:
                tensor.grad = grad
            setattr(part, key, tensor)
        for part, mode in self.modes:
            part.training = mode


def _three_samples(builder: Callable[[], nn.Module], inputs: Inputs) -> Inputs:
    """The inputs with a batch of three at least, if the module takes one."""
    if batch_size(inputs) >= 3:
        return inputs
    more = resized(inputs, {}, InputSize(batch=3))
    try:
        with torch.no_grad():
            call(builder().eval(), more)
    except Exception:
        return inputs
    return more


def _cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    def cast(tensor: Tensor) -> Tensor:
        return tensor.detach().to(dtype if tensor.is_floating_point() else tensor.dtype, copy=True)

    cast_inputs: Inputs = map_tensors(cast, inputs)
    return cast_inputs


def count_of(inputs: Inputs) -> int:
    """Numbers in all inputs."""
    return sum(t.numel() for t in tensors(inputs))
