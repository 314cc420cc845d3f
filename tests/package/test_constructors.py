"""Calling a class directly raises the same errors as `build`."""

import copy
import inspect
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch

import attnzoo
from attnzoo.registry import find

from contract import blocks

REFUSED = [
    ("trend_aware", {"c": 8, "mode": "sideways"}, "mode='sideways' must be one of 'centered'"),
    ("pyraformer", {"c": 8, "output": "all"}, "output='all' must be one of"),
    ("ltae", {"c": 16, "variant": "3d"}, "variant='3d' must be one of '2d', 'original'"),
    ("ltae", {"c": 16, "layout": "image"}, "did you mean 'image_series'"),
    ("pyraformer_cscm", {"c": 8, "kind": "median"}, "kind='median' must be one of"),
    ("dtm", {"sizes": ((4, 2, 2),), "pool": "sum"}, "pool='sum' must be one of"),
    ("dtm", {"sizes": ((4, 2, 2),), "tokenizer": "conv"}, "tokenizer='conv' must be one of"),
    ("dia", {"c": 4, "modulated": "yes"}, "modulated='yes' must be bool, not str"),
    ("agent", {"c": 8, "qkv_bias": 1}, "qkv_bias=1 must be bool or None, not int"),
    ("mamba", {"c": 8, "dt_rank": "all"}, "dt_rank='all' must be int or 'auto', not str"),
    ("mamba", {"c": 8, "dt_scale": -1}, "dt_scale=-1.0 must be at least 0 and at most"),
    ("mamba", {"c": 8, "dt_max": 1e30}, r"dt_max=1e\+30 must be above 0 and at most"),
    ("mamba", {"c": 8, "expand": 1e30}, "parameters; a block has fewer"),
    ("se", {"c": 10**9}, "c=1000000000, reduction=16, bias=False.* parameters; a block has fewer"),
    ("se", {"c": 10**30}, r"c=1000000000000000000000000000000 must be below 2\*\*31"),
    ("se", {"c": 10**5000}, r"c=2\*\*16609 and more must be below"),
    ("se", {"c": 8, "reductoin": 2}, "did you mean 'reduction'.*its signature is se"),
    ("se", {}, "missing a required argument: 'c'; its signature is se"),
    ("sknet", {"c": 64, "branches": 10**9}, "branches=1000000000 must be .*at most 1000"),
    ("ct_msa", {"c": 8, "depth": 10**9}, "depth=1000000000 must be .*at most 1000"),
    ("pyraformer", {"c": 8, "n_layers": 10**9}, "n_layers=1000000000 must be .*at most 1000"),
    ("ltae", {"c": 128, "d_model": None}, r"mlp\[0\]=256 must be c=128.*d_model=None takes"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "config", "match"), REFUSED)
def test_class_and_build_raise_the_same_errors(
    name: str, config: dict[str, object], match: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=match) as by_name:
        attnzoo.build(name, **config)
    with pytest.raises((ValueError, TypeError), match=match) as by_class:
        find(name).cls(**config)
    assert str(by_name.value) == str(by_class.value)
    assert by_name.type is by_class.type


@blocks
def test_the_checked_class_keeps_its_signature_and_can_be_subclassed(name: str) -> None:
    cls, example = find(name).cls, dict(find(name).example)
    assert next(iter(inspect.signature(cls).parameters)) in ("c", "dims", "sizes")
    assert inspect.signature(cls.__init__).parameters["self"]
    assert cls.__init__.__module__ == cls.__module__

    class Heir(cls):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__(**example)

    torch.manual_seed(0)
    block = cls(**example)
    torch.manual_seed(0)
    heir = Heir()
    for twin in (copy.deepcopy(block), pickle.loads(pickle.dumps(block)), heir):
        state = twin.state_dict()
        assert all(torch.equal(state[key], value) for key, value in block.state_dict().items())
    with torch.device("meta"):
        assert all(p.is_meta for p in cls(**example).parameters())


