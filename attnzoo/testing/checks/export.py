"""Checks of modules that leave Python: exported, saved, recorded by make_fx, and as ONNX."""

import copy
import functools
import inspect
import io
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx

from ...registry import Inputs, InputSize
from ..closeness import assert_close
from ..inputs import arguments, call, tensors
from ..outcome import FaultError, check, not_applicable, require
from ..step import call_like, step
from ..subject import ODD, Subject
from .calls import BOTH

OPSET = 20
# smaller and larger than traced, odd and even, batch 1
SIZES = (
    ODD,
    InputSize(2, 24, 14, 14),
    InputSize(4, 14, 10, 8),
    InputSize(1, 12, 7, 5),
    InputSize(1, 23, 33, 40),
)
TINY = (InputSize(2, 7, 2, 2), InputSize(2, 1, 1, 1), InputSize(3, 2, 1, 9), InputSize(1, 3, 9, 1))
REMEDY = "no .item(), no branch on values or sizes, no NumPy in forward"


@check("make_fx", capability="make_fx", remedy=REMEDY)
def recorded_by_make_fx(subject: Subject, modes: Sequence[bool] = BOTH) -> str | None:
    """make_fx records calls whose graph trains as eager does"""
    for train in modes:
        module, inputs = subject.in_float64(train=train)
        state = copy.deepcopy(module.state_dict())
        parameters = dict(module.named_parameters())

        def run(parameters: dict[str, Tensor], *args: Any, module: nn.Module = module) -> Any:
            return torch.func.functional_call(module, parameters, args[0], args[1])

        torch.manual_seed(3)
        graph = make_fx(run)(parameters, *arguments(module, inputs))
        module.load_state_dict(state)
        torch.manual_seed(3)
        wanted = step(module, inputs)
        module.load_state_dict(state)
        torch.manual_seed(3)

        def replay(points: Inputs, module: nn.Module = module, graph: Any = graph) -> Any:
            return graph(dict(module.named_parameters()), *arguments(module, points))

        assert_close(step(module, inputs, replay), wanted)
    return None


@check("export", capability="export", remedy=REMEDY, slow=True)
def export(subject: Subject, modes: Sequence[bool] = BOTH) -> str | None:
    """torch.export with every size dynamic: outputs and gradients at other sizes"""
    for train in modes:
        module, program = exported(subject, train)
        kind = torch.float64 if train else torch.float32
        if not subject.registered:
            assert_trains_alike(module, program, subject.inputs(dtype=kind, seed=3))
            continue
        for size in SIZES:
            if train:  # BatchNorm refuses to train on one value
                size = size._replace(batch=max(2, size.batch))
            assert_trains_alike(module, program, subject.inputs(size, kind, seed=3))
    return None


@check("export_saved", capability="export", remedy=REMEDY, slow=True)
def export_saved(subject: Subject) -> str | None:
    """a program that is saved and loaded is the same program"""
    module, program = exported(subject, False)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    size = SIZES[1] if subject.registered else None
    assert_trains_alike(module, torch.export.load(file), subject.inputs(size, seed=3))
    return None


@check("export_decomposed", capability="export", remedy=REMEDY, slow=True)
def export_decomposed(subject: Subject) -> str | None:
    """a program that is decomposed into core operators has the gradients"""
    module, program = exported(subject, False)
    core = program.run_decompositions()
    for size in SIZES[1:4] if subject.registered else (None,):
        assert_trains_alike(module, core, subject.inputs(size, seed=3))
    return None


@check("export_tiny", remedy=REMEDY, slow=True)
def export_tiny(subject: Subject) -> str | None:
    """a program gives eager's outputs at tiny sizes, or refuses them"""
    if not subject.registered:
        return not_applicable("held of registered blocks alone")
    module, program = exported(subject, False)
    for size in TINY:
        inputs = subject.inputs(size, seed=3)
        try:
            wanted = list(tensors(call(module, inputs)))
            found = list(tensors(call_like(module, program.module(), inputs)))
        except (ValueError, AssertionError) as error:
            require(
                isinstance(error, ValueError) or "Guard failed" in str(error),
                f"the program fails at {size}: {error}",
            )
        else:
            assert_close(found, wanted)
    return None


