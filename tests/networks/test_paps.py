"""PaPs: centers, masks and the panoptic map, on scenes whose answers are known."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import attnzoo
from attnzoo.autograd import reference_forms
from attnzoo.networks._panoptic import assemble, peaks, places, zone_peaks
from attnzoo.networks.paps import resampling
from attnzoo.testing.closeness import assert_close

from contract import made, step

CONFIG = {"dims": (8, 6, 4), "num_classes": 3, "shape_size": 5}
SIZE = attnzoo.InputSize(2, 6, 12, 9)


def masked(net: nn.Module, s: Tensor, z: Tensor, center: list[int], size: list[float]) -> Tensor:
    """One instance's mask (H, W), cropped as the paper has it."""
    whole, spans = torch.zeros_like(z), []
    box = [max(1, round(n)) for n in size]
    for at, extent, pixels in zip(center, box, z.shape, strict=True):
        start, stop = at - extent // 2, at + extent // 2 + extent % 2
        spans.append((max(start, 0), min(stop, pixels), max(start, 0) - start))
    (top, bottom, cut), (left, right, off) = spans
    resized = F.interpolate(s[None, None], box, mode="bilinear", align_corners=False)[0, 0]
    s = resized[cut : cut + bottom - top, off : off + right - left]
    z = z[top:bottom, left:right]
    if net.mask_cnn is None:
        mask = s.sigmoid() * z.sigmoid()
    else:
        conv, norm, _, second, _, last = net.mask_cnn
        x = F.conv2d((s + z)[None, None], conv.weight, conv.bias, padding=1)
        x = F.group_norm(x, 1, norm.weight, norm.bias).relu()
        x = F.conv2d(x, second.weight, second.bias, padding=1).relu()
        x = F.conv2d(x, last.weight, last.bias, padding=1)[0, 0]
        mask = (s + z).sigmoid() * x.sigmoid()
    whole[top:bottom, left:right] = mask
    return whole


