"""The capabilities that every block is tested for, and the results of the last recorded run."""

import json
from collections.abc import Mapping
from pathlib import Path

PATH = Path(__file__).with_name("capabilities.json")
NOT_TESTED = "not tested here"

# Capabilities by group, each with the meaning of "yes". Tests refer to a capability by the mark
# `@pytest.mark.capability("...")`; the table lists them in this order.
GROUPS: dict[str, dict[str, str]] = {
    "Numbers": {
        "weights": "the authors' weights load by their own names and give the authors' results",
        "gradcheck": "first and second derivatives agree with finite differences in float64",
        "bfloat16": "block and inputs in bfloat16: outputs are in bfloat16, outputs and gradients "
        "are finite and near those in float32",
        "float16": "the same in float16",
        "autocast": "under torch.autocast to either half-precision dtype: outputs and gradients "
        "are finite and near those in float32",
        "scale_bfloat16": "the largest standard deviation of the input, of powers of ten and 30, "
        "at which outputs and gradients of a mean loss are finite in bfloat16; below 30 only if "
        "the exact results, computed in float64, exceed bfloat16's range",
        "scale_float16": "the same in float16, whose largest number is 65504",
    },
    "Compilers": {
        "compile": "torch.compile(fullgraph=True, backend='aot_eager') gives eager's outputs and "
        "gradients, in train and eval mode",
        "dynamic": "one graph serves every batch and size: with dynamic=True from the first call, "
        "by default from the second size on; docs/deploying.md lists torch's own exceptions",
        "inductor": "torch.compile(fullgraph=True) with the default backend gives eager's outputs "
        "and gradients",
        "export": "torch.export with every size dynamic gives eager's outputs and gradients at "
        "other sizes, also after saving, loading and decomposing",
        "make_fx": "the graph recorded by make_fx gives eager's outputs and gradients",
        "onnx": "torch.onnx.export(dynamo=True) at one size gives the same outputs in onnxruntime",
        "onnx_dynamic": "the same with every size dynamic, run at other sizes, batch 1 included",
    },
    "Distributed": {
        "ddp": "DistributedDataParallel on two ranks gives the gradients of one process; BatchNorm "
        "uses the statistics of each rank",
        "fsdp": "the same with fully_shard (FSDP2)",
        "dcp": "a torch.distributed.checkpoint written by two ranks loads on one",
    },
    "State": {
        "copy": "deepcopy and pickle give the same block",
        "state_dict": "state dicts survive torch.save with weights_only=True and safetensors, and "
        "load strictly",
        "meta": "a block built on the meta device and filled by to_empty and load_state_dict is "
        "the same block",
        "functional": "torch.func's functional_call, grad and vmap work; per-sample gradients "
        "equal those of a loop over samples",
        "checkpoint": "activation checkpointing, reentrant or not, does not change gradients",
    },
    "Inputs": {
        "batch": "batches of 1 and 0 samples give outputs and gradients of every parameter; with "
        "BatchNorm, empty batches only in eval mode",
        "sizes": "inputs of 1x1, 1xN, Nx1, odd, smaller and larger sizes than the example's",
        "strides": "non-contiguous and expanded inputs give the same outputs and gradients",
        "channels_last": "the output of a channels_last image is channels_last",
        "frozen": "inputs or parameters without requires_grad, no_grad and inference_mode work",
        "untouched": "inputs are never modified, nor are parameters and buffers in eval mode",
        "isolation": "in eval mode a sample's output does not depend on the other samples of the "
        "batch, even if they contain NaN",
        "modes": "only train mode applies dropout and updates BatchNorm's buffers",
        "deterministic": "repeated forward and backward passes are bitwise equal, also under "
        "torch.use_deterministic_algorithms(True)",
    },
}
CAPABILITIES: dict[str, str] = {
    name: meaning for group in GROUPS.values() for name, meaning in group.items()
}


def recorded() -> dict[str, dict[str, str]]:
    """The results of the last recorded test run, by block and capability."""
    cells: dict[str, dict[str, str]] = json.loads(PATH.read_text(encoding="utf-8"))
    return cells


def of(name: str, limits: Mapping[str, str]) -> dict[str, str]:
    """One block's results: "yes", a value, or "no", "refused", "n/a" with the reason."""
    cells = recorded().get(name, {})
    return {
        capability: f"no: {limits[capability]}"
        if capability in limits
        else cells.get(capability, NOT_TESTED)
        for capability in CAPABILITIES
    }
