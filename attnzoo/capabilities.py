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
        "weights": "the authors' weights load by their own names and give the authors' numbers",
        "gradcheck": "first and second derivatives agree with finite differences in float64",
        "bfloat16": "cast whole: dtype kept, outputs and gradients finite, near float32's",
        "float16": "cast whole: dtype kept, outputs and gradients finite, near float32's",
        "autocast": "under torch.autocast to either half: outputs and gradients finite, near "
        "float32's",
        "scale_bfloat16": "the largest standard deviation of the input, of powers of ten and 30, "
        "at which outputs and gradients of a mean loss are finite in bfloat16; below 30 only where "
        "float64 shows that the true numbers do not fit",
        "scale_float16": "the same in float16, whose largest number is 65504",
    },
    "Compilers": {
        "compile": "torch.compile(fullgraph=True) trains as eager does, in both modes (aot_eager)",
        "dynamic": "the same without recompilation when only the batch or the size changes: one "
        "with dynamic=True, else a second for the second size; docs/deploying.md has torch's own "
        "exceptions",
        "inductor": "torch.compile(fullgraph=True) with the default compiler trains as eager does",
        "export": "torch.export with every size dynamic: outputs and gradients at other sizes, "
        "saved, loaded and decomposed too",
        "make_fx": "make_fx records calls whose graph trains as eager does",
        "onnx": "torch.onnx.export(dynamo=True) of one size, re-run in onnxruntime",
        "onnx_dynamic": "the same with every size dynamic, re-run at other sizes, batch 1 included",
    },
    "Distributed": {
        "ddp": "DistributedDataParallel on two ranks: the gradients of one process; BatchNorm "
        "takes the statistics of each rank",
        "fsdp": "fully_shard (FSDP2) on two ranks: the same",
        "dcp": "a torch.distributed.checkpoint that two ranks wrote loads on one",
    },
    "State": {
        "copy": "deepcopy and pickle give the same block",
        "state_dict": "strict round trips through torch.save, weights_only, and safetensors",
        "meta": "built on the meta device, to_empty and load_state_dict give the same block",
        "functional": "torch.func: functional_call, grad, vmap; per-sample gradients are a loop's",
        "checkpoint": "activation checkpointing of either kind changes no gradient",
    },
    "Inputs": {
        "batch": "batches of 1 and 0 give outputs, and gradients of every parameter; the empty one "
        "in eval mode alone where the block has BatchNorm",
        "sizes": "1x1, 1xN, Nx1, odd, smaller and larger than built for",
        "strides": "non-contiguous and expanded inputs give the same, gradients too",
        "channels_last": "the output of a channels_last image is channels_last",
        "frozen": "inputs or parameters that want no gradient, no_grad and inference_mode",
        "untouched": "inputs are never written to; nor, in eval mode, are parameters and buffers",
        "isolation": "in eval mode a sample's output is the same beside any other, NaN included",
        "modes": "BatchNorm's buffers and dropout act in train mode, and in no other",
        "deterministic": "two steps are bitwise equal; so torch.use_deterministic_algorithms finds",
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
