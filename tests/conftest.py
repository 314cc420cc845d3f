"""One seed for every test, the capability matrix, and blocks of the user's own.

Two threads of torch's, or one for each worker of pytest-xdist.
"""

import importlib
import os
import sys
from pathlib import Path

import pytest
import torch

import attnzoo

from matrix import Cell, Matrix


@pytest.fixture(autouse=True)
def _same_start() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


@pytest.fixture
def cell(request: pytest.FixtureRequest) -> Cell:
    """What the test puts into its cell of the capability matrix, where passing is not all."""
    return Cell(request.node)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-capabilities",
        action="store_true",
        help="write the cells of the capability matrix that this run finds, and their document",
    )
    parser.addoption(
        "--blocks",
        action="append",
        default=[],
        metavar="FILE.py",
        help="a module that registers blocks; they get every test of the registry's",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "every_block: run once for each registered block, as `name`")
    config.addinivalue_line("markers", "capability(name): the outcome is a cell of the matrix")
    config.addinivalue_line(
        "markers", "left_out_if(condition, reason): the installed torch cannot do it, whoever asks"
    )
    worker = hasattr(config, "workerinput")
    matrix = Matrix(config.getoption("write_capabilities"), worker)
    config.pluginmanager.register(matrix, "matrix")
    for name in config.getoption("--blocks"):
        path = Path(name).resolve()
        if path.suffix == ".py":
            sys.path.insert(0, str(path.parent))
        importlib.import_module(path.stem if path.suffix == ".py" else name)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.definition.get_closest_marker("every_block"):
        metafunc.parametrize("name", attnzoo.names())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what the installed torch cannot do, whoever asks."""

    def impossible(item: pytest.Item) -> bool:
        return any(mark.args[0] for mark in item.iter_markers("left_out_if"))

    left_out = [item for item in items if impossible(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not impossible(item)]
