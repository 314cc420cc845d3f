"""Errors of newcomers, each with what to write instead."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import attnzoo
from attnzoo import cli


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("ca", "coordatt"),
        ("SENet", "se"),
        ("SELayer", "se"),
        ("squeeze excitation", "se"),
        ("cbma", "cbam"),
        ("CBAMBlock", "cbam"),
        ("sk", "sknet"),
        ("SKAttention", "sknet"),
        ("coord", "coordatt"),
        ("danet-position", "danet_position"),
        ("PAM_Module", "danet_position"),
        ("dual_attention", "danet"),
        ("Triplet", "triplet"),
        ("CSCM", "pyraformer_cscm"),
        ("EfficientAdditiveAttention", "swiftformer"),
        ("LiteMLA", "relu_linear"),
        ("NonLocal", "gc"),
        ("SimAMModule", "simam"),
        ("EMAttention", "ema"),
        ("EfficientViT", "relu_linear"),
        ("AirFormer", "ct_msa"),
        ("MTGNN", "dilated_inception"),
        ("SpatialGate", "bam' or 'cbam"),
        ("ASTGNN", "trend_aware"),
        ("DSTAGNN", "m_gtu"),
    ],
)
def test_names_as_people_write_them(word: str, near: str) -> None:
    with pytest.raises(attnzoo.UnknownBlockError, match=f"did you mean '{near}'"):
        attnzoo.build(word, c=64)


@pytest.mark.parametrize(
    "word", ["attention", "ShuffleAttention", "xyzzyqqq", "AttentionBlock", ""]
)
def test_a_name_like_none_points_nowhere(word: str) -> None:
    with pytest.raises(attnzoo.UnknownBlockError, match=r"^(?!.*did you mean).*attnzoo\.names\(\)"):
        attnzoo.build(word, c=64)


def test_classes_as_people_write_them() -> None:
    for word, near in (("SELayer", "SE"), ("Agent", "AgentAttention"), ("SKAttention", "SKConv")):
        with pytest.raises(AttributeError, match=f"did you mean '{near}'"):
            getattr(attnzoo, word)


X = torch.randn(2, 64, 8, 8)
STEPS = torch.randn(2, 5, 64)
BIASED = {
    "fc.0.weight": torch.ones(4, 64),
    "fc.2.weight": torch.ones(64, 4),
    "fc.0.bias": torch.ones(4),
    "fc.2.bias": torch.ones(64),
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.tokens = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tokens(self.stem(x).flatten(2).mT)


def insert(where: Any, name: str, **options: Any) -> None:
    attnzoo.insert(Net(), where, name, example_input=torch.randn(1, 3, 32, 32), **options)


def insert_module() -> None:
    net = Net()
    attnzoo.insert(net, net.stem, "se", example_input=torch.randn(1, 3, 8, 8))  # type: ignore[arg-type]


def build(name: str, *args: Any, **config: Any) -> nn.Module:
    return attnzoo.build(name, *args, **config)


MESSAGES: dict[str, tuple[Callable[[], Any], str]] = {
    **{
        key: (lambda key=key: build("se", **{key: 64}), f"no argument '{key}'; did you mean 'c'")
        for key in ("dim", "in_channels", "in_planes", "inp", "gate_channels", "d_model")
    },
    "in_ch": (lambda: build("se", in_ch=64), "did you mean 'c'"),
    "ks": (lambda: build("cbam", 64, ks=7), "did you mean 'kernel_size'"),
    "swapped": (lambda: insert("se", "stem"), r"write attnzoo\.insert\(model, 'stem', 'se'"),
    "num_heads": (lambda: build("agent", 64, num_heads=4), "did you mean 'heads'"),
    "oup": (lambda: build("coordatt", inp=64, oup=64), "did you mean 'c'"),
    "coordatt(64, 64)": (lambda: build("coordatt", 64, 64), "write c_out=64"),
    "cbam(64, 16)": (lambda: build("cbam", 64, 16), "write reduction=16"),
    "channels last": (
        lambda: build("se", 64)(X.permute(0, 2, 3, 1)),
        r"axis 3 has 64: take x\.permute\(0, 3, 1, 2\)",
    ),
    "time last": (
        lambda: build("mamba", 64)(torch.randn(2, 64, 10)),
        r"axis 1 has 64: take x\.permute\(0, 2, 1\)",
    ),
    "tokens to an image block": (
        lambda: build("se", 64)(torch.randn(2, 49, 64)),
        r"take x\.mT\.unflatten\(2, \(7, 7\)\)",
    ),
    "gpu": (lambda: build("se", 64, device="gpu"), "torch's name of a GPU is 'cuda'"),
    "a module": (insert_module, r"must be a path, not a module \(Conv2d\); this one is 'stem'"),
    "ltae(x, dates)": (
        lambda: build("ltae", 64, layout="sequence")(STEPS, torch.arange(5)),
        r"write positions=\.\.\. or key_padding_mask=",
    ),
    "batch_positions": (
        lambda: build("ltae", 64, layout="sequence")(STEPS, batch_positions=torch.arange(5)),
        "'batch_positions' in its call; did you mean 'positions'",
    ),
    "pad_mask": (
        lambda: build("ltae", 64, layout="sequence")(STEPS, pad_mask=None),
        "did you mean 'key_padding_mask'",
    ),
    "weights with biases": (
        lambda: attnzoo.from_upstream("se", BIASED, 64),
        r"unexpected: fc\.0\.bias, fc\.2\.bias; they fit with bias=True",
    ),
    "attnzoo.list()": (lambda: attnzoo.list(), r"attnzoo\.names\(\) lists the blocks"),
    "create_model": (lambda: attnzoo.create_model("cbam"), r'attnzoo\.build\("cbam", c=64\)'),
    "no class": (lambda: attnzoo.ShuffleAttention, "has no attribute 'ShuffleAttention'"),
}  # fmt: skip


@pytest.mark.parametrize("case", MESSAGES)
def test_errors_say_what_to_write(case: str) -> None:
    call, words = MESSAGES[case]
    with pytest.raises((ValueError, TypeError, AttributeError), match=words) as caught:
        call()
    assert len(str(caught.value)) < 500


def test_what_the_messages_say_works() -> None:
    build("se", 64)(X.permute(0, 2, 3, 1).permute(0, 3, 1, 2))
    assert build("se", 64)(torch.randn(2, 49, 64).mT.unflatten(2, (7, 7))).shape == (2, 64, 7, 7)
    attnzoo.from_upstream("se", BIASED, 64, bias=True)
    build("ltae", 64, layout="sequence")(STEPS, positions=torch.arange(5))


def test_classes_by_their_own_names() -> None:
    from attnzoo import CBAM, blocks  # type: ignore[attr-defined]

    assert CBAM is attnzoo.CBAM is blocks.CBAM is type(build("cbam", 64))
    for name in attnzoo.names():
        cls = attnzoo.registry.find(name).cls
        assert getattr(attnzoo, cls.__name__) is cls
    with pytest.raises(AttributeError, match="Nothing"):
        blocks.Nothing  # noqa: B018


def run(*words: str) -> int:
    try:
        return cli.main(words)
    except SystemExit as stop:
        return int(str(stop.code))


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"attnzoo {attnzoo.__version__}\n"


@pytest.mark.parametrize(("words", "width"), [(["list"], 80), (["verify", "se", "simam"], 100)])
def test_tables_fit_a_terminal(
    words: list[str], width: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= width


def test_a_network_of_timm_without_a_place_points_to_insert(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("timm", "cbam", "convnext_atto") == 2
    assert "attnzoo.insert(net, where, 'cbam', example_input=x)" in capsys.readouterr().err
