"""`check_module`, `suite`, `attnzoo check` and the pytest plugin, as a user's tests have them."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch
from torch import nn

import attnzoo
from attnzoo import cli
from attnzoo.capabilities import CAPABILITIES
from attnzoo.testing import ContractError, check_module, outcomes_of
from attnzoo.testing.api import chosen, named, shaped, subject_from
from attnzoo.testing.outcome import CHECKS, check, perform
from attnzoo.testing.subject import registered, subject_of
from attnzoo.testing.worker import Runner

from faults import Gate, WrongBackward, image

ROOT = Path(__file__).parents[2]
FILE = """
import os, time
import torch
from torch import nn


class Gate(nn.Module):
    def __init__(self, c: int = 8) -> None:
        super().__init__()
        self.fc = nn.Linear(c, c)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.fc(x.mean((2, 3))).sigmoid()[:, :, None, None]


class Detached(Gate):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.detach())


class Hangs(Gate):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype == torch.float64:
            time.sleep(1000)
        return super().forward(x)


class Dies(Gate):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype == torch.float64:
            os.abort()
        return super().forward(x)


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), Gate())
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my_block.py"
    path.write_text(FILE)
    return path


def test_a_module_is_left_as_it_is() -> None:
    module = WrongBackward().double()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(ContractError, match="WrongBackward fails 1 checks"):
        check_module(module, image(), checks=["runs", "batch", "gradcheck", "copy"])
    assert module.training
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert all(p.grad is None and p.dtype == torch.float64 for p in module.parameters())


