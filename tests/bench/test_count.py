"""Counts: closed forms, the dispatcher, torch's counter and fvcore's agree to the last MAC."""

import copy
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import attnzoo
from attnzoo import InputSize
from attnzoo.cli import main
from attnzoo.cost import counter, operators
from attnzoo.cost.fvcore import fvcore_macs
from attnzoo.reference.cases import Case, cases
from attnzoo.registry import Entry, Inputs, find
from attnzoo.testing.inputs import make_inputs
from attnzoo.testing.work import fvcore_count, saved_bytes, work

import published
from contract import ODD, blocks

Config = dict[str, Any]
TRANSCRIBED = set(attnzoo.names()) & set(dir(published))


def configs(entry: Entry) -> Iterator[tuple[Config, InputSize]]:
    """The example at two sizes, changed one option at a time; the reference cases at theirs."""
    example = dict(entry.example)
    bound = entry.bind(**example)
    changed = [
        {key: value}
        for key, parameter in entry.signature.parameters.items()
        for value in others(bound[key], parameter.annotation)
    ]
    yield example, entry.input_size
    for config in ({}, *changed):
        yield {**example, **config}, ODD
    for case in map(Case.load, cases(entry.name)):
        yield case.config, extent_of(entry, case)


def others(value: Any, annotation: Any) -> list[Any]:
    """Other values that an option may have."""
    if isinstance(value, tuple):
        return [value[:-1], value[::-1]]
    choices = [
        choice
        for kind in (annotation, *get_args(annotation))
        if get_origin(kind) is Literal
        for choice in get_args(kind)
    ]
    if choices:
        return [choice for choice in choices if choice != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [2 * value, value + 1]
    return []


def extent_of(entry: Entry, case: Case) -> InputSize:
    """The size of a reference case's first input."""
    shape = next(iter(case.part("input").values())).shape
    layout = case.config.get("layout", entry.layouts[0])
    if layout == "sequence":
        return entry.input_size._replace(steps=shape[-2])
    if layout in ("image", "image_series"):
        return entry.input_size._replace(steps=shape[1], height=shape[-2], width=shape[-1])
    return entry.input_size


def built(entry: Entry, config: Config, extent: InputSize) -> tuple[nn.Module, Inputs] | None:
    """Block and inputs without numbers, or None where the config is refused."""
    try:
        block = attnzoo.build(entry.name, **config, device="meta")
    except ValueError:
        return None
    return block, make_inputs(entry, config, extent, device="meta")


def counted(block: nn.Module, inputs: Inputs) -> operators.Work | None:
    """Our count; None where the size is refused.

    It is torch's of the same pass. Torch's counter hooks every layer, so that blocks fold none.
    """
    theirs = FlopCounterMode(display=False)
    try:
        with theirs:
            layered = work(block, inputs)
    except ValueError:
        return None
    assert theirs.get_total_flops() == 2 * layered.macs
    return work(block, inputs)


@blocks
def test_stated_macs_are_the_published_or_those_that_run(name: str) -> None:
    """A formula is confirmed by a second one, written from the paper, or by the operators."""
    entry, seen = find(name), 0
    for config, extent in configs(entry):
        made = built(entry, config, extent)
        runs = counted(*made) if made else None
        if made is None or runs is None:
            assert config != entry.example
            continue
        form = entry.closed_form(extent, **config)
        if name in TRANSCRIBED:
            bound = entry.bind(**config)
            assert getattr(published, name)(extent, **bound) == (form.params, form.macs), config
        else:
            assert form.macs in (runs.macs, None), "tests/bench/published.py needs its arithmetic"
        assert entry.executed(extent, **config) == runs.macs, (config, extent)
        seen += 1
    assert seen >= 4


@blocks
def test_what_runs_is_counted_alike_at_any_batch(name: str) -> None:
    entry = find(name)
    config = dict(entry.example)
    made = built(entry, config, entry.input_size._replace(batch=3))
    assert made is not None
    assert (
        entry.executed(None, **config) == work(*made).macs == attnzoo.describe(name).macs_executed
    )


@blocks
def test_fvcore_and_what_it_misses_make_the_same_count(name: str) -> None:
    entry = find(name)
    wanted = [(dict(entry.example), ODD)]
    wanted += [(c.config, extent_of(entry, c)) for c in map(Case.load, cases(name))]
    for config, extent in wanted:
        block = attnzoo.build(name, **config)
        inputs = make_inputs(entry, config, extent)
        found = fvcore_count(block, inputs).exact
        for layer in block.modules():  # as fvcore does, for which folded layers are called
            layer.register_forward_hook(lambda *_: None)
        assert found == work(block, inputs).macs, config
        assert block.training


def test_fvcores_own_number_comes_with_the_names_of_what_it_misses() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.project = nn.LayerNorm(8), nn.Linear(8, 8, bias=False)

        def forward(self, q: torch.Tensor, *, kv: list[torch.Tensor]) -> torch.Tensor:
            y = F.scaled_dot_product_attention(q[:, None], kv[0][:, None], kv[1][:, None])
            return self.project(self.norm(y))

    q, k = torch.randn(1, 5, 8), torch.randn(1, 7, 8)
    found = fvcore_macs(Attention().eval(), (q,), {"kv": [k, k]})
    assert found.missed == {"scaled_dot_product_attention": 2 * 5 * 7 * 8}
    assert list(found.surplus) == ["layer_norm"]
    assert found.macs == 5 * 8 * 8 + found.surplus["layer_norm"]
    assert found.exact == 2 * 5 * 7 * 8 + 5 * 8 * 8


def test_saved_bytes_are_what_autograd_keeps() -> None:
    class Waves(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x.exp() * 2).sin()

    x = torch.randn(2, 3, requires_grad=True)
    assert saved_bytes(Waves(), {"x": x}) == 2 * 2 * 3 * 4  # exp's output and sin's input


def test_saved_bytes_are_of_whole_storages_once_each() -> None:
    """A view keeps all of its storage, two views keep it once; inputs and outputs are free."""
    big, x = torch.zeros(8, 3), torch.randn(2, 3, requires_grad=True)

    def views() -> torch.Tensor:
        return (x * big[:2]).sin().mean() + (x * big[2:4]).sin().mean()

    assert counter.saved_bytes(views) == big.nbytes + 2 * x.nbytes  # and two inputs of sin
    assert counter.saved_bytes(views, [x, big]) == 2 * x.nbytes
    assert counter.saved_bytes(lambda: x.exp(), [x]) == 0  # its result is what it keeps


def test_only_what_can_have_a_gradient_moves_one() -> None:
    block = nn.Linear(3, 4)
    block.bias.requires_grad_(False)
    x, days, mask = torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3) > 0
    y = torch.zeros(2, 4)
    inputs = {"x": x, "days": days, "mask": mask}
    found = counter.traffic(block.parameters(), inputs, (y, days))
    floating = 4 * (12 + 6 + 8)  # weight, x, y
    assert found == (floating + 4 * 4 + 2 * 8 * 6 + 6, 2 * floating + 4 * 4 + 2 * 8 * 6 + 6)


