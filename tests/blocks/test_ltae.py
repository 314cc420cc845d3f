"""L-TAE against the authors' dense formulas; its masks, dropout, memory and counts."""

import copy
import math
import tracemalloc
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import attnzoo
from attnzoo.testing.closeness import assert_close
from attnzoo.testing.inputs import randomize_parameters
from attnzoo.testing.work import work

from distributions import assert_normal, assert_uniform

SMALL: dict[str, Any] = {"c": 12, "heads": 3, "d_k": 5, "d_model": 18, "mlp": [18, 15, 9]}


def built(**config: Any) -> nn.Module:
    settings = {**SMALL, "dropout": 0.0, **config}
    torch.manual_seed(3)
    block = attnzoo.build("ltae", **settings, dtype=torch.float64)
    randomize_parameters(block)
    return block


def codes(days: Tensor, d: int, period: int, heads: int, powers: torch.dtype) -> Tensor:
    columns = []
    for i in range(d):
        exponent = torch.tensor(2 * (i // 2) / d).to(powers)
        denominator = torch.pow(torch.tensor(float(period)).to(powers), exponent).double()
        columns.append((torch.sin, torch.cos)[i % 2](days.double() / denominator))
    return torch.stack(columns, -1).repeat(1, 1, heads)


def dense(
    block: Any, x: Tensor, days: Tensor | None = None, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The authors' formulas on (N, T, C), without folding."""
    h, original = block.heads, block.variant == "original"
    if original:
        e = block.in_norm(x)
    else:
        e = F.group_norm(x.mT, h, block.in_norm.weight, block.in_norm.bias).mT
    if block.inconv is not None:
        e = F.linear(e, block.inconv.weight.squeeze(2), block.inconv.bias)
    n, t, width = e.shape
    if original:
        if block.inconv is not None:
            e = block.inconv_norm(e.mT).mT
        first = 0 if isinstance(block.positions, tuple) else 1
        e = e + block.position_enc.weight[first : first + t]
    elif days is not None:
        e = e + codes(days, width // h, block.period, h, torch.float32)
    keys = block.key(e).view(n, t, h, block.d_k)
    scores = torch.einsum("hk,nthk->hnt", block.query, keys) / math.sqrt(block.d_k)
    if mask is not None:
        scores = scores.masked_fill(mask, -1000.0)
    weights = scores.softmax(2)
    values = e.view(n, t, h, width // h)
    y = torch.einsum("hnt,nthd->nhd", weights, values).flatten(1)
    y = block.mlp(y)
    if original:
        return block.out_norm(y), weights
    return F.group_norm(y, h, block.out_norm.weight, block.out_norm.bias), weights


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"d_model": None, "mlp": [12, 9]},
        {"positions": False, "mlp": [18]},
        {"d_model": 15, "mlp": [15, 6], "period": 365},  # an odd width of the codes
        {"variant": "original", "length": 7},
        {"variant": "original", "length": 7, "positions": [3, 4, 9.5, 20, 21, 40, 41, 44]},
        {"variant": "original", "length": 9, "d_model": None, "mlp": [12, 5]},
    ],
    ids=str,
)
def test_equals_the_dense_formulas(config: dict[str, Any], train: bool) -> None:
    block = built(**config, layout="sequence").train(train)
    x = torch.randn(5, 7, 12, dtype=torch.float64, requires_grad=True)
    mask = torch.zeros(5, 7, dtype=torch.bool)
    mask[1, 4:] = mask[2, ::2] = mask[3] = True
    coded = block.variant == "2d" and block.positions
    days = torch.randint(0, 400, (5, 7)) if coded else None
    twin = copy.deepcopy(block)
    wanted = dense(twin, x, days, mask)
    found = block(x, positions=days, key_padding_mask=mask, need_weights=True)
    assert_close(found, wanted)
    assert_close(dict(block.named_buffers()), dict(twin.named_buffers()))
    grads = [torch.randn_like(w) for w in wanted]
    assert_close(
        torch.autograd.grad(found, [x, *_trained(block)], grads),
        torch.autograd.grad(wanted, [x, *_trained(twin)], grads),
    )


def _trained(block: nn.Module) -> list[nn.Parameter]:
    return [p for p in block.parameters() if p.requires_grad]


def test_layouts_agree() -> None:
    block, pixels = built().eval(), built(layout="sequence").eval()
    x = torch.randn(2, 7, 12, 3, 4, dtype=torch.float64)
    days, mask = torch.arange(14).view(2, 7), torch.rand(2, 7) < 0.3
    y, weights = block(x, positions=days, key_padding_mask=mask, need_weights=True)
    assert y.shape == (2, 9, 3, 4)
    assert weights.shape == (3, 2, 7, 3, 4)
    series = x.permute(0, 3, 4, 1, 2)  # B H W T C: any number of leading axes
    spread = [v[:, None, None].expand(2, 3, 4, 7) for v in (days, mask)]
    y2, weights2 = pixels(
        series, positions=spread[0], key_padding_mask=spread[1], need_weights=True
    )
    assert_close([y2.movedim(3, 1), weights2.movedim(4, 2)], [y, weights])
    one = pixels(series[0, 0, 0], positions=days[0], key_padding_mask=mask[0])
    assert_close(one, y[0, :, 0, 0])
    assert_close(pixels(series, positions=days[0])[0], pixels(series[0], positions=days[0]))


def test_padding_invariant_ignores_padding() -> None:
    x = torch.randn(2, 9, 12, 2, 3, dtype=torch.float64)
    days, mask = torch.arange(9), torch.zeros(2, 9, dtype=torch.bool)
    mask[:, 6:] = True
    other = x.clone()
    other[:, 6:] = math.nan
    for train in (False, True):
        block = built(padding_invariant=True).train(train)
        found = block(other, positions=days, key_padding_mask=mask)
        assert_close(found, block(x[:, :6], positions=days[:6]))
        assert_close(
            block(x, positions=days),
            built().train(train)(x, positions=days),  # without padding nothing changes
        )
    moved = built().eval()
    whole = moved(x, positions=days, key_padding_mask=mask)
    cut = moved(x[:, :6], positions=days[:6])
    assert (whole - cut).abs().max().item() > 0.1  # the authors' leak is the default


@pytest.mark.parametrize("invariant", [False, True])
def test_fully_padded_samples_are_finite_with_equal_weights(invariant: bool) -> None:
    block = built(padding_invariant=invariant).eval()
    x = torch.randn(2, 5, 12, 2, 2, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True] * 5, [False, True] * 2 + [False]])
    y, weights = block(x, positions=torch.arange(5), key_padding_mask=mask, need_weights=True)
    assert y.isfinite().all()
    assert_close(weights[:, 0], torch.full_like(weights[:, 0], 0.2))
    assert (weights[:, 1, mask[1]] == 0).all()
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    assert grad.isfinite().all()


