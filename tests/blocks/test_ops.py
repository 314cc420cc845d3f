"""Arithmetic that blocks share, where no block's own test would see a difference."""

import pytest
import torch
from torch import Tensor, nn

from attnzoo.ops import folding, leading, memory_format, precision
from attnzoo.ops.chunks import CHUNK_NUMEL, chunks


def test_on_an_accelerator_the_whole_batch_is_one_chunk() -> None:
    """The meta device stands in for it: splitting there would only add kernel launches."""
    x = torch.empty(4, CHUNK_NUMEL, device="meta")
    ((part, buffer),) = chunks(x)
    assert (part, buffer.shape) == (slice(0, 4), x.shape)


class Subclass(Tensor):
    """A parameter of another type, as those of quantized and sharded layers are."""


def with_other_parameter() -> nn.Conv2d:
    conv = nn.Conv2d(3, 4, 1)
    conv.bias = nn.Parameter(conv.bias.detach().as_subclass(Subclass))
    return conv


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 4, 1, padding=1),
        nn.Conv2d(3, 4, 1, padding="same"),
        nn.Conv2d(3, 4, 1, stride=2),
        nn.Conv2d(4, 4, 1, groups=2),
        nn.Conv2d(3, 4, (1, 3)),
        nn.Conv1d(3, 4, 1),
        with_other_parameter(),
    ],
    ids=str,
)
def test_a_layer_that_is_more_than_a_matrix_per_pixel_is_called(layer: nn.Module) -> None:
    assert not folding.is_pointwise(layer)


def test_a_plain_pointwise_layer_is_folded() -> None:
    assert folding.is_pointwise(nn.Conv2d(3, 4, 1))
    assert folding.is_pointwise(nn.Conv2d(4, 4, 1, bias=False, groups=2), groups=2)


@pytest.mark.parametrize(
    ("x", "parameter", "wanted"),
    [
        (torch.float32, torch.bfloat16, torch.bfloat16),  # a norm takes no other
        (torch.float32, torch.float32, torch.float32),
        (torch.bfloat16, torch.float32, torch.bfloat16),  # a norm takes it, at half the memory
        (torch.bfloat16, torch.float16, torch.bfloat16),
    ],
)
def test_only_what_a_norm_in_half_precision_refuses_is_cast(
    x: torch.dtype, parameter: torch.dtype, wanted: torch.dtype
) -> None:
    norm = nn.LayerNorm(3, dtype=parameter)
    assert precision.downcast(torch.ones(2, 3, dtype=x), norm).dtype == wanted
    assert precision.downcast(torch.ones(2, 3, dtype=x), norm.weight).dtype == wanted
    assert precision.downcast(torch.ones(2, 3, dtype=x), nn.Identity()).dtype == x


@pytest.mark.parametrize("keep", [1, 2, 3])
@pytest.mark.parametrize("lead", [(), (2,), (2, 5)])
def test_leading_axes_are_merged_and_restored(keep: int, lead: tuple[int, ...]) -> None:
    x = torch.randn(*lead, *(3, 4, 6)[:keep])
    folded = leading.fold(x, keep)
    assert folded.shape == (torch.Size(lead).numel(), *(3, 4, 6)[:keep])
    assert torch.equal(leading.unfold(folded, x, keep), x)


def test_the_memory_format_follows_the_input() -> None:
    y = torch.randn(2, 3, 4, 5)
    last = y.contiguous(memory_format=torch.channels_last)
    assert memory_format.match_memory_format(y, last).stride() == last.stride()
    assert memory_format.match_memory_format(y, y) is y
    assert memory_format.match_memory_format(last, y) is last  # a block's own format may stay
    assert memory_format.match_memory_format(y, y[:, :, ::2]) is y
