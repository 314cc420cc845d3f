"""jbu against its formula, pixel by pixel, and the ranges of its parameters."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attnzoo
from attnzoo import InputSize
from attnzoo.testing.closeness import assert_close
from attnzoo.testing.inputs import randomize_parameters

from distributions import assert_uniform


def made(c: int = 3, **config: object) -> nn.Module:
    block = attnzoo.build("jbu", c, **config, dtype=torch.float64).eval()
    randomize_parameters(block)
    return block


def dense(layers: nn.Sequential, v: Tensor) -> Tensor:
    """The two 1x1 convolutions of a projection, on one pixel's channels."""
    first, last = layers[0], layers[3]
    hidden = first.weight[:, :, 0, 0] @ v + first.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return last.weight[:, :, 0, 0] @ hidden + last.bias


def reflect(i: int, n: int) -> int:
    return -i if i < 0 else 2 * (n - 1) - i if i >= n else i


def by_pixels(block: nn.Module, source: Tensor, guidance: Tensor) -> Tensor:
    r, (_, _, height, width) = block.radius, guidance.shape
    big = F.interpolate(source, (height, width), mode="bicubic", align_corners=False)
    out = torch.zeros_like(big)
    t = block.range_temp.exp().clamp(1e-4, 1e4)
    steps = range(-r, r + 1)
    for n in range(len(source)):
        p = {
            (y, x): dense(block.range_proj, guidance[n, :, y, x])
            for y in range(height)
            for x in range(width)
        }
        for (y, x), own in p.items():
            near = [(reflect(y + i, height), reflect(x + j, width)) for i in steps for j in steps]
            energies = torch.stack([t[0] * (p[at] @ own) for at in near])
            away = torch.tensor([(i / r) ** 2 + (j / r) ** 2 for i in steps for j in steps])
            k = energies.softmax(0) * (-away.double() / (2 * block.sigma_spatial**2)).exp()
            k = k / k.sum().clamp_min(1e-7)
            k = k + 0.1 * dense(block.fixup_proj, torch.cat((k, guidance[n, :, y, x])))
            out[n, :, y, x] = sum(w * big[n, :, a, b] for w, (a, b) in zip(k, near, strict=True))
    return out


@pytest.mark.parametrize(
    ("radius", "small", "large"), [(1, (2, 3), (5, 4)), (2, (4, 3), (4, 3)), (3, (6, 5), (4, 7))]
)
def test_the_formula(radius: int, small: tuple[int, int], large: tuple[int, int]) -> None:
    block = made(guidance=2, key_dim=5, radius=radius)
    source = torch.randn(2, 3, *small, dtype=torch.float64)
    guidance = torch.randn(2, 2, *large, dtype=torch.float64)
    with torch.no_grad():
        assert_close(block(source, guidance), by_pixels(block, source, guidance))


def test_the_sign_of_sigma_and_an_out_of_range_temperature_have_no_effect() -> None:
    block = made(key_dim=4, radius=1)
    args = torch.randn(1, 3, 4, 5).double(), torch.randn(1, 3, 8, 10).double()
    with torch.no_grad():
        wanted = block(*args)
        block.sigma_spatial.neg_()
        assert_close(block(*args), wanted)
        block.range_temp.fill_(9.3)
        clipped = block(*args)
        block.range_temp.fill_(20.0)
        assert_close(block(*args), clipped)
    block(*args).sum().backward()
    assert block.range_temp.grad.item() == 0
    with torch.no_grad():
        block.range_temp.fill_(9.2)
    block.zero_grad()
    block(*args).square().sum().backward()
    assert block.range_temp.grad.item() != 0


@pytest.mark.parametrize("sigma", [0.35, 0.15])
def test_a_narrow_spatial_kernel_is_normalized_down_to_its_floor(sigma: float) -> None:
    """Where a neighbor resembles a pixel more than the pixel itself, almost nothing is left."""
    block = made(key_dim=4, radius=1)
    source, guidance = torch.randn(1, 3, 2, 2).double(), 3 * torch.randn(1, 3, 4, 5).double()
    with torch.no_grad():
        block.sigma_spatial.fill_(sigma)
        block.range_temp.fill_(6.0)
        assert_close(block(source, guidance), by_pixels(block, source, guidance))


def test_a_kernel_is_linear_in_the_source_and_the_same_for_all_channels() -> None:
    block = made(key_dim=4, radius=1)
    a, b, guidance = (torch.randn(1, 3, n, n).double() for n in (4, 4, 9))
    assert_close(block(a + 2 * b, guidance), block(a, guidance) + 2 * block(b, guidance))
    assert_close(block(a[:, [1, 2, 0]], guidance), block(a, guidance)[:, [1, 2, 0]])


def test_initial_values() -> None:
    block = attnzoo.build("jbu", 7, guidance=12, key_dim=64)
    assert block.range_temp.item() == 0
    assert block.sigma_spatial.item() == 1
    for conv in (m for m in block.modules() if isinstance(m, nn.Conv2d)):
        assert_uniform(conv.weight, 1 / math.sqrt(conv.in_channels))
    assert [m.p for m in block.modules() if isinstance(m, nn.Dropout2d)] == [0.1, 0.1]


@pytest.mark.parametrize(
    ("config", "params"),
    [
        ({}, 6233),
        ({"radius": 5}, 31073),
        ({"guidance": 4, "key_dim": 6, "radius": 2}, 1474),
    ],
)
def test_published_counts(config: dict[str, int], params: int) -> None:
    block = attnzoo.build("jbu", 384, **config, device="meta")
    assert sum(p.numel() for p in block.parameters()) == params
    if not config:
        assert block.macs(InputSize(height=7, width=5)) == 14 * 10 * (7637 + 49 * 384)


@pytest.mark.parametrize(
    ("source", "guidance", "words"),
    [
        ((1, 3, 2, 2), (1, 3, 3, 4), r"guidance has shape .*radius=3 .*at least 4 x 4"),
        ((1, 3, 2, 2), (1, 3, 4, 3), r"at least 4 x 4"),
        ((1, 3, 2, 2), (2, 3, 4, 4), "guidance has 2 samples .* source 1"),
        ((1, 3, 2, 2), (1, 1, 4, 4), "guidance has 1 channels"),
        ((1, 4, 2, 2), (1, 3, 4, 4), "source has 4 channels"),
        ((3, 2, 2), (1, 3, 4, 4), "source has shape"),
    ],
)
def test_refusals(source: tuple[int, ...], guidance: tuple[int, ...], words: str) -> None:
    block = attnzoo.build("jbu", 3)
    with pytest.raises(ValueError, match=words):
        block(torch.zeros(source), torch.zeros(guidance))
    assert block(torch.zeros(1, 3, 1, 1), torch.zeros(1, 3, 4, 4)).shape == (1, 3, 4, 4)