def test_padding_works_with_very_low_scores() -> None:
    block = built(padding_invariant=True).eval()
    with torch.no_grad():
        block.query *= 1e4
    x = torch.randn(2, 5, 12, 2, 2, dtype=torch.float64)
    mask = torch.tensor([[False, False, True, True, True]] * 2)
    _, weights = block(x, positions=torch.arange(5), key_padding_mask=mask, need_weights=True)
    assert (weights[:, :, 2:] == 0).all()


def test_dropout_covers_weights_and_output() -> None:
    x, days = torch.randn(4, 40, 12, 5, 5, dtype=torch.float64), torch.arange(40)
    block = built(dropout=0.5).train()
    _, weights = block(x, positions=days, need_weights=True)
    assert 0.05 < float((weights == 0).double().mean()) < 0.15  # 0.1 at most, as the authors have
    block = built(dropout=0.02).train()
    _, weights = block(x, positions=days, need_weights=True)
    assert 0.005 < float((weights == 0).double().mean()) < 0.05
    kept = built(dropout=0.5).train()
    kept.dropout.p = 0.0
    assert_close(kept(x, positions=days), built().train()(x, positions=days))
    plain = built().eval()(x, positions=days)
    assert_close(built(dropout=0.5).eval()(x, positions=days), plain)


def test_returned_weights_include_dropout() -> None:
    block = built(dropout=0.3, mlp=[18]).train()
    block.dropout.register_forward_hook(lambda module, args, out: args[0])
    with torch.no_grad():
        block.out_norm.weight.fill_(1)
        block.out_norm.bias.fill_(0)
    x, days = torch.randn(2, 6, 12, 1, 1, dtype=torch.float64), torch.arange(6)
    y, weights = block(x, positions=days, need_weights=True)
    n = F.group_norm(x[..., 0, 0].mT, 3, block.in_norm.weight, block.in_norm.bias).mT
    e = F.linear(n, block.inconv.weight.squeeze(2), block.inconv.bias)
    e = e + codes(days.expand(2, 6), 6, 1000, 3, torch.float32)
    pooled = torch.einsum("hbt,bthd->bhd", weights[..., 0, 0], e.view(2, 6, 3, 6)).flatten(1)
    assert_close(y[..., 0, 0], F.group_norm(pooled, 3))


