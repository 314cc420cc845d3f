"""ADCD-Net: its loss, what its stages pass on, and what is trained."""

import pytest
import torch
from torch.nn import functional as F

import attnzoo
from attnzoo.networks._adcd import perceptual_distance
from attnzoo.testing.closeness import assert_close

from contract import made

CONFIG = {"num_classes": 3, "size": (6, 8), "widths": (4, 6, 5), "dims": (6, 8), "hidden": 4}
CONFIG |= {"loss_widths": (4, 3, 5), "state": 2, "dropout": 0.0, "detach": True}


def pair(batch: int = 2, size: tuple[int, int] = (6, 8)) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(batch, 4, *size, dtype=torch.float64)
    return x, torch.randn(batch, 1, 4 * size[0], 4 * size[1], dtype=torch.float64)


def network(**config: object) -> torch.nn.Module:
    return made("adcd_net", None, torch.float64, **{"c": 4, **CONFIG, **config})[1]


def test_the_distance_equals_the_formula() -> None:
    a, b = ([torch.randn(2, c, 3, 4, dtype=torch.float64) for c in (2, 3, 4)] for _ in range(2))
    wanted = 0.0
    for s in range(2):
        for u, v in zip(a, b, strict=True):
            for i in range(12):
                p, q = u[s].flatten(1)[:, i], v[s].flatten(1)[:, i]
                wanted = wanted + (p / p.norm() - q / q.norm()).square().sum() / 12 / 2
    assert_close(perceptual_distance(a, b), wanted)
    zero = [torch.zeros_like(m).requires_grad_() for m in a]
    perceptual_distance(zero, b).backward()
    assert all(m.grad.isfinite().all() for m in zero)  # theirs has the slope of a root at 0


def test_the_logits_equal_the_formula() -> None:
    net, (x, y) = network(), pair()
    _, t_ms, t_pan, m, p = net(x, y, stage=1)
    two = net.stage2
    ms, pan = two.images(x, y)
    norm, fc2 = two.out_norm, two.fc2
    fused, of_pan, of_ms = net(x, y)
    for dtm, maps, token, found in (
        (two.dtm_ms, ms, t_ms, of_ms),
        (two.dtm_pan, pan, t_pan, of_pan),
    ):
        read = dtm(maps, token=token)
        assert_close(found, fc2(norm(read).clamp(min=0)))
    masked = [(g.sigmoid() * d + d).clamp(min=0) for g, d in ((m, ms[3]), (p, pan[3]))]
    both = masked[0].flatten(1) + masked[1].flatten(1)
    assert_close(fused, fc2(norm(both @ two.fc1.weight.T + two.fc1.bias).clamp(min=0)))


def test_stage_one_compares_maps_of_twice_the_map_less_one() -> None:
    net, (x, y) = network(), pair()
    loss, t_ms, t_pan, m, p = net(x, y, stage=1)
    convs = net.stage1.metric
    maps = []
    for d in (p, m):
        first = F.conv2d(2 * d - 1, convs.conv1.weight, padding=1)
        second = F.conv2d(first, convs.conv2.weight, padding=1)
        third = F.conv2d(second, convs.conv3.weight, stride=2, padding=1)
        maps.append([t.clamp(min=0) for t in (first, second, third)])
    assert_close(loss, perceptual_distance(*maps))
    assert (t_ms.shape, t_pan.shape) == ((2, 1, 6), (2, 1, 8))
    assert m.shape == p.shape == (2, 5, 3, 4)


def trained(net: torch.nn.Module, outputs: tuple[torch.Tensor, ...]) -> set[str]:
    """Children of the stages that get a gradient."""
    net.zero_grad()
    sum(o.square().sum() for o in outputs if o.requires_grad).backward()
    named = ((k, p) for k, p in net.named_parameters() if p.grad is not None)
    return {".".join(k.split(".")[:2]) for k, p in named if p.grad.any()}


