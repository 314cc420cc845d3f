"""The registry: names, filters, descriptions, building, and helpful errors."""

import functools
import json
import threading
import time

import pytest
import torch
from torch import Tensor, nn

import attnzoo
from attnzoo import capabilities, registry


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restores the registry after a test that registers blocks."""
    monkeypatch.setattr(registry, "_blocks", dict(registry._catalogue()))


class Twice(nn.Module):
    """Doubles its input."""

    def __init__(self, c: int, *, factors: tuple[int, ...] = (2,), shift: float | None = None):
        super().__init__()
        self.c, self.factors, self.shift = c, factors, shift

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def enter(name: str = "twice", **options: object) -> type[nn.Module]:
    settings = {"layout": "image", "family": "channel", "example": {"c": 4}, **options}
    return attnzoo.register(name, **settings)(Twice)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("word", "near"),
    [("ca", "coordatt"), ("SENet", "se"), ("CBAM", "cbam"), ("cbma", "cbam"), ("sk", "sknet"),
     ("coord", "coordatt"), ("danet-position", "danet_position"), ("Triplet", "triplet")],
)  # fmt: skip
def test_unknown_name_points_to_the_nearest(word: str, near: str) -> None:
    with pytest.raises(attnzoo.UnknownBlockError, match=repr(near)) as caught:
        attnzoo.build(word, c=64)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, KeyError)
    assert str(caught.value).startswith("no block is named")


def test_unknown_name_without_anything_near() -> None:
    with pytest.raises(attnzoo.UnknownBlockError, match=r"attnzoo\.names\(\)"):
        attnzoo.build("xyzzyqqq", c=64)
    with pytest.raises(TypeError, match="a block's name is a str"):
        attnzoo.build(None, c=64)  # type: ignore[arg-type]


def test_misspelt_keyword_shows_the_signature() -> None:
    with pytest.raises(TypeError, match=r"did you mean 'reduction'\?.*cbam\(c, \*, reduction=16"):
        attnzoo.build("cbam", c=64, reduktion=8)
    with pytest.raises(TypeError, match=r"missing a required argument: 'c'.*se\(c, "):
        attnzoo.build("se")
    with pytest.raises(TypeError, match=r"se\(c, \*"):
        attnzoo.build("se", 64, 16)


@pytest.mark.parametrize("bad", [0, -3, 1.5, "64", None, True, float("nan"), [64]])
def test_invalid_channels_are_refused(bad: object) -> None:
    for name in attnzoo.names():
        entry = registry.find(name)
        c = entry.signature.parameters.get("c")
        if c is not None and c.default is not bad:
            with pytest.raises((ValueError, TypeError), match=r"\bc="):
                attnzoo.build(name, **{**entry.example, "c": bad})


def test_values_are_checked_against_annotations(scratch: None) -> None:
    enter()
    assert attnzoo.build("twice", c=4, factors=[1, 2]).factors == (1, 2)
    assert attnzoo.build("twice", c=4, shift=1).shift == 1.0
    with pytest.raises(TypeError, match=r"factors\[1\]='a' must be int, not str"):
        attnzoo.build("twice", c=4, factors=[1, "a"])
    with pytest.raises(ValueError, match="shift=nan must be finite"):
        attnzoo.build("twice", c=4, shift=float("nan"))
    with pytest.raises(TypeError, match="factors=3 must be a list or tuple"):
        attnzoo.build("twice", c=4, factors=3)


def test_build_sets_device_and_dtype() -> None:
    block = attnzoo.build("se", 64, device="meta", dtype=torch.float16)
    assert all(p.is_meta and p.dtype == torch.float16 for p in block.parameters())
    assert attnzoo.build("se", 64, device=None, dtype=None).fc1.weight.dtype == torch.float32
    with pytest.raises(ValueError, match=r"dtype=torch\.int64 must be a floating"):
        attnzoo.build("se", 64, dtype=torch.int64)
    with pytest.raises(ValueError, match="device='gpu' cannot be used here"):
        attnzoo.build("se", 64, device="gpu")
    with pytest.raises(ValueError, match=r"c=1000000000000 must be below 2\*\*31"):
        attnzoo.build("se", 10**12)
    maker = functools.partial(attnzoo.build, "se", reduction=4)
    assert maker(8, device="cpu", dtype=torch.float64).fc1.weight.shape == (2, 8)


def test_names_are_sorted_and_filtered() -> None:
    everything = attnzoo.names()
    assert everything == sorted(everything)
    assert "se" in attnzoo.names(layout="image", family="channel", text="SQUEEZE")
    assert attnzoo.names(text="no such words anywhere") == []
    for layout in ("image", "sequence"):
        assert set(attnzoo.names(layout=layout)) <= set(everything)
    with pytest.raises(ValueError, match=r"layout='images' must be one of .*did you mean 'image'"):
        attnzoo.names(layout="images")  # type: ignore[arg-type]


def test_filters_are_checked() -> None:
    with pytest.raises(TypeError, match="text=3 must be a str"):
        attnzoo.names(text=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="layout=3 must be one of"):
        attnzoo.names(layout=3)  # type: ignore[arg-type]


def test_describe_is_a_typed_record() -> None:
    record = attnzoo.describe("se")
    assert isinstance(record, attnzoo.Description)
    assert record.layout == "image"
    assert record.defaults == {"reduction": 16, "bias": False}
    assert record.params == record.macs == 2 * 64 * 4
    assert "1709.01507" in record.paper
    assert list(record.supported) == list(capabilities.CAPABILITIES)
    json.dumps(record.defaults | record.example)


def test_registering_a_users_block(scratch: None) -> None:
    cls = enter(limits={"compile": "it was never tried"})
    assert cls is Twice
    assert "twice" in attnzoo.names()
    assert attnzoo.describe("twice").title == "Doubles its input"
    assert attnzoo.describe("twice").supported["compile"] == "no: it was never tried"
    assert attnzoo.describe("twice").supported["export"] == capabilities.NOT_TESTED
    assert attnzoo.build("twice", 4)(torch.ones(1, 4, 2, 2)).sum() == 32
    with pytest.raises(ValueError, match="a block named 'twice' is registered already"):
        enter()


def test_a_name_and_a_layout_are_enough(scratch: None) -> None:
    attnzoo.register("bare", layout="image")(Twice)
    record = attnzoo.describe("bare")
    assert (record.family, record.example, record.params) == ("other", {"c": 64}, 0)
    assert attnzoo.verify("bare") == []
    assert attnzoo.measure("bare", min_time=0.01).macs == 0


def test_invalid_registrations_are_refused(scratch: None) -> None:
    with pytest.raises(ValueError, match="lower-case"):
        enter("Twice")
    with pytest.raises(ValueError, match="the example of 'twice' does not fit"):
        enter(example={"channels": 4})
    with pytest.raises(ValueError, match="layout='img' must be one of"):
        enter(layout="img")
    with pytest.raises(ValueError, match="needs inputs="):
        enter(layout="features")
    with pytest.raises(ValueError, match="limits='flying' must be one of"):
        enter(limits={"flying": "no wings"})
    for key in ("input_size", "upstream", "known_variants", "limits", "inputs"):
        with pytest.raises(TypeError, match=f"{key}=3 must be"):
            enter(**{key: 3})
    with pytest.raises(TypeError, match=r"takes an nn\.Module class"):
        attnzoo.register("f", layout="image", family="channel", example={})(len)  # type: ignore[arg-type]


def test_many_threads_register_and_build(scratch: None, monkeypatch: pytest.MonkeyPatch) -> None:
    enforce = registry.signature.enforce_signature

    def slowly(name: str, cls: type[nn.Module]) -> None:
        time.sleep(0.005)  # between the look for the name and its entry
        enforce(name, cls)

    monkeypatch.setattr(registry.signature, "enforce_signature", slowly)
    errors: list[BaseException] = []
    won: list[int] = []

    def work(i: int) -> None:
        try:
            enter(f"mine_{i}")
            attnzoo.build("se", 16)
            attnzoo.names()
            enter("contested")
            won.append(i)
        except ValueError as error:
            if "registered already" not in str(error):
                errors.append(error)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(won) == 1
    assert sum(name.startswith("mine_") for name in attnzoo.names()) == 16


@pytest.mark.parametrize(
    ("name", "options", "kind", "words"),
    [
        ("2se", {}, ValueError, "name='2se' must be a str of lower-case letters"),
        ("_se", {}, ValueError, "name='_se' must be"),
        ("se!", {}, ValueError, "name='se!' must be"),
        ("", {}, ValueError, "name='' must be"),
        ("twice", {"layout": ()}, ValueError, r"layout=\(\) must name at least one layout"),
        ("twice", {"layout": ("image", "img")}, ValueError, "layout='img' must be one of"),
        ("twice", {"family": "chanel"}, ValueError, "family='chanel' .* did you mean 'channel'"),
        ("twice", {"example": [("c", 4)]}, TypeError, "example=.* must be a mapping"),
        ("twice", {"input_size": (2, 3, 4, 5)}, TypeError, "must be an attnzoo.InputSize of ints"),
        ("twice", {"input_size": attnzoo.InputSize(0)}, TypeError, "of ints of at least 1"),
        ("twice", {"upstream": [3]}, TypeError, r"upstream=\[3\] must be a list of Mapping"),
        ("twice", {"known_variants": [{}]}, TypeError, "must be a list of KnownVariant"),
    ],
)
def test_each_part_of_a_registration_is_checked(
    scratch: None, name: str, options: dict[str, object], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        enter(name, **options)
    with pytest.raises(TypeError, match=r"takes an nn\.Module class, not <class 'int'>"):
        attnzoo.register("whole", int, layout="image")  # type: ignore[arg-type]


class Counted(nn.Module):
    """Counts in `macs` what runs in eval mode.

    Paper: Someone, 2026.
    Math: y = w x
        for every pixel.
    """

    def __init__(self, c: int = 4, *, macs_of: str = "method") -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, c, 1)
        if macs_of == "number":
            self.macs = 5  # type: ignore[assignment]
        elif macs_of == "nothing":
            self.macs = None  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise RuntimeError("train mode")
        return self.conv(x)

    def macs(self, size: attnzoo.InputSize) -> int:
        return 16 * size.height * size.width


def test_costs_are_of_one_sample_of_the_blocks_own_size(scratch: None) -> None:
    size = attnzoo.InputSize(batch=3, height=5, width=7)
    attnzoo.register("counted", Counted, layout="image", example={"c": 4}, input_size=size)
    entry = registry.find("counted")
    assert entry.closed_form() == (20, 16 * 35, None)
    assert entry.closed_form(size._replace(width=1)) == (20, 16 * 5, None)
    assert entry.executed() == 16 * 35
    assert entry.executed(size._replace(width=1)) == 16 * 5
    assert entry.closed_form(macs_of="number").macs is None
    assert entry.closed_form(macs_of="nothing").macs is None
    assert registry.Cost(1, 2).executed == 2
    assert registry.Cost(1, 2, 3).executed == 3
    record = attnzoo.describe("counted")
    assert (record.macs, record.macs_executed) == (16 * 35, 16 * 35)
    assert (record.title, record.paper) == (
        "Counts in `macs` what runs in eval mode",
        "Someone, 2026.",
    )
    assert record.math == "y = w x\nfor every pixel."
    record.example["c"] = 9
    assert registry.find("counted").example == {"c": 4}


def test_a_block_of_an_uncounted_operator_has_no_count_of_what_runs(scratch: None) -> None:
    class Strange(Twice):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.bilinear(x, x, x.new_ones(14, 14, 14))

    attnzoo.register("strange", Strange, layout="image", example={"c": 4})
    assert attnzoo.describe("strange").macs_executed is None


def test_filters_look_at_every_layout_at_the_family_and_at_the_name(scratch: None) -> None:
    enter("aaa_quux", layout=("sequence", "image"))
    assert attnzoo.names()[0] == "aaa_quux"
    assert attnzoo.names(text="a_quux") == ["aaa_quux"]
    assert "aaa_quux" in attnzoo.names(layout="image")
    assert "aaa_quux" in attnzoo.names(layout="sequence")
    assert "aaa_quux" not in attnzoo.names(layout="pair")
    assert "aaa_quux" not in attnzoo.names(family="token")
    with pytest.raises(ValueError, match="family='tokens' must be one of"):
        attnzoo.names(family="tokens")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"lists all {len(attnzoo.names())}$"):
        attnzoo.build("no_such_block")


def test_a_registered_class_checks_its_own_calls(scratch: None) -> None:
    class Checked(nn.Module):
        def __init__(self, c: int) -> None:
            super().__init__()

    attnzoo.register("checked", Checked, layout="image", example={"c": 4})
    with pytest.raises(TypeError, match="checked: c='4' must be int, not str"):
        Checked("4")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("layout", "shapes"),
    [
        ("image", {"x": (2, 4, 14, 14)}),
        ("sequence", {"x": (2, 24, 4)}),
        ("image_series", {"x": (2, 24, 4, 14, 14)}),
        (("sequence", "image"), {"x": (2, 24, 4)}),
        ("pair", {"x": (2, 4, 14, 14), "y": (2, 4, 14, 14)}),
    ],
)
def test_example_inputs_follow_the_layout(
    scratch: None, layout: str | tuple[str, ...], shapes: dict[str, tuple[int, ...]]
) -> None:
    enter(layout=layout)
    entry = registry.find("twice")
    inputs = entry.inputs(lambda *shape: torch.randn(shape), attnzoo.InputSize(), {"c": 4})
    assert {key: value.shape for key, value in inputs.items()} == shapes  # type: ignore[union-attr]
    assert len({t.data_ptr() for t in inputs.values()}) == len(inputs)  # type: ignore[union-attr]
    other = entry.inputs(
        lambda *shape: torch.randn(shape), attnzoo.InputSize(), {"c": 4, "layout": "image"}
    )
    assert layout == "pair" or other["x"].ndim == 4  # type: ignore[union-attr]