class _Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, Tensor):
                self.size = max(self.size, value.numel())
        return out


def test_no_tensor_of_all_projected_steps_exists() -> None:
    block = attnzoo.build("ltae", c=16, heads=4, d_model=256, mlp=[256, 16])
    x = torch.randn(2, 30, 16, 6, 6, requires_grad=True)
    days = torch.arange(30)
    with _Largest() as largest:
        block(x, positions=days).sum().backward()
    assert largest.size <= x.numel()  # d_model / c = 16 times less than (B H W, T, d_model)


def executed(block: Any, size: attnzoo.InputSize) -> int:
    """Multiply-adds of one sample: of the folded form, or of "original", without folding."""
    pixels = size.height * size.width if block.layout == "image_series" else 1
    c, width, heads, steps = block.c, block.width, block.heads, size.steps
    hidden = sum(m.weight.numel() for m in block.mlp if isinstance(m, nn.Linear))
    projected, coded = block.inconv is not None, block.variant == "2d" and block.positions
    codes = coded * steps * width * (1 + pixels)  # in the scores once, in the sums at each pixel
    if block.variant == "2d" and projected:
        folded = pixels * (2 * steps * heads * c + c * width) + heads * width * c
        return folded + codes + pixels * hidden
    step = heads * width + width + projected * c * width
    return pixels * (steps * step + hidden) + codes


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"d_model": None, "mlp": [12, 9]},
        {"positions": False},
        {"layout": "sequence"},
        {"variant": "original", "length": 7},
        {"variant": "original", "length": 7, "positions": [0, 1, 2, 3, 4, 5, 6]},
        {"variant": "original", "length": 7, "d_model": None, "mlp": [12, 5]},
    ],
    ids=str,
)
def test_closed_forms_hold_for_every_option(config: dict[str, Any]) -> None:
    entry = attnzoo.registry.find("ltae")
    settings = {**SMALL, **config}
    extent = attnzoo.InputSize(batch=3, steps=7, height=4, width=5)
    block = attnzoo.build("ltae", **settings)
    inputs = entry.inputs(torch.randn, extent, entry.bind(**settings))
    form = entry.closed_form(extent, **settings)
    assert form is not None
    assert form.params == sum(p.numel() for p in block.parameters())
    assert form.macs == block.macs(extent)
    assert work(block, inputs).macs == executed(block, extent)


@pytest.mark.parametrize("variant", ["2d", "original"])
def test_initial_distributions(variant: str) -> None:
    """Queries and keys from N(0, 2 / d_k), torch's default for the rest."""
    torch.manual_seed(0)
    config = {"heads": 64, "d_k": 8, "d_model": 512, "mlp": [512, 256], "variant": variant}
    block = attnzoo.build("ltae", 128, **config)
    for weight in (block.query, block.key.weight):
        assert_normal(weight, 0.5)
    assert_uniform(block.key.bias, 512**-0.5)
    assert_uniform(block.inconv.weight, 128**-0.5)
    assert_uniform(block.inconv.bias, 128**-0.5)
    assert_uniform(block.mlp[0].weight, 512**-0.5)
    assert_uniform(block.mlp[0].bias, 512**-0.5)
    norms = [block.in_norm, block.mlp[1], block.out_norm]
    for norm in norms if variant == "2d" else [*norms, block.inconv_norm]:
        assert (norm.weight == 1).all()
        assert (norm.bias == 0).all()
        assert norm.eps == 1e-5
    assert block.mlp[1].momentum == 0.1


def test_one_pixel_with_one_channel_per_group_gives_the_bias() -> None:
    """torch's own layer raises an error for one value."""
    block = built(mlp=[18, 3], layout="sequence").eval()
    y = block(torch.randn(7, 12, dtype=torch.float64), positions=torch.arange(7))
    assert_close(y, block.out_norm.bias)


@pytest.mark.parametrize("config", [{"variant": "original", "length": 7}, {"d_model": 18}], ids=str)
def test_half_precision_parameters_accept_float32_inputs_under_autocast(
    config: dict[str, Any],
) -> None:
    block = built(**config, layout="sequence").eval()
    x, days = torch.randn(3, 7, 12), None if "length" in config else torch.arange(7)
    wanted = block(x.double(), positions=days)
    with torch.autocast("cpu", torch.bfloat16):
        found = block.bfloat16()(x, positions=days)
    assert_close(found, wanted, torch.bfloat16)


