"""sapa and sapa_stack against the formula, pixel by pixel."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attnzoo
from attnzoo import InputSize
from attnzoo.testing.closeness import assert_close
from attnzoo.testing.inputs import randomize_parameters

from distributions import assert_normal

MODES = ("encoder_only", "cat", "gate")


def by_pixels(block: nn.Module, source: Tensor, guidance: Tensor) -> Tensor:
    """One sample, pixel by pixel."""
    (_, _, height, width), s, k = source.shape, block.scale, block.kernel
    outputs = block.c if block.v is None else block.v.out_features
    out = torch.zeros(1, outputs, s * height, s * width, dtype=source.dtype)
    for i in range(s * height):
        for j in range(s * width):
            x, y = source[0, :, i // s, j // s], block.norm_y(guidance[0, :, i, j])
            if block.q_mode == "gate":
                a = block.gate(block.norm_x(x)).sigmoid()
                q = a * block.qy(y) + (1 - a) * block.qx(x)
            else:
                q = block.q(torch.cat((y, x)) if block.q_mode == "cat" else y)
            energies, values = [], []
            for tap in range(k * k):
                a, b = i // s - k // 2 + tap // k, j // s - k // 2 + tap % k
                inside = 0 <= a < height and 0 <= b < width
                near = source[0, :, a, b] if inside else None
                energies.append(q @ block.k(block.norm_x(near)) if inside else q.new_zeros(()))
                v = near if inside else q.new_zeros(outputs)
                values.append(v if block.v is None or not inside else block.v(block.norm_x(near)))
            weights = torch.stack(energies).softmax(0)
            out[0, :, i, j] = sum(w * v for w, v in zip(weights, values, strict=True))
    return out


@pytest.mark.parametrize("q_mode", MODES)
@pytest.mark.parametrize(
    "config", [{}, {"scale": 3, "kernel": 3, "bias": False}, {"v_embed": True}, {"c_out": 5}]
)
def test_the_formula(q_mode: str, config: dict[str, object]) -> None:
    block = attnzoo.build("sapa", 3, guidance=4, dim=6, q_mode=q_mode, **config).double()
    randomize_parameters(block)
    s = block.scale
    source = torch.randn(1, 3, 3, 2, dtype=torch.float64)
    guidance = torch.randn(1, 4, 3 * s, 2 * s, dtype=torch.float64)
    with torch.no_grad():
        assert_close(block(source, guidance), by_pixels(block, source, guidance))


def test_window_positions_outside_the_map_keep_their_weights() -> None:
    block = attnzoo.build("sapa", 3, dim=4)
    nn.init.zeros_(block.q.weight)  # all energies are zero: the mean over the window
    y = block(torch.ones(1, 3, 6, 6), torch.randn(1, 3, 12, 12))
    assert_close(y[0, 0, 0, 0], torch.tensor(9 / 25))
    assert_close(y[0, 0, 5, 5], torch.tensor(1.0))


def test_a_stack_equals_its_steps() -> None:
    block = attnzoo.build("sapa_stack", 3, dim=4, kernel=3, dtype=torch.float64)
    randomize_parameters(block)
    source, guidance = torch.randn(1, 3, 1, 2).double(), torch.randn(1, 3, 21, 17).double()
    y = source
    for step in (block.up1, block.up2, block.up3, block.up4):
        y = step(y, F.adaptive_avg_pool2d(guidance, (2 * y.shape[2], 2 * y.shape[3])))
    assert_close(block(source, guidance), y)
    assert y.shape == (1, 3, 16, 32)


def test_initial_values() -> None:
    block = attnzoo.build("sapa", 64, guidance=32, q_mode="gate", v_embed=True)
    for linear in (block.qy, block.qx, block.k, block.v):
        assert_normal(linear.weight, 0.02)
        assert not linear.bias.any()
    assert block.gate.weight.std() < 0.04


def test_a_stack_costs_its_four_steps() -> None:
    block = attnzoo.build("sapa_stack", 3, dim=4, device="meta")
    steps = (block.up1, block.up2, block.up3, block.up4)
    sizes = [InputSize(height=3 * 2**i, width=5 * 2**i) for i in range(4)]
    wanted = sum(step.macs(size) for step, size in zip(steps, sizes, strict=True))
    assert block.macs(sizes[0]) == wanted


def test_published_counts() -> None:
    def params(name: str) -> int:
        return sum(p.numel() for p in attnzoo.build(name, 384, device="meta").parameters())

    assert (params("sapa"), params("sapa_stack")) == (25_670, 102_680)
    block = attnzoo.build("sapa", 10, device="meta")
    assert block.macs(InputSize(height=7, width=5)) == 35 * (
        4 * (3 * 64 + 25 * 64 + 25 * 10) + 10 * 64
    )


@pytest.mark.parametrize("size", [(5, 6), (6, 5), (12, 12)])
def test_a_guidance_of_another_size_is_refused(size: tuple[int, int]) -> None:
    block = attnzoo.build("sapa", 3)
    with pytest.raises(ValueError, match=r"guidance has shape .*scale=2 .* must be 6 x 6: resize"):
        block(torch.zeros(1, 3, 3, 3), torch.zeros(1, 3, *size))
    with pytest.raises(ValueError, match="guidance has 2 samples"):
        block(torch.zeros(1, 3, 3, 3), torch.zeros(2, 3, 6, 6))
