"""Run by test_peft.py: every block with LoRA of peft on all layers that peft takes."""

import re
import sys

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

import attnzoo
from attnzoo.testing.inputs import call, leaves, tensors

from contract import SMALL, inner_layers, made

ADAPTED = (nn.Linear, nn.Conv1d, nn.Conv2d)


def adapted_layers(block: nn.Module) -> list[str]:
    """peft's LoRA of a convolution has no dilation, and with groups a rank that they divide."""
    return [
        path
        for path, layer in inner_layers(block).items()
        if isinstance(layer, ADAPTED)
        and getattr(layer, "groups", 1) == 1
        and set(getattr(layer, "dilation", (1,))) == {1}
    ]


def check(name: str) -> str:
    acting = {"n_layers": 2} if name == "pyraformer" else {}
    _, block, inputs = made(name, SMALL, **acting)
    paths = adapted_layers(block)
    if not paths:
        return "has no such layer"
    with torch.no_grad():
        plain = list(tensors(call(block, inputs)))
    targets = "|".join(map(re.escape, paths))  # a list would match the ends of paths
    config = LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    inject_adapter_in_model(config, block)
    outputs = list(tensors(call(block, leaves(inputs))))
    sum(output.square().sum() for output in outputs).backward()
    assert not all(torch.equal(a, b) for a, b in zip(outputs, plain, strict=True)), name
    adapters = {key: p for key, p in block.named_parameters() if "lora_" in key}
    assert len(adapters) == 2 * len(paths), name
    for key, parameter in adapters.items():
        assert parameter.grad is not None and parameter.grad.any(), f"{name}: {key}"
    return f"{len(paths)} layers"


def check_insertion() -> None:
    """Adapters come before the blocks: those of a module that has one would be frozen."""
    config = LoraConfig(r=2, target_modules=r"0|2\.attnzoo_host", init_lora_weights=False)
    net = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    x = torch.randn(2, 24, 16)
    attnzoo.insert(net, "2", "mamba", example_input=x)
    try:
        inject_adapter_in_model(config, net)
    except ValueError as error:
        assert "insert the blocks afterwards" in str(error)
    else:
        raise AssertionError("the adapter of a module with a block was not refused")
    net = inject_adapter_in_model(config, nn.Sequential(nn.Linear(16, 16), nn.ReLU()))
    attnzoo.insert(net, "0", "mamba", example_input=x)
    net(x).square().sum().backward()
    found = {key: p.grad for key, p in net.named_parameters() if "lora_" in key or "attnzoo" in key}
    assert sum("lora_" in key for key in found) == 2
    for key, gradient in found.items():
        assert gradient is not None and gradient.any(), key


check_insertion()
for block in sys.argv[1:] or attnzoo.names():
    sys.stdout.write(f"{block}: {check(block)}\n")
