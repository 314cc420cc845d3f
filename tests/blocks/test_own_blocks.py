"""`pytest --blocks=FILE.py` tests a user's block: it passes if correct and fails if not."""

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
BLOCK = '''
"""Mean gate: scales each channel by a gate of its mean.

When: a channel gate must have one weight for each channel and no more.
Paper: none.
Code: this file.
Math: y = x * sigmoid(scale * mean_HW(x)).
Shapes: (B, C, H, W) -> (B, C, H, W).
Differs: in nothing.
Cost: c parameters, no multiply-adds.
"""

import torch
from torch import Tensor, nn

import attnzoo
from attnzoo.validation import check


@attnzoo.register("mean_gate_of_mine", layout="image", example={"c": 8})
class MeanGate(nn.Module):
    """Gates (B, C, H, W) by its means.

    Args:
        c: channels in and out.
    """

    def __init__(self, c: int) -> None:
        super().__init__()
        check.positive(c=c)
        self.c = c
        self.scale = nn.Parameter(torch.ones(c))

    def forward(self, x: Tensor) -> Tensor:
        check.image(x, self.c, self.scale)
        return x * (self.scale * MEANS).sigmoid()[:, :, None, None]

    def macs(self, size: attnzoo.InputSize) -> int:
        return 0
'''


def matrix(file: Path, means: str, *only: str) -> subprocess.CompletedProcess[str]:
    """Run all tests, or those in `only`, on the block in `file` in a new process."""
    file.write_text(BLOCK.replace("MEANS", means))
    options = [f"--blocks={file}", "-k", "mean_gate_of_mine", "-p", "no:cacheprovider", "-v"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, *only],
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_a_correct_block_passes(tmp_path: Path) -> None:
    found = matrix(tmp_path / "right_block.py", "x.mean((2, 3))")
    assert found.returncode == 0, found.stdout
    for capability in ("compile", "ddp", "meta", "sizes"):
        assert f"mean_gate_of_mine, {capability}: yes" in found.stdout


def test_a_block_that_leaks_across_samples_fails(tmp_path: Path) -> None:
    only = "tests/blocks/test_inputs.py::test_a_sample_does_not_depend_on_its_batch"
    found = matrix(tmp_path / "leaky_block.py", "x.mean((0, 2, 3)).expand(x.shape[:2])", only)
    assert found.returncode == 1, found.stdout
    assert "3 failed" in found.stdout
