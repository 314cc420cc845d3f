"""The learning study: networks learn with every block, rivals have as many parameters."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import attnzoo

import learn


def test_a_network_learns_with_a_block_and_without() -> None:
    task = learn.TASKS["digits"]
    ours, rival = (learn.train(task, "se", kind, 0, 4) for kind in (True, False))
    assert ours.moved
    assert min(ours.score, rival.score) > 80
    assert abs(ours.params - rival.params) < 500
    assert learn.train(task, "se", True, 0, 4) == ours, "a seed decides everything"


@pytest.mark.parametrize("name", learn.blocks())
def test_rivals_have_as_many_parameters(name: str) -> None:
    tasks = [t for t in learn.TASKS.values() if t.layout in attnzoo.describe(name).layouts]
    for task in tasks:
        count = learn._params(learn.network(task, learn.WIDTH, name))
        rival = learn._params(learn.network(task, learn.matched_width(task, count), None))
        step = learn._params(learn.network(task, learn.WIDTH + 1, None)) - learn._params(
            learn.network(task, learn.WIDTH, None)
        )
        assert abs(count - rival) <= step / 2 + 1


def test_the_table_says_what_the_differences_bear() -> None:
    def results(task: str, block: str, gaps: list[float]) -> list[object]:
        pairs = [(True, 90.0 + gap) for gap in gaps], [(False, 90.0) for _ in gaps]
        return [
            learn.Result(task, block, kind, seed, 100, score, True)
            for rows in pairs
            for seed, (kind, score) in enumerate(rows)
        ]

    def verdict(task: str, gaps: list[float]) -> str:
        return str(learn.table(results(task, "se", gaps))[-1].split("|")[-2]).strip()

    assert verdict("digits", [2.0, 2.1, 1.9]) == "helps"
    assert verdict("co2", [2.0, 2.1, 1.9]) == "hurts"
    assert verdict("co2", [-2.0, -2.1, -1.9]) == "helps"
    assert verdict("digits", [2.0, -2.1, 0.4]) == "no difference seen"


def test_the_recipe_runs(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    page = (root / "docs/learning.md").read_text()
    (command,) = re.findall(r"```bash\n(python .*?)\n```", page, re.DOTALL)
    words = [sys.executable, *shlex.split(command)[1:], "--out", str(tmp_path)]
    run = subprocess.run(words, cwd=root, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"learn.json", "learn.md"}
    assert [line.split("|")[2].strip() for line in run.stdout.splitlines()[2:]] == ["se", "cbam"]


@pytest.mark.slow
@pytest.mark.parametrize("name", learn.blocks())
def test_every_block_learns(name: str) -> None:
    """With seeds other than the table's."""
    layouts = attnzoo.describe(name).layouts
    if "image" in layouts:
        result = learn.train(learn.TASKS["digits"], name, True, 77, 6)
        assert result.moved
        assert result.score > 90
    if "sequence" in layouts:
        result = learn.train(learn.TASKS["co2"], name, True, 77, 6)
        assert result.moved
        assert result.score < 60, "better than forecasting no change"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seeds", "1"], "at least 2"),
        (["--epochs", "0"], "--epochs 0 must be at least 1"),
        (["--jobs", "0"], "--jobs 0 must be at least 1"),
        (["--blocks", "senet"], "did you mean 'se'"),
        (["--blocks", "mamba", "--tasks", "digits"], "none of mamba fits any of digits"),
    ],
)
def test_misuse_is_told(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        learn.main(arguments)
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("softmax", [False, True])
def test_a_parameter_without_effect_need_not_move(softmax: bool) -> None:
    """Raising every logit of a softmax by one changes nothing."""
    linear = nn.Linear(3, 2)
    layer = nn.Sequential(linear, nn.Softmax(1)) if softmax else linear
    before = linear.bias.clone()
    assert learn._matters(linear.bias, layer, torch.randn(5, 3)) != softmax
    torch.testing.assert_close(linear.bias, before, rtol=0, atol=1e-6)  # one added and taken away