def test_huge_blocks_can_be_counted_on_meta() -> None:
    block = attnzoo.build("se", 10**6, device="meta")
    assert sum(p.numel() for p in block.parameters()) == 2 * 10**6 * 62_500
    with pytest.raises(ValueError, match="parameters; a block has fewer"):
        attnzoo.build("se", 2**31 - 1, reduction=1, device="meta")


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.complex64, torch.int8, "float32", 3, np.ones(2)]
)
def test_unsupported_dtypes_are_refused(dtype: object) -> None:
    with pytest.raises(ValueError, match=r"dtype=.* must be a floating torch\.dtype: torch\.float"):
        attnzoo.build("se", 16, dtype=dtype)


def test_spans_beyond_the_series_take_no_memory() -> None:
    """A dilation or span beyond the series takes no memory and covers the whole series."""
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    for name, key, base in (
        ("dilated_inception", "dilation", {}),
        ("pyraformer", "inner", {"windows": (2, 2)}),
    ):
        found = []
        for value in (25, 10**9 + 1):
            torch.manual_seed(0)
            found.append(attnzoo.build(name, 8, **base, **{key: value}).double().eval()(x))
        assert torch.equal(*found)


def endless() -> list[object]:
    items: list[object] = []
    items.append(items)
    return items


def wide_and_deep(value: object = 0) -> object:
    for _ in range(6):
        value = [value] * 16  # 16 million items, by 96 references
    return value


class Mute:
    """An object whose repr raises."""

    def __repr__(self) -> str:
        raise RuntimeError("no words")


UNSPEAKABLE = [
    endless(), wide_and_deep(), Mute(), {"a": 10**5000}, Fraction(10**5000, 3), "x" * 10**6,
]  # fmt: skip


@pytest.mark.parametrize("value", UNSPEAKABLE, ids=lambda value: type(value).__name__)
def test_errors_about_values_with_a_long_repr_are_short(value: object) -> None:
    for match, call in (
        ("c=", lambda: attnzoo.build("se", value)),
        ("device=", lambda: attnzoo.build("se", 16, device=value)),
        ("named|name is", lambda: attnzoo.build(value, 16)),
        ("argument|keywords", lambda: attnzoo.build("se", 16, **{"x" * 10**6: value})),
        ("takes an nn.Module", lambda: attnzoo.register("mute", layout="image")(value)),
    ):
        with pytest.raises((ValueError, TypeError), match=match) as caught:
            call()
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize("device", ["mps", "hpu", "cuda:99", "nowhere", 10**30])
def test_unavailable_devices_are_refused(device: object) -> None:
    with pytest.raises(ValueError, match=r"device=.* cannot be used here") as caught:
        attnzoo.build("se", 16, device=device)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("name", "key"), [("ct_msa", "depth"), ("pyraformer", "n_layers"), ("sknet", "branches")]
)
def test_too_many_layers_are_refused(name: str, key: str) -> None:
    config = {"groups": 1} if name == "sknet" else {"heads": 1}
    with pytest.raises(ValueError, match=f"{key}=100000 must be .*at most 1000"):
        attnzoo.build(name, 4, **config, **{key: 100_000})


def test_mamba_states_are_checked() -> None:
    block = attnzoo.build("mamba", 8)
    x, good = torch.randn(2, 8), attnzoo.build("mamba", 8).initial_state(2)
    for bad, match in (
        ((good.inputs.long(), good.hidden), "state.inputs is torch.int64"),
        ((good.inputs, good.hidden.double()), "state.hidden is torch.float64"),
        ((good.inputs, None), "state.hidden must be a Tensor"),
        ((good.inputs.to("meta"), good.hidden), "state.inputs is on meta"),
        ((good.inputs[:, :1], good.hidden), "state.inputs has shape"),
        (3, "state must be what step returned"),
    ):
        with pytest.raises((ValueError, TypeError), match=match):
            block.step(x, bad)
    for batch in (-1, 1.5, "2", None):
        with pytest.raises(ValueError, match=r"batch\[0\]=.* must be an int of at least 0"):
            block.initial_state(batch)