@check("onnx", capability="onnx", remedy=REMEDY, slow=True)
def onnx(subject: Subject) -> str | None:
    """torch.onnx.export(dynamo=True) of one size, re-run in onnxruntime"""
    if _absent():
        return not_applicable(_absent())
    module, inputs = subject.made()
    positional, keywords = arguments(module, inputs)
    program = torch.export.export(module, positional, keywords)
    wanted = list(tensors(call(module, inputs)))
    assert_close(in_onnxruntime(module, session_of(program), inputs), wanted)
    return None


@check("onnx_dynamic", capability="onnx_dynamic", remedy=REMEDY, slow=True)
def onnx_dynamic(subject: Subject) -> str | None:
    """the same with every size dynamic, re-run at other sizes, batch 1 included"""
    if _absent():
        return not_applicable(_absent())
    module, program = exported(subject, False)
    session = session_of(program)
    for size in SIZES if subject.registered else (None,):
        inputs = subject.inputs(size, seed=3)
        wanted = list(tensors(call(module, inputs)))
        assert_close(in_onnxruntime(module, session, inputs), wanted)
    return None


def _absent() -> str:
    """Which of ONNX's packages is not installed."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if find_spec(package) is None:
            return f"{package} is not installed"
    return ""


@functools.cache
def exported(subject: Subject, train: bool) -> tuple[nn.Module, ExportedProgram]:
    """The module and its export with every size dynamic that can be; in float64 if it trains."""
    module, inputs = subject.made(dtype=torch.float64 if train else torch.float32, train=train)
    positional, keywords = arguments(module, inputs)
    shapes = {
        key: _dynamic(inputs[key])
        for key in inspect.signature(module.forward).parameters
        if key in inputs
    }
    return module, torch.export.export(module, positional, keywords, dynamic_shapes=shapes)


def _dynamic(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_dynamic(item) for item in value]
    if isinstance(value, dict):
        return {key: _dynamic(item) for key, item in value.items()}
    if not isinstance(value, Tensor):
        return None
    # an axis of one size is a step that stands alone, and stays so
    return {i: torch.export.Dim.AUTO for i, size in enumerate(value.shape) if size > 1}


def assert_trains_alike(module: nn.Module, program: ExportedProgram, inputs: Inputs) -> None:
    """Outputs, and the gradients of inputs and parameters, of one step from the same state."""
    other = program.module()
    before = copy.deepcopy(module.state_dict())
    torch.manual_seed(3)  # dropout
    wanted = step(module, inputs)
    module.load_state_dict(before)
    torch.manual_seed(3)
    found = step(other, inputs, lambda points: call_like(module, other, points))
    require(
        found["parameters"].keys() == wanted["parameters"].keys(), "other parameters get a gradient"
    )
    found["parameters"] = {key: found["parameters"][key] for key in wanted["parameters"]}
    assert_close(found, wanted)


def session_of(program: ExportedProgram) -> Any:
    """The program as ONNX, in onnxruntime."""
    import onnxruntime

    made = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False)
    if made is None:
        raise FaultError("torch.onnx.export returns nothing")
    return onnxruntime.InferenceSession(
        made.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )


def in_onnxruntime(module: nn.Module, session: Any, inputs: Inputs) -> list[Tensor]:
    """What onnxruntime gives for the inputs."""
    feeds = [tensor.numpy() for tensor in tensors(*arguments(module, inputs))]
    names = [each.name for each in session.get_inputs()]
    found = session.run(None, dict(zip(names, feeds, strict=True)))
    return [torch.from_numpy(array) for array in found]
