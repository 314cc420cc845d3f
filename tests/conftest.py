"""One seed for every test, two threads whatever the machine, and blocks of the user's own."""

import importlib
import sys
from pathlib import Path

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--blocks",
        action="append",
        default=[],
        metavar="FILE.py",
        help="a module that registers blocks; they get every test of the registry's",
    )


def pytest_configure(config: pytest.Config) -> None:
    for name in config.getoption("--blocks"):
        path = Path(name).resolve()
        if path.suffix == ".py":
            sys.path.insert(0, str(path.parent))
        importlib.import_module(path.stem if path.suffix == ".py" else name)


@pytest.fixture(autouse=True)
def _same_start() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(2)
