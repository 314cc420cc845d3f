"""The subpackages: imports run in one direction, and one file uses private symbols of torch.

The only exception is the registry, which imports the blocks by name on the first request for one.
"""

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

PACKAGE = Path(__file__).parents[2] / "attnzoo"

# The subpackages, here called rooms; each may import only those below it.
ROOMS = [
    "__main__",
    "cli",
    "__init__",  # the public names
    "candidates",
    "bench",
    "insertion",
    "integrations",
    "attention_maps",
    "testing",
    "reference",
    "weights",
    "networks",
    "blocks",
    "autograd",
    "registry",
    "capabilities",
    "ops",
    "cost",
    "validation",
    "_torch",
]

FILES = {path.relative_to(PACKAGE): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def room_of(module: str) -> str:
    """The subpackage of a module: `blocks` for `attnzoo.blocks.se`."""
    return [*module.split("."), "__init__"][1]


def dotted(file: Path) -> str:
    """The module of a file; a package is named by its folder."""
    return ".".join(["attnzoo", *file.with_suffix("").parts]).removesuffix(".__init__")


def imported(file: Path, tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Every module of the package that a file imports, also inside functions, with the line.

    Imports for type checkers never run and are left out.
    """
    package = dotted(file).split(".")
    if file.name != "__init__.py":
        package = package[:-1]
    skipped = {
        id(node)
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and "TYPE_CHECKING" in ast.unparse(test.test)
        for node in ast.walk(test)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            whole = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{whole}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((name, node.lineno) for name in names if name.split(".")[0] == "attnzoo")


def existing(name: str) -> str:
    """The module that an imported name is, or is defined in."""
    parts = name.split(".")
    while len(parts) > 1:
        file = Path(*parts[1:])
        if (PACKAGE / file).is_dir() or (PACKAGE / file.with_suffix(".py")).is_file():
            return ".".join(parts)
        parts.pop()
    return "attnzoo"


def test_every_file_is_in_a_listed_subpackage() -> None:
    assert {room_of(dotted(file)) for file in FILES} <= set(ROOMS)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_run_one_way(file: Path) -> None:
    own = room_of(dotted(file))
    wrong = [
        f"{file}:{line} imports {name}; {own} is below {other}"
        for name, line in imported(file, TREES[file])
        for other in [room_of(existing(name))]
        if ROOMS.index(other) < ROOMS.index(own) and name != "attnzoo.__version__"
    ]
    assert not wrong, "\n".join(wrong)


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def own_names() -> set[str]:
    """Private names that the package itself defines."""
    found: set[str] = set()
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.attr)
    return {name for name in found if private(name)}


NAMEDTUPLES = {"_fields", "_asdict", "_replace"}  # public despite the underscore
OURS = own_names() | NAMEDTUPLES | {"_torch"}
# Undocumented attributes of torch's modules, tensors and functions.
MEMBERS = {
    name
    for thing in (nn.Module(), torch.empty(0), torch.autograd.Function)
    for name in dir(thing)
    if private(name)
}


def private_symbols(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Private names of others that a file reads, overrides or imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr):
            of_torch = ast.unparse(node.value).split(".")[0] == "torch"
            if of_torch or node.attr in MEMBERS or node.attr not in OURS:
                yield node.attr, node.lineno
        elif isinstance(node, ast.ClassDef):
            for part in node.body:
                if isinstance(part, ast.FunctionDef) and part.name in MEMBERS:
                    yield part.name, part.lineno
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            yield from ((name, node.lineno) for name in names if private(name))
        elif isinstance(node, ast.Import):
            names = [part for alias in node.names for part in alias.name.split(".")]
            yield from ((name, node.lineno) for name in names if private(name))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
            (name,) = node.args[1:2]
            text = str(name.value) if isinstance(name, ast.Constant) else ""
            if private(text) and text not in NAMEDTUPLES:
                yield text, node.lineno


@pytest.mark.parametrize("file", [f for f in FILES if f.name != "_torch.py"], ids=str)
def test_private_symbols_of_torch_stay_in_one_file(file: Path) -> None:
    found = [f"{file}:{line} {name}" for name, line in private_symbols(TREES[file])]
    assert not found, "private symbols belong in attnzoo/_torch.py: " + ", ".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "torch._C._get_tracing_state()",
        "x._is_view()",
        "x._version",
        "torch._check(True)",
        "module._modules[name]",
        "self._parameters",
        "from torch._dynamo import reset",
        "from torch.utils._pytree import tree_map",
        "import torch._inductor",
        "getattr(x, '_is_view')",
        "class A(nn.Module):\n    def _apply(self, fn): ...",
    ],
)
def test_private_symbols_are_found(line: str) -> None:
    assert list(private_symbols(ast.parse(line)))


def test_block_files_are_short() -> None:
    blocks = [f for f in FILES if f.parts[0] == "blocks" and not f.stem.startswith("_")]
    lines = {f.name: len(FILES[f].read_text(encoding="utf-8").splitlines()) for f in blocks}
    long = {name: n for name, n in lines.items() if n > 250}
    assert not long, long
    assert statistics.median(lines.values()) <= 150


@pytest.mark.parametrize("file", FILES, ids=str)
def test_no_assert_statement(file: Path) -> None:
    """`python -O` leaves them out: errors and the checks of modules would vanish."""
    lines = [n.lineno for n in ast.walk(TREES[file]) if isinstance(n, ast.Assert)]
    assert not lines
