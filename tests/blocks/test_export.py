"""Capabilities of exported programs, decomposed and saved ones, make_fx graphs and ONNX models."""

import copy
import functools
import inspect
import io
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx

from attnzoo.registry import Inputs, InputSize, find
from attnzoo.testing.closeness import assert_close
from attnzoo.testing.inputs import arguments, call, make_inputs, tensors

from contract import ODD, blocks, call_like, made, step

modes = pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
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


@pytest.mark.slow
@blocks
@modes
@pytest.mark.capability("export")
def test_an_exported_program_trains_like_eager_at_any_size(name: str, train: bool) -> None:
    block, program = exported(name, train)
    for extent in SIZES:
        if train:  # BatchNorm refuses to train on one value
            extent = extent._replace(batch=max(2, extent.batch))
        dtype = torch.float64 if train else torch.float32
        assert_trains_alike(block, program, inputs_of(name, extent, dtype))


@pytest.mark.slow
@blocks
def test_an_exported_program_runs_or_refuses_tiny_sizes(name: str) -> None:
    block, program = exported(name, False)
    for extent in TINY:
        inputs = inputs_of(name, extent)
        try:
            wanted = list(tensors(call(block, inputs)))
            found = list(tensors(call_like(block, program.module(), inputs)))
        except (ValueError, AssertionError) as error:
            assert isinstance(error, ValueError) or "Guard failed" in str(error)
        else:
            assert_close(found, wanted)


@pytest.mark.slow
@blocks
@pytest.mark.capability("export")
def test_a_saved_program_equals_the_block(name: str) -> None:
    block, program = exported(name, False)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    assert_trains_alike(block, torch.export.load(file), inputs_of(name, SIZES[1]))


@pytest.mark.slow
@blocks
@pytest.mark.capability("export")
def test_a_decomposed_program_keeps_the_gradients(name: str) -> None:
    block, program = exported(name, False)
    core = program.run_decompositions()
    for extent in SIZES[1:4]:
        assert_trains_alike(block, core, inputs_of(name, extent))


@blocks
@modes
@pytest.mark.capability("make_fx")
def test_make_fx_graphs_train_like_eager(name: str, train: bool) -> None:
    _, block, inputs = made(name, ODD, torch.float64, train)
    state = copy.deepcopy(block.state_dict())
    parameters = dict(block.named_parameters())

    def run(parameters: dict[str, Tensor], *args: Any) -> Any:
        return torch.func.functional_call(block, parameters, args[0], args[1])

    graph = make_fx(run)(parameters, *arguments(block, inputs))
    block.load_state_dict(state)
    wanted = step(block, inputs)
    block.load_state_dict(state)
    found = step(block, inputs, lambda leaves: graph(parameters, *arguments(block, leaves)))
    assert_close(found, wanted)


@pytest.mark.slow
@blocks
@pytest.mark.capability("onnx")
def test_onnx_of_one_size_gives_eager_outputs(name: str) -> None:
    _, block, inputs = made(name, ODD)
    positional, keywords = arguments(block, inputs)
    program = torch.export.export(block, positional, keywords)
    assert_close(
        in_onnxruntime(block, onnx_of(program), inputs), list(tensors(call(block, inputs)))
    )


@pytest.mark.slow
@blocks
@pytest.mark.capability("onnx_dynamic")
def test_onnx_gives_eager_outputs_at_any_size(name: str) -> None:
    block, program = exported(name, False)
    session = onnx_of(program)
    for extent in SIZES:
        inputs = inputs_of(name, extent)
        wanted = list(tensors(call(block, inputs)))
        assert_close(in_onnxruntime(block, session, inputs), wanted)


guards = pytest.mark.left_out_if(torch.__version__ < (2, 7), "programs have no such guards")


@pytest.mark.parametrize(
    ("name", "least", "below"),
    [
        ("dia", InputSize(height=3, width=3), InputSize(height=3, width=2)),  # a mask 2 wide, or 1
        pytest.param(
            *("ct_msa", InputSize(steps=7), InputSize(steps=6)),  # windows of 6
            marks=guards,
        ),
        pytest.param(
            *("pyraformer_cscm", InputSize(steps=12), InputSize(steps=11)),  # 3 * 2 at the top
            marks=guards,
        ),
    ],
)
def test_a_program_refuses_sizes_that_torch_specializes(
    name: str, least: InputSize, below: InputSize
) -> None:
    block, program = exported(name, False)
    assert_trains_alike(block, program, inputs_of(name, least))
    with pytest.raises((AssertionError, RuntimeError), match=r"Guard failed|Expected input"):
        call_like(block, program.module(), inputs_of(name, below))


def test_a_decomposed_batch_norm_does_not_train_in_torch_itself() -> None:
    norm, x = nn.BatchNorm1d(3), torch.randn(4, 3)
    program = torch.export.export(norm, (x,))
    program.module()(x).sum().backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        program.run_decompositions().module()(x).sum().backward()


@functools.cache
def exported(name: str, train: bool) -> tuple[nn.Module, ExportedProgram]:
    """The block and its export with all possible sizes dynamic; in float64 in train mode."""
    _, block, inputs = made(name, ODD, torch.float64 if train else torch.float32, train)
    positional, keywords = arguments(block, inputs)
    shapes = {
        key: _dynamic(inputs[key])
        for key in inspect.signature(block.forward).parameters
        if key in inputs
    }
    return block, torch.export.export(block, positional, keywords, dynamic_shapes=shapes)


def _dynamic(value: Any) -> Any:
    if isinstance(value, list):
        return [_dynamic(item) for item in value]
    # an axis of size 1 remains of size 1
    return {i: torch.export.Dim.AUTO for i, size in enumerate(value.shape) if size > 1}


def inputs_of(name: str, extent: InputSize, dtype: torch.dtype = torch.float32) -> Inputs:
    entry = find(name)
    return make_inputs(entry, dict(entry.example), extent, seed=3, dtype=dtype)


def assert_trains_alike(block: nn.Module, program: ExportedProgram, inputs: Inputs) -> None:
    """Outputs, and the gradients of inputs and parameters, of one step from the same state."""
    module = program.module()
    before = copy.deepcopy(block.state_dict())
    torch.manual_seed(3)  # dropout
    wanted = step(block, inputs)
    block.load_state_dict(before)
    torch.manual_seed(3)
    found = step(module, inputs, lambda leaves: call_like(block, module, leaves))
    assert found["parameters"].keys() == wanted["parameters"].keys()
    found["parameters"] = {key: found["parameters"][key] for key in wanted["parameters"]}
    assert_close(found, wanted)


def onnx_of(program: ExportedProgram) -> onnxruntime.InferenceSession:
    model = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False).model_proto
    return onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )


def in_onnxruntime(
    block: nn.Module, session: onnxruntime.InferenceSession, inputs: Inputs
) -> list[Tensor]:
    feeds = [tensor.numpy() for tensor in tensors(*arguments(block, inputs))]
    names = [each.name for each in session.get_inputs()]
    found = session.run(None, dict(zip(names, feeds, strict=True)))
    return [torch.from_numpy(array) for array in found]