@pytest.mark.parametrize("mask_conv", [True, False])
def test_instances_equal_the_formula(mask_conv: bool) -> None:
    _, net, inputs = made("paps", SIZE, torch.float64, **CONFIG, mask_conv=mask_conv)
    maps, at = inputs["features"], inputs["centers"].clone()
    at[1, 2:] = -1
    with torch.no_grad():
        net.size_mlp[6].bias += torch.tensor([2.6, 4.1], dtype=torch.float64)  # boxes past borders
        _, saliency, kind, size, masks = net(maps, centers=at)
    assert not kind[1, 2:].any()
    assert not size[1, 2:].any()
    assert not masks[1, 2:].any()
    for b, i in [(0, i) for i in range(6)] + [(1, 0), (1, 1)]:
        row, column = at[b, i].tolist()
        v = torch.cat(
            [m[b, :, row // n, column // n] for m, n in zip(maps, (4, 2, 1), strict=True)]
        )
        assert_close(kind[b, i], net.class_mlp(v[None])[0])
        assert_close(size[b, i], net.size_mlp(v[None])[0])
        s = net.shape_mlp(v[None]).view(5, 5)
        wanted = masked(net, s, saliency[b, 0], [row, column], size[b, i].tolist())
        assert_close(masks[b, i], wanted)


def test_traced_calls_compute_whole_images_and_agree() -> None:
    _, net, inputs = made("paps", SIZE, torch.float64, **CONFIG)
    found = step(net, inputs)
    with reference_forms():
        assert_close(found, step(net, inputs))


def test_a_resize_is_torchs_and_nothing_outside() -> None:
    at = torch.arange(10)
    weights = resampling(at, torch.tensor(2), torch.tensor(7), 4, torch.float64)
    cells = torch.randn(4, dtype=torch.float64)
    wanted = F.interpolate(cells[None, None], 7, mode="linear", align_corners=False)[0, 0]
    assert_close(weights @ cells, F.pad(wanted, (2, 1)))


def test_peaks_are_of_each_image_by_itself() -> None:
    heat = torch.zeros(2, 5, 7)
    heat[0, 1, 1], heat[0, 1, 5], heat[0, 4, 3] = 0.9, 0.5, 0.9
    heat[1, 2, 2], heat[1, 2, 3] = 0.01, 0.01  # far below the other image's mean; a tie stays
    found = places(peaks(heat))
    assert found[0].tolist() == [[1, 1], [1, 5], [4, 3]]
    assert found[1].tolist() == [[2, 2], [2, 3], [-1, -1]]
    assert places(peaks(torch.zeros(1, 4, 4))).shape == (1, 0, 2)


def test_a_zone_has_its_hottest_pixel() -> None:
    zones = torch.tensor([[[0, 0, 1], [2, 2, 1], [-1, 2, 1]]])
    heat = torch.tensor([[[0.1, 0.3, 0.2], [0.5, 0.4, 0.2], [0.9, 0.5, 0.1]]])
    assert places(zone_peaks(heat, zones))[0].tolist() == [[0, 1], [0, 2], [1, 0]]


def test_masks_are_painted_by_confidence() -> None:
    masks = torch.zeros(1, 5, 4, 6, dtype=torch.bool)
    masks[0, 0, :, :2] = True  # painted second
    masks[0, 1, :, 1:4] = True  # painted first
    masks[0, 2, :, 2:5] = True  # a third of it is free: left out
    masks[0, 3, 0, 5] = True  # painted fourth, though the third was not
    masks[0, 4, 3, 5] = True  # not accepted
    confidence = torch.tensor([[0.8, 0.9, 0.7, 0.6, 0.1]])
    scores = torch.arange(1.0, 6).view(1, 5, 1)
    ids, kind = assemble(masks, confidence, confidence >= 0.2, scores, 0.5)
    assert ids[0, 1].tolist() == [0, 1, 1, 1, 0, 0]  # half of the second is not more than half
    ids, kind = assemble(masks, confidence, confidence >= 0.2, scores, 0.49)
    assert ids[0, 1].tolist() == [2, 1, 1, 1, 0, 0]
    assert ids[0, 0, 5] == 4
    assert ids[0, 3, 5] == 0
    assert kind[0, 0].tolist()[1] == [1, 2, 2, 2, 0, 0]


def scene(net: nn.Module) -> tuple[Tensor, list[Tensor]]:
    """Weights that copy the first channel to the heat, with boxes of 4 x 3; and three bumps."""
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
        for i in (1, 4):
            net.heatmap_conv[i].weight.fill_(1)
        net.heatmap_conv[0].weight[0, 0, 1, 1] = net.heatmap_conv[3].weight[0, 0, 1, 1] = 1
        net.size_mlp[6].bias.copy_(torch.tensor([4.0, 3.0]).expm1().log())
        net.shape_mlp[3].bias.fill_(20)
        net.saliency_conv[4].bias.fill_(20)
        net.class_mlp[4].bias.copy_(torch.tensor([0.0, 2, 1]))
    finest = torch.zeros(1, 4, 12, 16)
    for row, column, heat in ((3, 4, 3.0), (8, 11, 2.0), (0, 15, 1.0)):
        finest[0, 0, row, column] = heat
    return finest, [torch.randn(1, 8, 3, 4), torch.randn(1, 6, 6, 8), finest]


def test_a_scene_with_a_known_answer() -> None:
    net = attnzoo.build("paps", **CONFIG, mask_conv=False).eval()
    _, maps = scene(net)
    wanted = torch.zeros(12, 16, dtype=torch.long)
    wanted[1:5, 3:6], wanted[6:10, 10:13], wanted[0:2, 14:16] = 1, 2, 3
    ids, kind = net.panoptic(maps)
    assert torch.equal(ids[0], wanted)
    assert torch.equal(kind[0].argmax(0), (wanted > 0).long())
    *_, centers = net(maps)
    assert centers[0].tolist() == [[0, 15], [3, 4], [8, 11]]
    net.min_confidence = 0.8
    assert net.panoptic(maps)[0].max() == 2
    nothing, _ = net.panoptic([torch.zeros_like(m) for m in maps])
    assert not nothing.any()


def test_zones_and_heat_alone() -> None:
    net = attnzoo.build("paps", **CONFIG).train()
    _, maps = scene(net)
    zones = torch.zeros(1, 12, 16, dtype=torch.long)
    zones[:, 6:], zones[:, :2, 3:] = 7, -1
    *_, centers = net(maps, zones=zones)
    assert centers[0].tolist() == [[3, 4], [8, 11]]
    heat, saliency = net(maps, heatmap_only=True)
    assert heat.shape == saliency.shape == (1, 1, 12, 16)


def test_places_of_none_stay_out_of_batch_norm() -> None:
    _, net, inputs = made("paps", SIZE, torch.float64, True, **CONFIG)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    more = F.pad(inputs["centers"], (0, 0, 0, 3), value=-1)
    net(inputs["features"], centers=more)
    after = {k: v.clone() for k, v in net.named_buffers()}
    net.load_state_dict(state)
    net(**inputs)
    assert_close(after, dict(net.named_buffers()))


def test_published_counts_and_a_checkpoint_with_an_encoder() -> None:
    net = attnzoo.build("paps", dims=(128, 64, 32, 32))
    assert sum(p.numel() for p in net.parameters()) == 172413
    names = {"heatmap_conv": "heatmap_conv.0.conv", "saliency_conv": "saliency_conv.conv"}
    state = {"encoder.in_conv.weight": torch.ones(2), "min_confidence": torch.ones(1)}
    for key, value in net.state_dict().items():
        first, rest = key.split(".", 1)
        state[f"{names.get(first, first)}.{rest}"] = value
    loaded = attnzoo.from_upstream("paps", state, dims=(128, 64, 32, 32))
    assert_close(loaded.state_dict(), net.state_dict())


def test_the_head_of_a_utae() -> None:
    utae = attnzoo.build(
        "utae", c=3, encoder_widths=(4, 8), decoder_widths=None, heads=2, d_model=8
    )
    head = attnzoo.build("paps", dims=(8, 4), num_classes=2)
    x, days = torch.randn(2, 3, 3, 10, 7), torch.arange(3)
    maps = utae(x, positions=days, features=True)
    zones = torch.arange(10)[:, None].expand(2, 10, 7) // 4
    outputs = head(maps, zones=zones)
    assert outputs[4].shape == (2, 3, 10, 7)
    sum(o.float().sum() for o in outputs[:5]).backward()
    assert all(p.grad is not None for p in (*head.parameters(), *utae.in_conv.parameters()))
    assert outputs[4].isfinite().all()


def test_refusals() -> None:
    net = attnzoo.build("paps", **CONFIG).train()
    maps = [torch.randn(2, 8, 3, 4), torch.randn(2, 6, 6, 8), torch.randn(2, 4, 12, 16)]
    at = torch.zeros(2, 1, 2, dtype=torch.long)
    for bad, words in (
        (maps[:2], "features has 2 tensors"),
        ([maps[0], maps[1][..., :7], maps[2]], r"features\[1\] is 6 x 7; .* must be 6 x 8"),
        ([m[:, :, :1, :1] for m in maps], "at least 2 x 2 pixels"),
    ):
        with pytest.raises(ValueError, match=words):
            net(bad, centers=at)
    for centers, words in (
        (at[:1], r"centers has shape \(1, 1, 2\)"),
        (at + 12, r"to \[12, 12\]; the image is 12 x 16"),
        (at - 2, r"and -1 is none"),
        (at.float(), r"centers.long\(\)"),
        (F.pad(at[:, :0], (0, 0, 0, 1), value=-1), "train-mode BatchNorm 0 values"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            net(maps, centers=centers)
    with pytest.raises(ValueError, match="zones is torch"):
        net(maps, zones=torch.zeros(2, 12, 16))