def test_inputs_are_named_as_forward_has_them() -> None:
    class Pair(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
            return x + scale * y

    x, y = image(), image()
    assert list(named(Pair(), (x, y))) == ["x", "y"]
    assert list(named(Pair(), {"scale": 2.0, "y": y, "x": x})) == ["x", "y", "scale"]
    assert [o.verdict for o in check_module(Pair(), (x, y), checks=["runs", "sizes"])] == 2 * [
        "yes"
    ]
    with pytest.raises(TypeError, match="must hold a tensor"):
        named(Pair(), 3)


def test_checks_have_names_meanings_and_remedies() -> None:
    assert all(one.meaning and one.remedy for one in chosen())
    assert {one.capability for one in CHECKS.values()} - {None} <= set(CAPABILITIES)
    with pytest.raises(ValueError, match="did you mean 'isolation'"):
        chosen(["isolatoin"])
    with pytest.raises(ValueError, match="two checks are named 'runs'"):
        check("runs", remedy="")(lambda subject: None)


def test_a_stated_limit_is_not_applicable() -> None:
    name = next(n for n in attnzoo.names() if attnzoo.registry.find(n).limits)
    capability = next(iter(attnzoo.registry.find(name).limits))
    one = next(c for c in chosen() if c.capability == capability)
    assert perform(one, registered(name)).text.startswith("a stated limit: ")


def test_shapes_are_text() -> None:
    assert shaped("2x8x5x7").shape == (2, 8, 5, 7)
    assert [tuple(t.shape) for t in shaped("2x3,4x5x6")] == [(2, 3), (4, 5, 6)]
    with pytest.raises(ValueError, match="must be sizes such as"):
        shaped("2 by 3")


def test_a_subject_without_example_gets_one_that_runs() -> None:
    found = outcomes_of(subject_from(Gate, {}), chosen(["runs", "sizes"]))
    assert [o.verdict for o in found] == ["yes", "yes"]
    with pytest.raises(ValueError, match="none of the usual inputs"):
        subject_from(lambda: nn.Linear(7, 7), {})


def test_a_failing_example_ends_the_checks() -> None:
    subject = subject_of(Gate(), {"x": torch.randn(2, 5, 4, 4)})
    (only,) = outcomes_of(subject, chosen(fast=True))
    assert only.check == "runs"
    assert "RuntimeError" in only.text
    assert "faults.py" in only.text


test_a_suite_is_a_test = attnzoo.testing.suite(Gate, example="2x8x6x6", checks=["runs", "strides"])


def test_what_hangs_or_dies_is_stopped_and_the_others_go_on(file: Path) -> None:
    for target, cause in ((f"{file}:Hangs", "hangs"), (f"{file}:Dies", "signal SIGABRT")):
        runner = Runner({"target": target}, ["runs", "dtype", "strides"], timeout=15)
        try:
            assert len(runner.subjects()) == 1
            found = {outcome.check: outcome for outcome in runner.run(0)}
        finally:
            runner.close()
        assert [o.verdict for o in found.values()] == ["yes", "no", "yes"]
        assert cause in found["dtype"].text


def test_the_command_prints_a_table_json_and_junit(
    file: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    only = ["--only", "runs,gradcheck,causal"]
    assert cli.main(["check", f"{file}:Gate", *only]) == 0
    assert "2 yes, 0 no, 1 n/a" in capsys.readouterr().out
    report = tmp_path / "report.xml"
    words = ["check", f"{file}:Detached", "--json", "--junit", str(report), *only]
    assert cli.main(words) == 1
    (outcomes,) = json.loads(capsys.readouterr().out).values()
    assert {o["check"]: o["verdict"] for o in outcomes} == {
        "runs": "yes",
        "gradcheck": "no",
        "causal": "n/a",
    }
    (suite,) = ElementTree.parse(report).getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "1", "1")
    assert suite.find("testcase/failure") is not None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.py"], "nowhere.py is no file"),
        (["cbma"], "did you mean 'cbam'"),
        (["no.such:Thing"], "no.such cannot be imported"),
        (["se", "--c", "3"], "reduction=16"),
        (["se", "--config", "[]"], "must be a JSON object"),
        (["se", "--only", "gradchek"], "did you mean 'gradcheck'"),
        (["se", "--timeout", "0"], "--timeout 0 must be a positive number of seconds"),
        (["se", "--timeout", "0", "--only", "runs,"], "must be a positive number"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_misuse_is_explained(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["check", *words]) == 2
    assert message in capsys.readouterr().err


def pytest_in(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    plugins = ["-p", "attnzoo.testing.options", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", *plugins, *words]
    env = {
        "PYTHONPATH": str(ROOT),
        "PATH": "/usr/bin:/bin",
        "OMP_NUM_THREADS": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # the entry point, where attnzoo is installed
    }
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env)


@pytest.mark.slow
def test_the_plugin_holds_a_file_to_the_contract(file: Path) -> None:
    done = pytest_in(file.parent, "--attnzoo", f"{file}:Detached")
    assert done.returncode == 1, done.stdout
    assert "gradcheck: the gradient of input 0" in done.stdout or "detached" in done.stdout
    assert "Traceback" not in done.stdout


@pytest.mark.slow
def test_the_plugin_holds_a_network_to_the_contract(file: Path) -> None:
    words = ["--attnzoo-model", "my_block:network", "--attnzoo-example", "1x3x16x16"]
    done = pytest_in(file.parent, *words)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout


def test_the_plugin_costs_nothing_when_it_is_not_asked(file: Path) -> None:
    code = (
        "import sys, attnzoo.testing.options\n"
        "assert 'torch' not in sys.modules\n"
        "import attnzoo, attnzoo.testing.api, attnzoo.testing.checks, attnzoo.testing.worker\n"
        "assert 'pytest' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_blocks_of_other_packages_are_found(tmp_path: Path) -> None:
    """By the entry-point group attnzoo.blocks; one that cannot be loaded is named."""
    (tmp_path / "their_blocks.py").write_text(
        FILE + "\nimport attnzoo\n\n"
        "attnzoo.register('their_gate', Gate, layout='image', example={'c': 8})\n"
    )
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    entry = info / "entry_points.txt"
    code = "import attnzoo; print('their_gate' in attnzoo.names())"
    env = {"PYTHONPATH": f"{ROOT}:{tmp_path}", "PATH": "/usr/bin:/bin"}
    for module, words in (("their_blocks", "True"), ("absent_blocks", "cannot be loaded")):
        entry.write_text(f"[attnzoo.blocks]\ntheirs = {module}\n")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
        assert words in done.stdout + done.stderr