def test_returned_weights_have_the_dtype_of_the_input() -> None:
    block = built(variant="original", length=7).float().eval()  # its table of positions is wider
    x = torch.randn(2, 7, 12, 1, 1, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert block(x, need_weights=True)[1].dtype == torch.bfloat16


def test_a_list_of_positions_limits_the_steps_of_the_unprojected_form() -> None:
    config = {"variant": "original", "d_model": None, "mlp": [12, 5], "positions": [0.0, 2.0, 5.0]}
    block = built(**config).eval()
    assert block(torch.randn(2, 3, 12, 1, 1).double()).shape == (2, 5, 1, 1)
    with pytest.raises(ValueError, match=r"x has 4 steps; .* takes 3 at most"):
        block(torch.randn(2, 4, 12, 1, 1).double())


def test_a_long_table_takes_no_memory_on_meta() -> None:
    tracemalloc.start()
    try:
        block = attnzoo.build("ltae", 256, variant="original", length=10**7, device="meta")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert block.position_enc.weight.shape == (10**7 + 1, 256)


def test_checkpoints_of_the_authors_and_of_copies_load() -> None:
    block = built().float()
    ours = block.state_dict()
    names = {"query": "attention_heads.Q", "key": "attention_heads.fc1_k"}
    theirs = {
        ".".join([names.get(k.split(".")[0], k.split(".")[0]), *k.split(".")[1:]]): v
        for k, v in ours.items()
    }
    theirs["positional_encoder.denom"] = torch.ones(6)
    whole = {f"temporal_encoder.{k}": v for k, v in theirs.items()} | {
        "other.weight": ours["query"]
    }
    for state in (theirs, whole):
        loaded = attnzoo.from_upstream("ltae", state, **SMALL, dropout=0.0)
        assert_close(loaded.state_dict(), ours)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"heads": 5}, r"heads=5 must divide d_model=18"),
        ({"c": 10}, r"heads=3 must divide c=10"),
        ({"mlp": [16, 9]}, r"mlp\[0\]=16 must be d_model=18"),
        ({"mlp": [18, 10]}, r"heads=3 must divide mlp\[-1\]=10"),
        ({"mlp": []}, r"mlp=\(\) must start with d_model=18"),
        ({"d_model": 0}, r"d_model=0 must be at least 1"),
        ({"positions": [1, 2]}, "a list is for variant='original'"),
        ({"positions": None}, "must be True or False"),
        ({"variant": "original", "positions": False}, "positions=False"),
        ({"variant": "original", "padding_invariant": True}, "padding_invariant=True"),
        ({"variant": "original", "positions": [1, 2]}, "length=24"),
        ({"variant": "orignal"}, "did you mean 'original'"),
        ({"dropout": 1.0}, "below 1"),
    ],
)
def test_invalid_options_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attnzoo.build("ltae", **{**SMALL, **config})


def test_invalid_calls_are_refused() -> None:
    block, x = built().eval(), torch.randn(2, 7, 12, 3, 3, dtype=torch.float64)
    days = torch.arange(7)
    with pytest.raises(ValueError, match="positions is missing"):
        block(x)
    with pytest.raises(ValueError, match=r"positions has shape \(2, 6\)"):
        block(x, positions=torch.zeros(2, 6))
    with pytest.raises(TypeError, match="must be a Tensor"):
        block(x, positions=[1, 2])
    with pytest.raises(TypeError, match=r"positions is torch\.sparse_coo; it must be dense"):
        block(x, positions=days.to_sparse())
    with pytest.raises(TypeError, match=r"must be torch\.bool"):
        block(x, positions=days, key_padding_mask=torch.zeros(2, 7))
    with pytest.raises(ValueError, match="key_padding_mask has shape"):
        block(x, positions=days, key_padding_mask=torch.zeros(2, 7, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="BatchNorm"):
        built(layout="sequence").train()(x[0, :, :, 0, 0], positions=days)
    original = built(variant="original", length=8, layout="sequence").eval()
    with pytest.raises(ValueError, match="length=8"):
        original(x[..., 0, 0])
    with pytest.raises(ValueError, match="a table of its own"):
        original(torch.randn(2, 8, 12, dtype=torch.float64), positions=torch.arange(8))
