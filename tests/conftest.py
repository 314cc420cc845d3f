"""Seed and threads of every test, the capability matrix plugin, and the option `--blocks`."""

import importlib
import os
import sys
from pathlib import Path

import pytest
import torch

import attnzoo

from matrix import Cell, Matrix


@pytest.fixture(autouse=True)
def _seed_and_threads() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


@pytest.fixture
def cell(request: pytest.FixtureRequest) -> Cell:
    """Lets a test record a text in its cell of the capability matrix."""
    return Cell(request.node)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-capabilities",
        action="store_true",
        help="write the cells of the capability matrix that this run determines, and its document",
    )
    parser.addoption(
        "--blocks",
        action="append",
        default=[],
        metavar="FILE.py",
        help="a file or module that registers blocks; they are tested like the package's",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "every_block: run once for each registered block, as `name`")
    config.addinivalue_line("markers", "capability(name): the outcome is a cell of the matrix")
    config.addinivalue_line(
        "markers", "left_out_if(condition, reason): deselected if the installed torch cannot do it"
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
    """Deselect the tests of what the installed torch cannot do."""

    def impossible(item: pytest.Item) -> bool:
        return any(mark.args[0] for mark in item.iter_markers("left_out_if"))

    left_out = [item for item in items if impossible(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not impossible(item)]
