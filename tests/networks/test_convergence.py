"""Every network learns a simple rule from three random starts, in a few steps.

`paps` and `adcd_net` are trained for three seeds elsewhere: by the study of generated fields, whose
document a test reads, and by a test of their own. `segearth_ov` needs no training.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import attnzoo

Task = tuple[nn.Module, Callable[[], Tensor]]  # a network, and its loss


def crops(name: str, **config: object) -> Task:
    """Pixels of a series are of the class of their first band's mean over the dates."""
    net = attnzoo.build(name, c=2, **config)
    x, days = torch.randn(2, 3, 2, 16, 16), torch.arange(0, 60, 20).expand(2, -1)
    x = x + 2 * torch.randn(2, 1, 2, 4, 4).repeat_interleave(4, 3).repeat_interleave(4, 4)
    labels = (x[:, :, 0].mean(1) > 0).long()
    return net, lambda: F.cross_entropy(net(x, positions=days), labels)


def utae() -> Task:
    widths = (8, 8, 16)
    config = {"encoder_widths": widths, "decoder_widths": widths, "out_conv": (8, 2)}
    return crops("utae", **config, heads=4, d_model=16)


def tsvit() -> Task:
    config = {"image_size": 16, "patch_size": 2, "dim": 16, "heads": 2, "dim_head": 8}
    return crops("tsvit", num_classes=2, temporal_depth=2, spatial_depth=2, **config)


def u_mixformer() -> Task:
    dims, heads = (8, 8, 8, 8), (1, 2, 2, 4)
    net = attnzoo.build("u_mixformer", dims=dims, heads=heads, num_classes=2, dim=16)
    maps = [torch.randn(2, 8, 16 // 2**i, 16 // 2**i) for i in range(4)]
    labels = (maps[0][:, 0] > 0).long()
    return net, lambda: F.cross_entropy(net(maps), labels)


def unet_tsf() -> Task:
    net = attnzoo.build("unet_tsf", c=1, length=24, horizon=12, stages=2)
    phase, t = 6.28 * torch.rand(64, 1), torch.arange(36) / 3
    series = (3 + (t + phase).sin() + 0.5 * (2 * t + phase).cos())[..., None]
    return net, lambda: F.mse_loss(net(series[:, :24]), series[:, 24:])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("task", [utae, tsvit, u_mixformer, unet_tsf])
def test_training_converges_from_any_start(task: Callable[[], Task], seed: int) -> None:
    torch.manual_seed(seed)
    net, loss = task()
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert sum(losses[-5:]) / 5 < 0.4 * losses[0], losses[::10]
