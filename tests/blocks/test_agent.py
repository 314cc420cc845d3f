"""Agent attention: its formula, variants, bias tables and sizes."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

import attnzoo
from attnzoo.testing.closeness import assert_close
from attnzoo.testing.inputs import randomize_parameters

from contract import step
from distributions import assert_normal, assert_uniform

CONFIGS: list[dict[str, Any]] = [
    {"window": (6, 4)},
    {"window": [9, 9], "agents": 4, "qkv_bias": True},
    {"window": (8, 6), "sr_ratio": 2, "agents": 1},
    {"window": (6, 9), "sr_ratio": 3, "qkv_bias": True},
    {"window": (5, 7), "variant": "swin"},
    {"window": (5, 5), "variant": "swin", "qkv_bias": False},
    {"window": (6, 5), "variant": "deit", "layout": "sequence"},
    {"window": (3, 3), "variant": "deit", "layout": "sequence", "qkv_bias": True, "agents": 25},
    {"window": (8, 4), "sr_ratio": 4, "layout": "sequence"},
]


def _settings(config: dict[str, Any], window: Any) -> dict[str, Any]:
    return {"c": 8, "heads": 2, "agents": 9, **config, "window": window}


def made(dtype: torch.dtype = torch.float64, **config: Any) -> nn.Module:
    block = attnzoo.build("agent", **_settings(config, config.get("window", (14, 14)))).to(dtype)
    randomize_parameters(block)
    return block


def formula(block: nn.Module, x: Tensor, h: int, w: int) -> Tensor:
    """The authors' arithmetic on tokens (B, T, C) of a map of the size of the tables."""
    weights = dict(block.named_parameters())
    b, _, c = x.shape
    first, heads, agents, r = int("ac_bias" in weights), block.heads, block.agents, block.sr_ratio
    scale = (c // heads) ** -0.5
    kh, kw = h // r, w // r
    if "q.weight" in weights:
        q, source = block.q(x), x
        if r > 1:
            source = block.sr(x.mT.reshape(b, c, h, w)).reshape(b, c, -1).mT
            source = F.layer_norm(source, (c,), block.norm.weight, block.norm.bias, 1e-5)
        k, v = block.kv(source).split(c, 2)
    else:
        q, k, v = block.qkv(x).split(c, 2)
    pool = F.adaptive_avg_pool2d(q[:, first:].mT.reshape(b, c, h, w), round(agents**0.5))
    agent = pool.reshape(b, heads, c // heads, agents).mT

    def split(t: Tensor) -> Tensor:
        return t.reshape(b, -1, heads, c // heads).permute(0, 2, 1, 3)

    def table(name: str, size: tuple[int, int]) -> Tensor:
        return F.interpolate(weights[name], size=size, mode="bilinear").reshape(
            1, heads, agents, -1
        )

    lines = weights["ah_bias"][..., None] + weights["aw_bias"][..., None, :]
    lines = lines.reshape(1, heads, agents, -1)
    bias = table("an_bias", (kh, kw)) + lines
    if first:
        bias = torch.cat([weights["ac_bias"], bias], -1)
    gathered = ((agent * scale) @ split(k).mT + bias).softmax(-1) @ split(v)
    lines = weights["ha_bias"][:, :, None] + weights["wa_bias"][:, None]
    lines = lines.reshape(1, heads, -1, agents)
    bias = table("na_bias", (h, w)).mT + lines
    if first:
        bias = torch.cat([weights["ca_bias"], bias], -2)
    y = ((split(q) * scale) @ agent.mT + bias).softmax(-1) @ gathered
    y = y.permute(0, 2, 1, 3).reshape(b, -1, c)
    image = v[:, first:].mT.reshape(b, c, kh, kw)
    if r > 1:
        image = F.interpolate(image, size=(h, w), mode="bilinear")
    local = F.conv2d(image, block.dwc.weight, block.dwc.bias, padding=1, groups=c)
    local = local.reshape(b, c, -1).mT
    return block.proj(torch.cat([y[:, :first], y[:, first:] + local], 1))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_formula_at_the_size_of_the_tables(config: dict[str, Any]) -> None:
    block = made(**config)
    h, w = config["window"]
    first = int(config.get("variant") == "deit")
    tokens = torch.randn(2, first + h * w, 8, dtype=torch.float64)
    if block.layout == "sequence":
        found = step(block, {"x": tokens})
        wanted = step(block, {"x": tokens}, lambda leaves: formula(block, leaves["x"], h, w))
    else:
        inputs = {"x": tokens.mT.reshape(2, 8, h, w)}

        def run(leaves: dict[str, Tensor]) -> Tensor:
            return formula(block, leaves["x"].flatten(2).mT, h, w).mT.reshape(2, 8, h, w)

        found, wanted = step(block, inputs), step(block, inputs, run)
    assert_close(found, wanted)


def test_default_biases_are_the_variants() -> None:
    assert made(variant="swin").qkv.bias is not None
    assert made(variant="deit", layout="sequence").qkv.bias is None
    assert made().q.bias is None
    assert made(qkv_bias=True).kv.bias is not None


def test_a_sequence_equals_the_image_of_the_window() -> None:
    image, sequence = made(window=(6, 4)), made(window=(6, 4), layout="sequence")
    sequence.load_state_dict(image.state_dict())
    x = torch.randn(2, 8, 6, 4, dtype=torch.float64)
    assert_close(sequence(x.flatten(2).mT), image(x).flatten(2).mT)
    assert_close(
        sequence(x.flatten(2).mT.expand(3, 2, 24, 8)),
        image(x).flatten(2).mT.expand(3, 2, 24, 8),
    )


def test_other_sizes_resize_the_tables() -> None:
    """A block that is built with the resized tables gives the same output."""
    small, large = made(window=(4, 6)), made(window=(8, 9))
    state = small.state_dict()
    for name, axis, size in (("ah", 2, 8), ("aw", 2, 9), ("ha", 1, 8), ("wa", 1, 9)):
        table = state[f"{name}_bias"].movedim(axis, -1)
        state[f"{name}_bias"] = F.interpolate(table, size, mode="linear").movedim(-1, axis)
    large.load_state_dict(state)
    x = torch.randn(2, 8, 8, 9, dtype=torch.float64)
    assert_close(small(x), large(x))


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (3, 2), (15, 9), (7, 7)])
@pytest.mark.parametrize("sr_ratio", [1, 2, 4])
def test_any_size_with_any_reduction(size: tuple[int, int], sr_ratio: int) -> None:
    block = made(window=(7, 7), sr_ratio=sr_ratio)
    found = step(block, {"x": torch.randn(2, 8, *size, dtype=torch.float64)})
    assert found["outputs"][0].shape == (2, 8, *size)
    assert all(g.isfinite().all() for g in [*found["inputs"], *found["parameters"].values()])
    assert len(found["parameters"]) == len(list(block.parameters()))


def test_padding_a_map_does_not_move_its_pixels() -> None:
    """Reduced keys of a map with zeros appended are those of the padded map."""
    block = made(window=(8, 8), sr_ratio=4)
    x = torch.randn(1, 8, 7, 6, dtype=torch.float64)
    k, v, size = block._project(x.flatten(2).mT, (7, 6))[1:]
    padded = F.pad(x, (0, 2, 0, 1))
    wanted = block._project(padded.flatten(2).mT, (8, 8))[1:]
    assert size == wanted[2] == (2, 2)
    assert_close((k, v), wanted[:2])


@pytest.mark.parametrize("first", [0, 1])
def test_longer_sequences_scale_the_window(first: int) -> None:
    variant = "deit" if first else "swin"
    block = made(window=(4, 6), variant=variant, layout="sequence")
    for h, w in ((4, 6), (2, 3), (8, 12), (14, 21)):
        assert block._size(first + h * w) == (h, w)
        assert block(torch.randn(1, first + h * w, 8).double()).shape == (1, first + h * w, 8)
    for bad in (first + 25, first + 36, first + 1):
        with pytest.raises(ValueError, match=f"x has {bad} tokens"):
            block(torch.randn(1, bad, 8).double())
    with pytest.raises(ValueError, match="x has 1 tokens"):
        made(variant="deit", layout="sequence")(torch.randn(1, 1, 8).double())


def test_class_token_is_neither_pooled_nor_convolved() -> None:
    """The depthwise branch changes every token but the class token."""
    block = made(window=(3, 3), variant="deit", layout="sequence")
    x = torch.randn(1, 10, 8, dtype=torch.float64)
    before = block(x)
    with torch.no_grad():
        block.dwc.weight.zero_()
        block.dwc.bias.zero_()
    after = block(x)
    assert_close(after[:, 0], before[:, 0])
    assert not torch.allclose(after[:, 1:], before[:, 1:])


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_authors_tables_load_unchanged(config: dict[str, Any]) -> None:
    """Their tables have two more axes of length 1; also for windows with a side of 1."""
    for window in (config["window"], (1, 4), (3, 1), (1, 1)):
        block = made(**{**config, "window": window})
        state = dict(block.state_dict())
        for key, axis in (("ah_bias", 4), ("aw_bias", 3), ("ha_bias", 3), ("wa_bias", 2)):
            state[f"net.{key}"] = state.pop(key).unsqueeze(0).unsqueeze(axis)
            assert state[f"net.{key}"].ndim == 5
        whole = nn.ModuleDict({"net": attnzoo.build("agent", **_settings(config, window)).double()})
        whole.load_state_dict({k if k[:4] == "net." else f"net.{k}": v for k, v in state.items()})
        assert_close(dict(whole["net"].state_dict()), dict(block.state_dict()))


def test_a_network_with_agent_attention_can_be_channels_last() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), made(torch.float32, window=(6, 4))).eval()
    x = torch.randn(2, 3, 8, 6)
    wanted = net(x)
    net.to(memory_format=torch.channels_last)
    y = net(x.contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_close(y, wanted)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # vmap's own
@pytest.mark.parametrize("config", [CONFIGS[0], CONFIGS[2], CONFIGS[6]], ids=str)
def test_derivatives_by_torch_func(config: dict[str, Any]) -> None:
    """With respect to the input only, although the tables require gradients."""
    block = made(**config)
    h, w = config["window"]
    x = torch.randn(2, h * w + 1, 8, dtype=torch.float64)
    if block.layout == "image":
        x = x[:, 1:].mT.reshape(2, 8, h, w)
    leaf, tangent = x.clone().requires_grad_(), torch.randn_like(x)
    y = block(leaf)
    (wanted,) = torch.autograd.grad(y, leaf, y.detach().cos())
    assert_close(torch.func.grad(lambda t: block(t).sin().sum())(x), wanted)
    assert_close(torch.func.vjp(block, x)[1](y.detach().cos())[0], wanted)
    assert_close(torch.func.jacrev(lambda t: block(t).sin().sum())(x), wanted)
    out, along = torch.func.jvp(block, (x,), (tangent,))
    assert_close(out, y)
    assert_close((y.detach().cos() * along).sum(), (wanted * tangent).sum())
    slope = torch.func.jacfwd(lambda s: block(x + s * tangent).sin().sum())(
        torch.zeros(()).double()
    )
    assert_close(slope, (wanted * tangent).sum())


@pytest.mark.parametrize("frozen", [True, False])
def test_forward_mode_derivatives(frozen: bool) -> None:
    """Without `torch.func`; torch takes a fused kernel if the tables require no gradient."""
    block = made(**CONFIGS[0]).requires_grad_(not frozen)
    h, w = CONFIGS[0]["window"]
    x, tangent = torch.randn(2, 2, 8, h, w, dtype=torch.float64)
    with forward_ad.dual_level():
        y, along = forward_ad.unpack_dual(block(forward_ad.make_dual(x, tangent)))
    assert_close([y, along], list(torch.func.jvp(block, (x,), (tangent,))))


def test_initial_distributions() -> None:
    """Tables from N(0, 0.02^2), as in the authors' code, and torch's default for the layers."""
    torch.manual_seed(0)
    pvt = attnzoo.build("agent", 64, sr_ratio=2)
    deit = attnzoo.build("agent", 64, heads=64, variant="deit", layout="sequence")
    for block in (pvt, deit):
        tables = {k: p for k, p in block.named_parameters() if k.endswith("_bias")}
        assert len(tables) == (6 if block is pvt else 8)
        for table in tables.values():
            assert_normal(table, 0.02)
    layers = (pvt.q, pvt.kv, pvt.sr, pvt.proj, pvt.dwc, deit.qkv, deit.proj, deit.dwc)
    for layer in layers:
        bound = layer.weight[0].numel() ** -0.5
        assert_uniform(layer.weight, bound)
        if layer.bias is not None:
            assert_uniform(layer.bias, bound)
    assert (pvt.norm.weight == 1).all()
    assert (pvt.norm.bias == 0).all()
    assert pvt.norm.eps == 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_inputs_in_half_precision(dtype: torch.dtype) -> None:
    block = made(torch.float32, c=64, heads=2).eval()
    x = (30 * torch.randn(2, 64, 16, 16)).to(dtype)
    found = step(block.to(dtype), {"x": x})
    assert all(g.isfinite().all() for g in [*found["outputs"], *found["inputs"]])
    assert all(g.isfinite().all() for g in found["parameters"].values())


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"c": 64, "agents": 10}, "agents=10 must be a perfect square; the nearest are 9, 16"),
        ({"c": 64, "agents": 0}, "agents=0"),
        ({"c": 12}, "heads=8 must divide c=12; the nearest that do are 6, 12"),
        ({"c": 64, "variant": "swin", "sr_ratio": 2}, "sr_ratio=2 must be 1"),
        ({"c": 64, "variant": "deit", "layout": "sequence", "sr_ratio": 2}, "sr_ratio=2 must be"),
        ({"c": 64, "variant": "deit"}, "layout='image' must be 'sequence'"),
        ({"c": 64, "variant": "cswin"}, "did you mean 'swin'"),
        ({"c": 64, "window": (0, 7)}, r"window\[0\]=0"),
        ({"c": 64, "window": (7, 7, 7)}, "must have 2 items"),
        ({"c": 64, "sr_ratio": 0}, "sr_ratio=0"),
    ],
)
def test_refuses(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        attnzoo.build("agent", **config)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_closed_forms_hold_for_every_variant(config: dict[str, Any]) -> None:
    from attnzoo.registry import find
    from attnzoo.testing.inputs import make_inputs
    from attnzoo.testing.work import work

    entry, settings = find("agent"), {"c": 8, "heads": 2, "agents": 9, **config}
    block = attnzoo.build("agent", **settings)
    for extent in (entry.input_size, attnzoo.InputSize(height=9, width=5)):
        form = entry.closed_form(extent, **settings)
        inputs = make_inputs(entry, settings, extent)
        assert form is not None
        assert form.params == sum(p.numel() for p in block.parameters())
        assert form.executed == work(block, inputs).macs


@pytest.mark.slow
def test_sr_ratio_exports_and_compiles_for_any_size() -> None:
    block = made(window=(7, 7), sr_ratio=2)
    small, odd = (torch.randn(b, 8, h, w).double() for b, h, w in ((3, 6, 8), (2, 9, 11)))
    sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(block, (small,), dynamic_shapes=(sizes,)).module()
    torch.compiler.reset()
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend="aot_eager")
    for x in (small, odd):
        assert_close(program(x), block(x))
        assert_close(compiled(x), block(x))
