"""LoRA as peft does it, on every layer that peft takes, in an environment made for it."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
def test_adapters_of_peft_act_and_learn_on_every_inner_layer(tmp_path: Path) -> None:
    """peft brings accelerate and others; they stay out of this environment."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    (site,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    paths = [sysconfig.get_paths()["purelib"], str(HERE.parent), str(HERE.parents[1])]
    (site / "underneath.pth").write_text("\n".join(paths))  # torch is not installed twice
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "peft>=0.14"], check=True, timeout=600)
    run = subprocess.run(
        [python, HERE / "peft_adapters.py"],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stdout + run.stderr
