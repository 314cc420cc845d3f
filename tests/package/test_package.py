"""The package as a whole: its public names, import time, files, and the code in its documents."""

import re
import runpy
import subprocess
import sys
import types
from pathlib import Path

import pytest

import attnzoo
from attnzoo import blocks, reference

from catalogue import chinese, tables

ROOT = Path(__file__).parents[2]
ROOMS = {
    room: sorted(p.stem for p in (ROOT / "attnzoo" / room).glob("*.py") if p.stem[0] != "_")
    for room in ("blocks", "networks")
}
FILES = sorted(name for files in ROOMS.values() for name in files)


def test_public_names_are_sorted_and_exist() -> None:
    assert attnzoo.__all__ == sorted(attnzoo.__all__)
    assert all(hasattr(attnzoo, name) for name in attnzoo.__all__)


@pytest.mark.parametrize("room", ROOMS)
def test_files_and_imports_are_one_list(room: str) -> None:
    lines = (ROOT / "attnzoo" / room / "__init__.py").read_text().splitlines()
    assert [line.split()[-1] for line in lines if line.startswith("from . import")] == ROOMS[room]


def test_files_and_names_are_one_list() -> None:
    assert attnzoo.names() == FILES
    assert all(hasattr(blocks, name) for name in ROOMS["blocks"])


def test_reference_vectors_belong_to_something() -> None:
    for path in reference.cases():
        owner = path.stem.split("__")[0]
        assert owner in FILES or hasattr(attnzoo, owner), path.name


def test_import_is_fast_and_loads_no_blocks() -> None:
    """In a new process: less than 0.1 s more CPU time than importing torch.

    About 0.03 s where Python keeps no compiled files, as here, and less where it does.
    """
    script = (
        "import time, sys, torch\n"
        "had = set(sys.modules)\n"
        "start = time.process_time()\n"
        "import attnzoo\n"
        "print(time.process_time() - start)\n"
        "print(*{m.split('.')[0] for m in set(sys.modules) - had})\n"
        "print(*attnzoo.names())\n"
    )
    times = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-Bc", script], capture_output=True, text=True, check=True, cwd=ROOT
        )
        seconds, loaded, found = done.stdout.splitlines()
        times.append(float(seconds))
        heavy = {"timm", "torchvision", "fvcore", "triton", "matplotlib", "rich", "numpy"}
        assert not heavy & set(loaded.split())
        assert found.split() == FILES
    assert min(times) < 0.1


def fences(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


DOCUMENTS = (
    "README.md",
    "docs/adding-a-block.md",
    "docs/checking.md",
    "docs/checkpoints.md",
    "docs/choosing.md",
    "docs/deploying.md",
    "docs/fine-tuning.md",
    "docs/index.md",
    "docs/insert.md",
    "docs/networks.md",
    "docs/paper-table.md",
    "docs/survey.md",
)


@pytest.mark.parametrize("path", DOCUMENTS)
def test_code_in_documents_prints_what_it_says(path: str) -> None:
    code = "\n".join(fences(ROOT / path))
    assert "attnzoo." in code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    wanted = re.findall(r"print\(.*#\s*(.*)$", code, re.MULTILINE)
    assert done.stdout.split("\n")[: len(wanted)] == wanted


def test_both_readmes_have_the_same_code_and_tables() -> None:
    english, chinese = (
        (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md")
    )
    for pattern in (r"^```.*?^```", r"<!-- generated: \w+ -->", r"\]\((?!README)[^)]*\)", r"^#+ "):
        found = [re.findall(pattern, text, re.MULTILINE | re.DOTALL) for text in (english, chinese)]
        assert found[0] == found[1]
        assert found[0]


@pytest.mark.parametrize("path", tables.DOCUMENTS)
def test_generated_tables_are_up_to_date(path: str) -> None:
    """`python docs/build.py --tables` writes them."""
    assert (ROOT / path).read_text(encoding="utf-8") == tables.updated(path)


def test_chinese_sentences_are_of_names_that_exist() -> None:
    assert set(chinese.TITLES) <= set(attnzoo.names())
    assert all(re.fullmatch(r".*[\u4e00-\u9fff].*。", text) for text in chinese.TITLES.values())


PAGES = sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_of_documents_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```|<!--.*?-->", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:|#", target):
            assert (path.parent / target.partition("#")[0]).exists(), target


def test_the_package_index_gets_links_that_work(monkeypatch: pytest.MonkeyPatch) -> None:
    interface = types.ModuleType("hatchling.metadata.plugin.interface")
    interface.MetadataHookInterface = object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    absolute = runpy.run_path(str(ROOT / "docs" / "readme.py"))["absolute"]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"\]\(", absolute(text, None)) == []
    linked = absolute(text, "https://example.org/attnzoo/")
    assert "](https://example.org/attnzoo/blob/main/docs/insert.md)" in linked
    assert "](https://example.org/attnzoo/raw/main/docs/attention.jpg)" in linked
    assert re.findall(r"\]\((?!https)", linked) == []
    assert re.findall(r"^```.*?^```", linked, re.M | re.S) == re.findall(
        r"^```.*?^```", text, re.M | re.S
    )


def test_versions_and_names_agree() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {attnzoo.__version__}\n" in citation
    assert "attnzoo developers" in citation
    assert "attnzoo developers" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_readme_shows_code_by_line_20() -> None:
    early = (ROOT / "README.md").read_text().splitlines()[:20]
    assert any("attnzoo.build(" in line for line in early)


def test_version_equals_the_changelogs() -> None:
    """The newest released version in the changelog or, before any release, the first."""
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = [v for v in re.findall(r"^## \[(.+?)\]", text, re.MULTILINE) if v != "Unreleased"]
    assert attnzoo.__version__ == (versions[0] if versions else "0.1.0")
    assert f'version = "{attnzoo.__version__}"' in (ROOT / "pyproject.toml").read_text()


def test_typing_marker_ships() -> None:
    assert (ROOT / "attnzoo" / "py.typed").exists()


def test_no_test_imports_another() -> None:
    found = re.compile(r"^\s*(?:from|import) test_", re.MULTILINE)
    assert [p.name for p in (ROOT / "tests").rglob("*.py") if found.search(p.read_text())] == []
