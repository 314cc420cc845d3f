"""Global context against its formula, with every pooling and fusion."""

import pytest
import torch
from torch import Tensor, nn

import attnzoo
from attnzoo.testing.closeness import assert_close

from contract import assert_steps_equal, made
from distributions import assert_normal, assert_uniform

FORMS = [
    {"pooling": pooling, "fusion": fusion}
    for pooling in ("att", "avg")
    for fusion in ("add", "mul", "both")
]


def transform(layers: nn.Sequential, z: Tensor) -> Tensor:
    first, norm, _, last = layers
    t = z @ first.weight.T + first.bias
    deviation = t - t.mean(1, keepdim=True)
    variance = deviation.square().mean(1, keepdim=True)
    t = deviation / (variance + 1e-5).sqrt() * norm.weight + norm.bias
    return (t.clamp(min=0) @ last.weight.T + last.bias)[:, :, None, None]


def formula(block: nn.Module, x: Tensor) -> Tensor:
    pixels = x.flatten(2)
    weights = torch.ones_like(pixels[:, 0])
    if block.conv_mask is not None:
        logits = torch.einsum("bcn,c->bn", pixels, block.conv_mask.weight.flatten())
        weights = (logits + block.conv_mask.bias).exp()
    context = torch.einsum("bcn,bn->bc", pixels, weights) / weights.sum(1, keepdim=True)
    y = x
    if block.mul is not None:
        y = y / (1 + (-transform(block.mul, context)).exp())
    return y if block.add is None else y + transform(block.add, context)


@pytest.mark.parametrize("size", [(2, 1, 1), (3, 4, 7)], ids=str)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_equals_the_formula(form: dict[str, str], size: tuple[int, int, int]) -> None:
    b, h, w = size
    at = attnzoo.InputSize(batch=b, height=h, width=w)
    _, block, inputs = made("gc", at, torch.float64, c=12, reduction=3, **form)
    assert_steps_equal(block, inputs, lambda leaves: formula(block, leaves["x"]))


def test_a_new_block_is_the_identity_or_half_of_it() -> None:
    x = torch.randn(2, 32, 5, 3)
    assert torch.equal(attnzoo.build("gc", c=32)(x), x)
    for fusion in ("mul", "both"):
        assert torch.equal(attnzoo.build("gc", c=32, fusion=fusion)(x), x / 2)


def test_initial_values() -> None:
    block = attnzoo.build("gc", c=1024, fusion="both")
    assert_normal(block.conv_mask.weight, (2 / 1024) ** 0.5)
    assert block.conv_mask.bias.item() == 0
    for layers in (block.add, block.mul):
        assert_uniform(layers[0].weight, 1024**-0.5)
        assert not layers[3].weight.any()
        assert not layers[3].bias.any()


@pytest.mark.parametrize(
    ("config", "hidden"), [({"c": 40}, 2), ({"c": 98, "reduction": 49}, 1), ({"c": 3}, 0)], ids=str
)
def test_the_hidden_width_is_rounded_as_by_the_authors(config: dict[str, int], hidden: int) -> None:
    if not hidden:
        with pytest.raises(ValueError, match="reduction=16 leaves no channel of c=3"):
            attnzoo.build("gc", **config)
        return
    assert attnzoo.build("gc", **config).add[0].out_features == hidden


def test_a_reduction_that_rounds_to_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"reduction=49 .* c=49 .* take reduction=48"):
        attnzoo.build("gc", c=49, reduction=49)


def test_macs_by_hand() -> None:
    at = attnzoo.InputSize(3, 1, 5, 7)
    assert attnzoo.build("gc", c=32, fusion="both").macs(at) == 2 * 32 * 35 + 2 * 2 * 32 * 2
    assert attnzoo.build("gc", c=32, pooling="avg").macs(at) == 2 * 32 * 2


def test_many_positions_do_not_lose_precision_in_half_precision() -> None:
    """Each of 1500 x 1500 equal positions has a weight of 7.46 times float16's smallest step."""
    block = attnzoo.build("gc", c=2, reduction=1).half()
    context = block.context(torch.ones(1, 2, 1500, 1500).half())
    assert_close(context, torch.ones(1, 2), torch.float16)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (("conv.weight", "transform.0.weight"), "changzy00's GCModule, which never applies"),
        (("conv_attn.weight", "mlp_add.fc1.weight"), "timm's GlobalContext, which has 1e-6"),
    ],
)
def test_known_variants_are_named(keys: tuple[str, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        attnzoo.from_upstream("gc", {key: torch.ones(1, 64, 1, 1) for key in keys}, c=64)
