"""The study of peers: equal work is called equal, other arithmetic labeled, absence worded."""

import json
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch

import attnzoo
from attnzoo.registry import InputSize, find

import peers
from peer import PACKAGES, MissingPeerError, Peer, _checkout
from peer_layers import PEERS

LAYER = """
from torch import nn
from senet import width

class SELayer(nn.Module):
    def __init__(self, channel, reduction):
        super().__init__()
        hidden = width.of(channel, reduction)
        self.fc = nn.Sequential(
            nn.Linear(channel, hidden, bias=False),
            nn.ReLU(),
            nn.Linear(hidden, channel, bias=False),
        )

    def forward(self, x):
        return x * self.fc(x.mean((2, 3))).sigmoid()[..., None, None] * FACTOR
"""


def checkout(folder: Path, factor: str) -> Path:
    """A repository laid out as moskomule/senet.pytorch is, written for this test."""
    package = folder / "senet.pytorch" / "senet"
    package.mkdir(parents=True)
    (package / "se_module.py").write_text(LAYER.replace("FACTOR", factor))
    (package / "width.py").write_text(
        "def of(channel, reduction):\n    return channel // reduction\n"
    )
    git = folder / "senet.pytorch" / ".git"
    (git / "refs").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/main\n")
    (git / "refs" / "main").write_text("8cb2669aaaaaaaaa\n")
    return folder


def upstream_row(folder: Path) -> dict[str, object]:
    options = peers._parser().parse_args(["--upstream", str(folder), "--size", "5"])
    (peer,) = (p for p in PEERS if p.source == "moskomule/senet.pytorch")
    (work,) = peers._workloads(peer, options)
    return peers.measured(peer, work, options)


def test_every_peer_names_a_block_and_a_source() -> None:
    for peer in PEERS:
        assert peer.block in attnzoo.names()
        assert peer.source in PACKAGES or peer.source.count("/") == 1
        entry = find(peer.block)
        assert peer.make or peer.keywords(entry.bind(**entry.example) | peer.ours)
    assert len({(p.block, p.source) for p in PEERS}) == len(PEERS)


@pytest.mark.parametrize("peer", [p for p in PEERS if p.source == "timm"], ids=lambda p: p.block)
def test_timm_computes_the_same_with_the_same_weights(peer: Peer) -> None:
    options = peers._parser().parse_args(["--size", "5"])
    (work,) = peers._workloads(peer, options)
    assert peers.matched(peer, work, options).outputs == "equal"


def test_the_study_writes_what_it_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--blocks", "se", "--c", "32", "--size", "5"]
    status = peers.main([*words, "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "peers.json").read_text())
    assert status == any("error" in row for row in rows)
    assert [row["peer"].split()[0] for row in rows] == list(PACKAGES)
    assert rows[0]["shape"] == {"x": [2, 32, 5, 5]}
    assert rows[0]["config"]["c"] == 32
    assert rows[0]["version"] == version("timm")
    for key in ("forward", "training"):
        timed = rows[0][key]
        assert timed["ratio"] == timed["theirs_ms"] / timed["ours_ms"] > 0
        assert timed["samples"] >= 40
    text = (tmp_path / "peers.md").read_text()
    assert text in capsys.readouterr().out
    assert "| se | timm SEModule" in text
    try:
        version("fightingcv-attention")
        assert rows[1]["outputs"] == "equal"
    except PackageNotFoundError:
        assert 'pip install "attnzoo[peers]"' in rows[1]["error"]
        assert rows[1]["error"] in text


def test_a_checkout_is_loaded_by_path_and_leaves_no_trace(tmp_path: Path) -> None:
    path, modules = list(sys.path), set(sys.modules)
    row = upstream_row(checkout(tmp_path, "1"))
    assert row["outputs"] == "equal", row
    assert row["version"] == "8cb2669"
    assert sys.path == path
    assert not {name for name in set(sys.modules) - modules if name.startswith("senet")}


def test_packages_without_an_init_leave_no_trace_either(tmp_path: Path) -> None:
    folder = tmp_path / "src" / "parts" / "more"
    folder.mkdir(parents=True)
    (folder / "one.py").write_text("from src.parts.more.two import VALUE\n")
    (folder / "two.py").write_text("VALUE = 2\n")
    assert _checkout(tmp_path, "src/parts/more/one.py", "owner/name").VALUE == 2
    assert not {name for name in sys.modules if name.split(".")[0] == "src"}


def test_other_arithmetic_is_labeled(tmp_path: Path) -> None:
    assert upstream_row(checkout(tmp_path, "1.5"))["outputs"] == "differs by 3.3e-01"


@pytest.mark.parametrize(
    ("factor", "reason"),
    [("(", "does not load: SyntaxError"), ("missing", "NameError"), ("None", "TypeError")],
)
def test_code_that_breaks_becomes_its_row(tmp_path: Path, factor: str, reason: str) -> None:
    row = upstream_row(checkout(tmp_path, factor))
    assert reason in str(row["error"])
    assert "forward" not in row


def test_what_is_not_there_says_how_to_get_it(tmp_path: Path) -> None:
    assert "git clone https://github.com/moskomule/senet.pytorch" in str(
        upstream_row(tmp_path)["error"]
    )
    (peer,) = (p for p in PEERS if p.source == "houqb/CoordAttention")
    with pytest.raises(MissingPeerError, match="needs --upstream DIR"):
        peer.build(find("coordatt").bind(c=64), None, InputSize())


def test_a_block_without_peers_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        peers.main(["--blocks", "se,nope"])
    assert "no peer of nope is known; there are peers of aff" in capsys.readouterr().err


def test_a_slower_side_is_seen() -> None:
    matrix = torch.randn(200, 200)

    def once() -> None:
        matrix @ matrix

    def often() -> None:
        for _ in range(6):
            once()

    timed = peers.compared(once, often, "cpu")
    assert timed["ratio"] > 2
    assert peers.compared(often, once, "cpu")["ratio"] < 0.5
