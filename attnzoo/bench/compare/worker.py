"""One side's process: loads blocks of the attnzoo it was started for, and samples their passes.

    python worker.py [CHECKOUT]

It runs as a script, so that it can measure versions of attnzoo that do not include it. It uses only
`build` of the measured version, and `sample.py` of this one. Requests and responses are JSON lines.
"""

import importlib
import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main() -> None:
    """Answer questions until there are no more."""
    sample = _module(Path(__file__).parents[1] / "timing" / "sample.py")
    sys.path[:1] = sys.argv[1:2]  # in place of this file's folder
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what blocks print is no answer
    import torch

    attnzoo = importlib.import_module("attnzoo")  # of that version, whatever this file is part of
    where = str(Path(str(attnzoo.__file__)).resolve())
    steps: dict[str, Callable[[], Any]] = {}
    for line in sys.stdin:
        question = json.loads(line)
        try:
            if question["do"] == "load":
                torch.set_num_threads(question["threads"])
                steps, params = load(attnzoo, question)
                calls = {name: sample.calls_per_sample(step) for name, step in steps.items()}
                answer = {"calls": calls, "params": params, "from": where}
            else:
                step, calls = steps[question["pass"]], question["calls"]
                taken = sample.burst(step, calls, question["seconds"], question["least"])
                answer = {"seconds": sample.times(taken)}
        except Exception as error:  # a block may raise anything; the other side says so too
            answer = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def load(attnzoo: Any, question: dict[str, Any]) -> tuple[dict[str, Callable[[], Any]], int]:
    """A block's forward pass and training step, both warm, and its number of parameters."""
    import torch

    device, dtype = question["device"], getattr(torch, question["dtype"])
    block = attnzoo.build(question["block"], **question["config"], device=device, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in block.parameters():
            summed = p[0].numel() if p.ndim > 1 and len(p) else 1
            noise = torch.randn(p.shape, generator=generator).to(p)
            p.add_(noise, alpha=min(0.1, summed**-0.5))
    inputs = torch.load(question["inputs"], map_location=device)
    inputs = {key: _each(value, lambda t: _leaf(t, dtype)) for key, value in inputs.items()}
    by_keyword = {
        name
        for name, p in inspect.signature(block.forward).parameters.items()
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    }
    positional = [value for key, value in inputs.items() if key not in by_keyword]
    keywords = {key: value for key, value in inputs.items() if key in by_keyword}
    wanted = [t for t in (*_tensors(inputs), *block.parameters()) if t.requires_grad]

    def settle() -> None:
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()

    def forward() -> None:
        block.eval()
        with torch.inference_mode():
            block(*positional, **keywords)
        settle()

    def outputs() -> list[Any]:
        return [t for t in _tensors(block(*positional, **keywords)) if t.requires_grad]

    def training() -> None:
        block.train()
        torch.autograd.grad(outputs(), wanted, grads, allow_unused=True)
        settle()

    block.train()
    grads = [torch.randn_like(t) for t in outputs()]
    for step in (forward, training, forward, training):
        step()
    count = sum(p.numel() for p in block.parameters())
    return {"forward": forward, "training": training}, count


def _leaf(tensor: Any, dtype: Any) -> Any:
    if not tensor.is_floating_point():
        return tensor
    return tensor.detach().to(dtype).clone().requires_grad_()


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    return [change(t) for t in value] if isinstance(value, list) else change(value)


def _tensors(value: Any) -> list[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [t for each in value for t in _tensors(each)]
    return [value] if hasattr(value, "requires_grad") else []


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file that can be imported; name a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
