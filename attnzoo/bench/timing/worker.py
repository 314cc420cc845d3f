"""One side's process: loads blocks of the attnzoo it was started for, and samples their passes.

    python worker.py [CHECKOUT]

It runs as a script, so that it can measure versions of attnzoo that do not include it. It uses only
`build` of the measured version, and `sample.py` of this one. Requests and answers are JSON lines.
"""

import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Steps = dict[str, Callable[[], Any]]


def main() -> None:
    """Answer requests until there are no more."""
    import sample  # type: ignore[import-not-found]  # beside this script

    sys.path[:1] = sys.argv[1:2]  # in place of this file's folder
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what blocks print goes to standard error
    attnzoo = importlib.import_module("attnzoo")  # the measured version
    steps: Steps = {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "load" in request:
                steps, params = load(attnzoo, **request["load"])
                calls = {name: sample.calls_per_sample(step) for name, step in steps.items()}
                where = str(Path(str(attnzoo.__file__)).resolve())
                answer = {"calls": calls, "params": params, "from": where}
            else:
                step, calls = steps[request["pass"]], request["calls"]
                answer = {"seconds": sample.times(sample.burst(step, calls, 0.0, request["count"]))}
        except Exception as error:  # a block may raise anything, which the request's sender reports
            answer = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
        print(json.dumps(answer), file=answers, flush=True)


def load(
    attnzoo: Any, block: str, config: Any, inputs: str, device: str, dtype: str, threads: int
) -> tuple[Steps, int]:
    """A block's forward pass and training step, both warm, and its number of parameters."""
    import torch

    torch.set_num_threads(threads)
    module = attnzoo.build(block, **config, device=device, dtype=getattr(torch, dtype))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            summed = p[0].numel() if p.ndim > 1 and len(p) else 1
            noise = torch.randn(p.shape, generator=generator).to(p)
            p.add_(noise, alpha=min(0.1, summed**-0.5))
    positional, keywords = torch.load(inputs, map_location=device)
    wanted = [*tensors([*positional, *keywords.values()]), *module.parameters()]
    wanted = [t for t in wanted if t.requires_grad]

    def settle() -> None:
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()

    def outputs() -> list[Any]:
        found = tensors([module.train()(*positional, **keywords)])
        return [t for t in found if t.requires_grad]

    def forward() -> None:
        with torch.inference_mode():
            module.eval()(*positional, **keywords)
        settle()

    def training() -> None:
        torch.autograd.grad(outputs(), wanted, grads, allow_unused=True)
        settle()

    grads = [torch.randn_like(t) for t in outputs()]
    for step in (forward, training, forward, training):
        step()
    return {"forward": forward, "training": training}, sum(p.numel() for p in module.parameters())


def tensors(value: Any) -> Iterator[Any]:
    """All tensors of nested lists and tuples."""
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)
    elif hasattr(value, "requires_grad"):
        yield value


if __name__ == "__main__":
    main()
