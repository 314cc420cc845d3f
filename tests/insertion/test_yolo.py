"""The bridge to ultralytics, run against the real package in an environment made for it."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
def test_the_bridge_in_an_environment_of_its_own(tmp_path: Path) -> None:
    """ultralytics brings OpenCV and settings files; they stay out of this environment."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    (site,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    paths = [sysconfig.get_paths()["purelib"], str(HERE.parent)]
    (site / "underneath.pth").write_text("\n".join(paths))  # torch is not installed twice
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "ultralytics>=8.3"], check=True, timeout=600)
    offline = {"YOLO_CONFIG_DIR": str(tmp_path), "YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "0"}
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default"]
    run = subprocess.run(
        [*command, HERE / "yolo_bridge.py"],
        env={**os.environ, **offline},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout
    assert "skipped" not in run.stdout