def test_counting_leaves_the_block_as_it_was() -> None:
    block = attnzoo.build("cbam", 32)
    before, fast = copy.deepcopy(block.state_dict()), torch.backends.mha.get_fastpath_enabled()
    frozen = block.get_submodule(
        next(k for k, m in block.named_modules() if "Norm" in str(type(m)))
    )
    frozen.eval()
    work(block, {"x": torch.randn(2, 32, 4, 4)})
    assert block.training
    assert not frozen.training
    assert torch.backends.mha.get_fastpath_enabled() == fast
    after = block.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("fast", [False, True])
def test_the_fast_path_of_attention_is_as_it_was(fast: bool) -> None:
    mha = torch.backends.mha
    before = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(fast)
    try:
        with pytest.raises(ZeroDivisionError):
            counter.count(lambda: 1 // 0)
        assert mha.get_fastpath_enabled() == fast
    finally:
        mha.set_fastpath_enabled(before)


def torch_macs(function: Any, *args: Any) -> int:
    counter = FlopCounterMode(display=False)
    with torch.device("meta"), counter:
        function(*args)
    return counter.get_total_flops() // 2


def closed(name: str, extent: InputSize = ODD, **config: Any) -> int:
    form = find(name).closed_form(extent, **config)
    assert form is not None
    return form.macs


def test_ltae_as_the_authors_compute_it() -> None:
    """Every step is projected and made a key; every head's weights pool its own channels."""
    c, heads, d_k, width, mlp, steps, pixels = 8, 4, 3, 16, (16, 12, 8), ODD.steps, 9 * 11

    def theirs() -> None:
        tokens = F.conv1d(torch.empty(pixels, c, steps), torch.empty(width, c, 1)).mT
        keys = F.linear(tokens, torch.empty(heads * d_k, width)).view(pixels, steps, heads, d_k)
        keys = keys.permute(2, 0, 1, 3).reshape(-1, steps, d_k)
        weights = torch.empty(heads * pixels, 1, d_k) @ keys.mT
        y = weights @ tokens.view(pixels, steps, heads, -1).permute(2, 0, 1, 3).flatten(0, 1)
        y = y.view(heads, pixels, -1).permute(1, 0, 2).reshape(pixels, width)
        F.linear(F.linear(y, torch.empty(12, 16)), torch.empty(8, 12))

    config = {"c": c, "heads": heads, "d_k": d_k, "d_model": width, "mlp": mlp, "dropout": 0.0}
    assert closed("ltae", **config) == torch_macs(theirs)


@pytest.mark.parametrize("size", [(2, 4), (3, 3), (5, 6)])
def test_relu_linear_as_the_authors_compute_it(size: tuple[int, int]) -> None:
    """At most `dim` pixels are multiplied with each other first, more with the values."""
    c, dim, (h, w) = 16, 8, size
    heads, pixels = c // dim, h * w

    def theirs() -> None:
        z = F.conv2d(torch.empty(1, c, h, w), torch.empty(3 * c, c, 1, 1))
        deep = F.conv2d(z, torch.empty(3 * c, 1, 5, 5), padding=2, groups=3 * c)
        F.conv2d(deep, torch.empty(3 * c, dim, 1, 1), groups=3 * heads)
        q, k, v = torch.empty(3, 1, 2 * heads, dim, pixels)
        if pixels > dim:
            (F.pad(v, (0, 0, 0, 1)) @ k.mT) @ q
        else:
            v @ (k.mT @ q)
        F.conv2d(torch.empty(1, 2 * c, h, w), torch.empty(c, 2 * c, 1, 1))

    extent = InputSize(height=h, width=w)
    assert closed("relu_linear", extent, c=c, dim=dim) == torch_macs(theirs)


@pytest.mark.parametrize(
    "steps, windows, inner", [(64, (4, 4, 4), 3), (20, (4, 2), 5), (7, (3,), 9)]
)
def test_pyraformer_counts_the_pairs_of_the_mask(
    steps: int, windows: tuple[int, ...], inner: int
) -> None:
    c, heads, d_k, d_v, f, at = 8, 2, 3, 5, 12, InputSize(steps=steps)
    seen = int((~attnzoo.pyraformer_mask(steps, windows, inner)).sum())
    nodes = len(attnzoo.pyraformer_mask(steps, windows, inner))

    def theirs() -> None:
        x = torch.empty(nodes, c)
        for width in (d_k, d_k, d_v):
            F.linear(x, torch.empty(heads * width, c))
        F.linear(torch.empty(nodes, heads * d_v), torch.empty(c, heads * d_v))
        F.linear(F.linear(x, torch.empty(f, c)), torch.empty(c, f))

    config = {"c": c, "windows": windows, "bottleneck": 2}
    whole = closed(
        "pyraformer", at, **config, heads=heads, d_k=d_k, d_v=d_v, d_inner=f, inner=inner
    )
    pyramid = closed("pyraformer_cscm", at, **config)
    assert whole - pyramid == torch_macs(theirs) + heads * seen * (d_k + d_v)


def test_dilated_inception_counts_the_steps_that_are_kept() -> None:
    def theirs() -> None:
        for k in (2, 3, 6, 7):  # each branch on the steps that its last `steps - 12` results need
            x = torch.empty(1, 8, ODD.steps + 12 - (7 - k) * 2)
            F.conv1d(x, torch.empty(3, 8, k), dilation=2)

    config = {"c": 8, "c_out": 12, "dilation": 2}
    assert closed("dilated_inception", **config) == torch_macs(theirs)


def test_one_sample_is_counted_whatever_the_batch() -> None:
    entry = find("ltae")  # folds weights once a call, of which a batch shares
    works = {
        work(*made)
        for n in (1, 2, 5)
        if (made := built(entry, dict(entry.example), ODD._replace(batch=n)))
    }
    assert len(works) == 1


def test_numbers_and_their_absence_give_one_count() -> None:
    entry, config = find("agent"), {"c": 8, "heads": 2, "agents": 9}
    real = attnzoo.build("agent", **config), make_inputs(entry, config, ODD)
    assert work(*real) == counted(*built(entry, config, ODD) or real)


@pytest.mark.parametrize("out", [False, True])
def test_results_written_to_an_argument_count(out: bool) -> None:
    a, b, y = torch.ones(3, 4), torch.ones(4, 5), torch.empty(3, 5)
    values, at = torch.empty(3), torch.empty(3, dtype=torch.int64)

    def products() -> None:
        torch.mm(a, b, out=y) if out else torch.mm(a, b)
        torch.mul(y, y, out=y) if out else torch.mul(y, y)
        torch.max(y, 1, out=(values, at)) if out else torch.max(y, 1)

    assert counter.count(products) == (3 * 4 * 5, 15 + 15)


def test_describe_and_show_tell_both_counts(capsys: pytest.CaptureFixture[str]) -> None:
    record = attnzoo.describe("dilated_inception")
    assert (record.macs, record.macs_executed) == (110_592, 172_032)
    main(["show", "dilated_inception"])
    assert "110,592 multiply-adds" in (shown := capsys.readouterr().out)
    assert "172,032 multiply-adds as computed here" in shown
    main(["show", "se"])
    assert "as computed here" not in capsys.readouterr().out


UNSEEN: list[tuple[str, dict[str, Any], int]] = [  # the specifications' forms at other sizes
    ("se", {"c": 48, "reduction": 6}, 2 * 48 * 8),
    ("cbam", {"c": 48, "reduction": 8, "kernel_size": 5}, 2 * 2 * 48 * 6 + 2 * 25 * 143),
    ("coordatt", {"c": 48, "reduction": 4}, 24 * 2 * 48 * 12),
    ("triplet", {"c": 48, "kernel_size": 5}, 2 * 25 * (48 * 13 + 48 * 11 + 143)),
    ("danet_channel", {"c": 48}, 2 * 48 * 48 * 143),
    ("danet_position", {"c": 48, "reduction": 4}, 143 * 48 * (2 * 12 + 48) + 143**2 * 60),
    ("swiftformer", {"c": 48, "token_dim": 40, "heads": 2}, 143 * (7680 + 80 + 6400 + 3200)),
    ("mamba", {"c": 40, "state": 8}, 19 * (6400 + 80 * 19 + 240 + 3200 + 80 * 4 + 80 * 8)),
    ("m_gtu", {"c": 16, "length": 19}, 512 * (17 * 3 + 15 * 5 + 13 * 7) + 16 * 45 * 19),
]


@pytest.mark.parametrize(("name", "config", "macs"), UNSEEN, ids=[name for name, *_ in UNSEEN])
def test_a_measured_row_has_the_specifications_count(
    name: str, config: dict[str, Any], macs: int
) -> None:
    row = attnzoo.measure(
        name, **config, batch=3, size=(11, 13), steps=19, threads=1, min_time=0.002
    )
    assert row.to_json()["macs"] == macs
