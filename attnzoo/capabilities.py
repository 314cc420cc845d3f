"""What a block can be held to, and what the test run found: the one list and its recorded cells."""

import json
from collections.abc import Mapping
from pathlib import Path

PATH = Path(__file__).with_name("capabilities.json")
NOT_TESTED = "not tested here"

# Capabilities by group, each with what "yes" means. A test carries the name as its mark
# `@pytest.mark.capability("...")`; the order here is the order of the table.
GROUPS: dict[str, dict[str, str]] = {
    "Numbers": {
        "weights": "the authors' weights load by their own names and give the authors' numbers",
        "gradcheck": "first and second derivatives agree with finite differences in float64",
    },
    "Compilers": {
        "compile": "torch.compile(fullgraph=True) trains as eager does, in both modes (aot_eager)",
        "inductor": "the same through the default compiler",
        "export": "torch.export with every size dynamic, re-run at other sizes",
    },
}
CAPABILITIES: dict[str, str] = {
    name: meaning for group in GROUPS.values() for name, meaning in group.items()
}


def recorded() -> dict[str, dict[str, str]]:
    """The cells of the last recorded test run: block, capability, what was found."""
    cells: dict[str, dict[str, str]] = json.loads(PATH.read_text(encoding="utf-8"))
    return cells


def of(name: str, limits: Mapping[str, str]) -> dict[str, str]:
    """One block's cell of every capability: "yes", a value, "no: ..." or "n/a: ..."."""
    cells = recorded().get(name, {})
    return {
        capability: f"no: {limits[capability]}"
        if capability in limits
        else cells.get(capability, NOT_TESTED)
        for capability in CAPABILITIES
    }