def test_who_is_trained_by_what() -> None:
    x, y = pair()
    net = network()
    loss = net(x, y, stage=1)[:1]
    assert trained(net, loss) == {"stage1.images", "stage1.metric"}  # the tokens are not
    assert {k.split(".")[0] for k in trained(net, net(x, y))} == {"stage2"}
    joint = network(detach=False, train_metric=False)
    assert trained(joint, joint(x, y, stage=1)[:1]) == {"stage1.images"}
    assert {"stage1.images", "stage1.token_ms", "stage1.token_pan"} < trained(joint, joint(x, y))


def test_dropout_is_of_the_fused_branch() -> None:
    net, (x, y) = network(dropout=0.5), pair()
    for m in net.modules():
        m.training = isinstance(m, torch.nn.Dropout)
    first, second = net(x, y), net(x, y)
    assert not torch.equal(first[0], second[0])
    assert_close(first[1:], second[1:])


def test_pooled_tokenizers_take_any_size() -> None:
    net = network(tokenizer="pool")
    for size in ((6, 8), (5, 9), (12, 4)):
        assert net(*pair(1, size))[0].shape == (1, 3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_joint_training_converges(seed: int) -> None:
    torch.manual_seed(seed)
    labels = torch.arange(12) % 3
    x, y = (t.float() for t in pair(12))
    x, y = x + labels[:, None, None, None], 0.3 * y
    config = {"detach": False, "train_metric": False}
    net = attnzoo.build("adcd_net", c=4, **{**CONFIG, **config}).train()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    losses = []
    for _ in range(80):
        fused, pan, ms = (F.cross_entropy(out, labels) for out in net(x, y))
        loss = fused + 0.8 * (pan + ms) + net(x, y, stage=1)[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(fused.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_published_counts() -> None:
    with torch.device("meta"):
        net = attnzoo.build("adcd_net")
    assert sum(p.numel() for p in net.parameters()) == 136855667
    assert net.stage1.macs(16, 16) == 140773056
    padding = 3 * 4 * (256 + 512)  # steps that the authors' causal convolutions cut off again
    assert net.stage2.macs(16, 16) == 264772608 - padding
    tokens = [net.stage2.dtm_ms.tokenizers, net.stage2.dtm_pan.tokenizers]
    assert sum(p.numel() for t in tokens for p in t.parameters()) == 125838336


def test_starts_as_the_authors_do() -> None:
    net = attnzoo.build("adcd_net", c=4, **CONFIG)
    weight = net.stage2.images.ms.convs[1].weight
    bound = (6 / (9 * (4 + 6))) ** 0.5
    assert 0.9 * bound < weight.abs().max() <= bound
    assert net.stage1.images.dia_ms.d_conv.weight.any()  # dia's own start is zero
    assert not torch.equal(net.stage1.images.ms.convs[1].weight, weight)
    assert net.stage1.images.dia_ms.scales == (0.4, 0.1)
    assert net.stage1.images.dia_pan.scales == (0.1, 0.4)


def test_refusals() -> None:
    net, (x, y) = network(), pair()
    for args, words in (
        ((x[..., :7], y), r"x is 6 x 7; the network was built for size=\(6, 8\)"),
        ((x, y[..., :31]), "y is 24 x 31; it must have four times .* 24 x 32"),
        ((x, y[:1]), "y has 1 samples"),
        ((x[:, :3], y), "x has 3 channels"),
    ):
        with pytest.raises(ValueError, match=words):
            net(*args)
    with pytest.raises(ValueError, match="stage=2 must be 1"):
        net(x, y, stage=2)
    with pytest.raises(ValueError, match="build with loss_widths"):
        network(loss_widths=None)(x, y, stage=1)
    for config, words in (({"num_classes": 1}, "num_classes=1"), ({"hidden": 1}, "hidden=1")):
        with pytest.raises(ValueError, match=words):
            attnzoo.build("adcd_net", **{**CONFIG, **config})
