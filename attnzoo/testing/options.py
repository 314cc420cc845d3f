"""The options of the pytest plugin, which pytest imports in every session.

The plugin itself, and torch, are imported only if an option is given.
"""

from typing import Any


def pytest_addoption(parser: Any) -> None:
    """Add the options, `--attnzoo` and those for whole networks."""
    group = parser.getgroup("attnzoo", "the contract of torch modules")
    group.addoption(
        "--attnzoo",
        action="append",
        default=[],
        metavar="TARGET",
        help="hold what a FILE.py, FILE.py:CLASS, PACKAGE:CLASS or a block's NAME has to it",
    )
    group.addoption(
        "--attnzoo-model",
        action="append",
        default=[],
        metavar="PACKAGE:FACTORY",
        help="hold a whole network to its checks of shapes, gradients, compilers and state",
    )
    group.addoption(
        "--attnzoo-example",
        default=None,
        metavar="SHAPES",
        help="shapes of the inputs, such as 1x3x224x224; several with commas",
    )
    group.addoption(
        "--attnzoo-config", default="{}", metavar="JSON", help="arguments of the constructor"
    )
    group.addoption(
        "--attnzoo-all", action="store_true", help="the slow checks too: export, ONNX, inductor"
    )


def pytest_configure(config: Any) -> None:
    """Register the plugin if there is something for it to do."""
    if config.getoption("--attnzoo") or config.getoption("--attnzoo-model"):
        from attnzoo.testing.plugin import Contract

        config.pluginmanager.register(Contract(config), "attnzoo-contract")
