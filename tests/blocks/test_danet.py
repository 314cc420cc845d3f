"""DANet: the sum of both modules and the authors' head, its weights and saved memory."""

import copy

import pytest
import torch
from formulas import channel_attention, position_attention
from torch import Tensor, nn
from torch.nn import functional as F

import attnzoo
from attnzoo.registry import find
from attnzoo.testing.closeness import assert_close
from attnzoo.testing.inputs import make_inputs
from attnzoo.testing.work import work

from contract import ODD, made, step
from distributions import assert_default

HEAD = {"c": 72, "reduction": 4, "head": True}


def formula(x: Tensor, p: nn.Module) -> Tensor:
    """The authors' head up to the summed feature, line by line."""

    def conv(x: Tensor, layers: nn.Module) -> Tensor:
        convolution, norm = layers[0], layers[1]
        y = F.conv2d(x, convolution.weight, padding=1)
        mean, var = norm.running_mean, norm.running_var
        if norm.training:
            mean, var = y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)
        y = (y - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        return F.relu(y * norm.weight[:, None, None] + norm.bias[:, None, None])

    position = conv(position_attention(conv(x, p.conv5a), p.sa), p.conv51)
    return position + conv(channel_attention(conv(x, p.conv5c), p.sc.gamma), p.conv52)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("size", [(9, 11), (18, 17)])
def test_head_equals_the_formula(size: tuple[int, int], train: bool) -> None:
    _, block, inputs = made("danet", attnzoo.InputSize(2, 1, *size), torch.float64, train, **HEAD)
    wanted = step(block, inputs, lambda leaves: formula(leaves["x"], block))
    found = step(block, inputs)
    assert found["outputs"][0].shape == (2, 18, *size)
    assert_close(found, wanted)


@pytest.mark.parametrize("size", [(9, 11), (18, 17)])
def test_bare_sum_equals_the_formula(size: tuple[int, int]) -> None:
    extent = attnzoo.InputSize(2, 1, *size)
    _, block, inputs = made("danet", extent, torch.float64, c=12, reduction=5)
    wanted = step(
        block,
        inputs,
        lambda leaves: (
            position_attention(leaves["x"], block.sa)
            + channel_attention(leaves["x"], block.sc.gamma)
        ),
    )
    assert_close(step(block, inputs), wanted)
    assert {key.split(".")[0] for key in block.state_dict()} == {"sa", "sc"}


def test_closed_form_of_the_head() -> None:
    entry = find("danet")
    block = attnzoo.build("danet", **HEAD, device="meta")
    form = entry.closed_form(ODD, **HEAD)
    assert form is not None
    assert form.params == sum(p.numel() for p in block.parameters())
    assert form.executed == work(block, make_inputs(entry, HEAD, ODD, device="meta")).macs


@pytest.mark.parametrize("size", [33, 40])
@pytest.mark.parametrize("low", [None, torch.bfloat16], ids=["float32", "autocast"])
@pytest.mark.parametrize("head", [False, True], ids=["sum", "head"])
def test_no_map_of_all_pairs_is_saved(size: int, low: torch.dtype | None, head: bool) -> None:
    _, block, inputs = made("danet", attnzoo.InputSize(2, 1, size, size), train=True, head=head)
    kept: list[int] = []
    with (
        torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept.append(t.numel()) or t, lambda t: t
        ),
        torch.autocast("cpu", low, enabled=low is not None),
    ):
        y = block(inputs["x"].requires_grad_())
    y.sum().backward()
    assert max(kept) < size**4


def test_a_whole_checkpoint_loads_without_its_classifiers() -> None:
    _, block, inputs = made("danet", **HEAD)
    checkpoint = {f"head.{key}": value for key, value in block.state_dict().items()}
    for conv in ("conv6", "conv7", "conv8"):
        checkpoint |= {f"head.{conv}.1.weight": torch.ones(19, 18, 1, 1)}
        checkpoint |= {f"head.{conv}.1.bias": torch.ones(19)}
    checkpoint |= {"pretrained.conv1.weight": torch.ones(3, 3)}
    loaded = attnzoo.from_upstream("danet", checkpoint, **HEAD).eval()
    assert_close(step(loaded, inputs), step(block, inputs))
    position = attnzoo.from_upstream("danet_position", checkpoint, c=18, reduction=4)
    assert_close(position.state_dict(), block.sa.state_dict())
    channel = attnzoo.from_upstream("danet_channel", checkpoint, c=18)
    assert_close(channel.state_dict(), block.sc.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_head_in_half_precision_and_autocast(dtype: torch.dtype) -> None:
    _, block, inputs = made("danet", attnzoo.InputSize(2, 1, 18, 17), **HEAD)
    wanted = step(block, inputs)

    def run(leaves: dict[str, Tensor]) -> Tensor:
        with torch.autocast("cpu", dtype):
            return block(leaves["x"])

    cast = step(block, inputs, run)
    assert_close(cast["outputs"], wanted["outputs"], dtype)
    half = step(block.to(dtype), {"x": inputs["x"].to(dtype)})
    assert half["outputs"][0].dtype == dtype
    assert_close(half["outputs"], wanted["outputs"], dtype)


def test_head_compiles_and_exports() -> None:
    _, block, inputs = made("danet", ODD, **HEAD)
    wanted = step(block, inputs)
    torch.compiler.reset()
    compiled = torch.compile(copy.deepcopy(block), fullgraph=True, backend="aot_eager")
    assert_close(compiled(inputs["x"]), wanted["outputs"])
    auto = torch.export.Dim.AUTO
    shapes = {"x": dict.fromkeys(range(4), auto)}
    program = torch.export.export(block, (inputs["x"],), dynamic_shapes=shapes, strict=False)
    x = torch.randn(4, 72, 19, 14)
    assert_close(program.module()(x), block(x))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"c": 7}, "reduction=8 leaves no channel of c=7"),
        ({"c": 31, "head": True}, "take c=32 or more, or reduction=7 or less"),
        ({"c": 3, "head": True, "reduction": 1}, "take c=4 or more"),
    ],
)
def test_a_width_of_zero_is_refused(config: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        attnzoo.build("danet", **config)


def test_one_value_a_channel_has_no_variance() -> None:
    block = attnzoo.build("danet", **HEAD)
    with pytest.raises(ValueError, match="no variance"):
        block(torch.ones(1, 72, 1, 1))
    assert block.eval()(torch.ones(1, 72, 1, 1)).shape == (1, 18, 1, 1)


def test_layers_start_as_torchs_own_and_gammas_at_zero() -> None:
    blocks = [attnzoo.build("danet", **HEAD) for _ in range(4)]
    assert_default(blocks, but=["sa.gamma", "sc.gamma"])
    assert not blocks[0].sa.gamma.any()
    assert not blocks[0].sc.gamma.any()
