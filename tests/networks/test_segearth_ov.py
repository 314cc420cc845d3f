"""SegEarth-OV: its tower is CLIP's, its windows cover, its classes are those of their texts."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import attnzoo
from attnzoo.networks._clip import slide, text_logits
from attnzoo.networks.segearth_ov import clip_head
from attnzoo.testing.closeness import assert_close

from contract import made

CONFIG = {"c": 12, "heads": 3, "dim": 8, "patch": 4, "upsampler": None}


def clip(**config: object) -> nn.Module:
    """A small vision model of transformers in float64."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 12, "intermediate_size": 48, "projection_dim": 8}
    sizes |= {"num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 12, "patch_size": 4}
    settings = transformers.CLIPVisionConfig(**{**sizes, **config})
    model = transformers.CLIPVisionModelWithProjection(settings).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_((p + 0.1 * torch.randn_like(p)).float())  # exact in either dtype
    return model


def openclip(model: nn.Module) -> dict[str, Tensor]:
    """The same weights under OpenCLIP's names."""
    state = {k.removeprefix("vision_model."): v for k, v in model.state_dict().items()}
    found = {"proj": state["visual_projection.weight"].T}
    found["class_embedding"] = state["embeddings.class_embedding"]
    found["conv1.weight"] = state["embeddings.patch_embedding.weight"]
    found["positional_embedding"] = state["embeddings.position_embedding.weight"]
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc"}
    names |= {"mlp.fc2": "mlp.c_proj", "self_attn.out_proj": "attn.out_proj"}
    for end in ("weight", "bias"):
        found[f"ln_pre.{end}"] = state[f"pre_layrnorm.{end}"]
        found[f"ln_post.{end}"] = state[f"post_layernorm.{end}"]
        for i in range(3):
            theirs, ours = f"encoder.layers.{i}", f"transformer.resblocks.{i}"
            parts = [state[f"{theirs}.self_attn.{part}_proj.{end}"] for part in "qkv"]
            found[f"{ours}.attn.in_proj_{end}"] = torch.cat(parts)
            for a, b in names.items():
                found[f"{ours}.{b}.{end}"] = state[f"{theirs}.{a}.{end}"]
    return {f"visual.{key}": value for key, value in found.items()}


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_with_the_ordinary_attention_it_is_clip(act: str) -> None:
    """The class feature is CLIP's image embedding, from its tokens and from the image."""
    model, image = clip(hidden_act=act), torch.randn(2, 3, 12, 12, dtype=torch.float64)
    found = model(image, output_hidden_states=True)
    text = torch.eye(8, dtype=torch.float64)
    unit = F.normalize(found.image_embeds, dim=1)
    ordinary = {"mode": "qk", "residual": True, "upsampler": None}
    each = []
    for bias in (0.0, 1.0):
        head = clip_head(model, **ordinary, global_bias=bias).double().eval()
        config = {**CONFIG, **ordinary, "layers": 3, "image_size": 12, "act": act}
        net = attnzoo.from_upstream("segearth_ov", openclip(model), **config, global_bias=bias)
        logits = head(found.hidden_states[-2], text, image)
        assert_close(net.double().eval()(image, text), logits)
        each.append(logits)
    own = each[0] - each[1]  # the class feature's logits
    assert_close(own, unit[..., None, None].expand_as(own))


def test_the_last_block_of_a_checkpoint_loads_alone() -> None:
    model = clip()
    state = openclip(model)
    last = {k.replace("resblocks.2.", "resblocks.11."): v for k, v in state.items()}
    net = attnzoo.from_upstream("segearth_ov", last, **CONFIG)
    assert_close(net.state_dict(), clip_head(model, upsampler=None).state_dict(), torch.float32)


def test_logits_equal_the_formula() -> None:
    f, z, t = (torch.randn(*s, dtype=torch.float64) for s in ((2, 5, 3, 4), (2, 5), (6, 5)))
    found = text_logits(f, z, t, 0.3)
    for b in range(2):
        pixel, cls = f[b, :, 1, 2], z[b]
        wanted = t @ pixel / pixel.norm() - 0.3 * t @ cls / cls.norm()
        assert_close(found[b, :, 1, 2], wanted)


def cubic(rows: int, side: int) -> Tensor:
    """(rows, side): bicubic weights of the table's axis, with OpenCLIP's tenth."""
    out = torch.zeros(rows, side, dtype=torch.float64)
    for i in range(rows):
        at = (i + 0.5) * side / (rows + 0.1) - 0.5
        low = int(at // 1)
        for j in range(low - 1, low + 3):
            d = abs(at - j)
            a, near = -0.75, (-0.75 + 2) * d**3 - (-0.75 + 3) * d**2 + 1
            w = near if d <= 1 else a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
            out[i, min(max(j, 0), side - 1)] += w
    return out


@pytest.mark.parametrize("grid", [(3, 3), (1, 9), (5, 4)], ids=str)
def test_places_are_resized_wherever_the_grid_differs(grid: tuple[int, int]) -> None:
    _, net, _ = made("segearth_ov", None, torch.float64, **CONFIG, layers=2, image_size=12)
    table = net.embedding.positional_embedding
    found = net.embedding._places(*grid)
    wanted = table[1:].view(3, 3, 12)
    if grid != (3, 3):
        wanted = torch.einsum("ij,kl,jlc->ikc", cubic(grid[0], 3), cubic(grid[1], 3), wanted)
    assert_close(found, torch.cat((table[:1], wanted.flatten(0, 1))), torch.float32)


def test_windows_cover_and_are_averaged() -> None:
    image = torch.arange(7 * 10.0).view(1, 1, 7, 10).expand(1, 3, 7, 10)
    seen = []

    def fn(window: Tensor) -> Tensor:
        seen.append(window.shape[2:])
        return window[:, :1] + 100 * len(seen)

    found = slide(fn, image, 6, 4, 4)
    assert seen == [(8, 8)] * 4  # windows of 6 x 6, padded by one pixel all around
    value, y = found[0, 0], image[0, 0]
    assert value[0, 0] == y[0, 0] + 100  # the first window alone
    assert value[0, 5] == y[0, 5] + 150  # two side by side
    assert value[3, 5] == y[3, 5] + 250  # all four
    assert value[6, 9] == y[6, 9] + 400
    small = slide(fn, image[:, :, :3], 6, 4, 4)
    assert small.shape == (1, 1, 3, 10)
    assert seen[-1] == (4, 8)


def test_windows_of_a_batch_are_those_of_its_images() -> None:
    config = {**CONFIG, "layers": 2, "image_size": 8, "crop": 8, "stride": 4}
    _, net, _ = made("segearth_ov", None, torch.float64, **config)
    x, y = torch.randn(3, 3, 10, 13, dtype=torch.float64), torch.randn(4, 8, dtype=torch.float64)
    found = net(x, y)
    assert found.shape == (3, 4, 10, 13)
    assert_close(found[1:2], net(x[1:2], y))
    whole = attnzoo.build("segearth_ov", **{**config, "crop": 0, "stride": 0}).double()
    whole.load_state_dict(net.state_dict())
    last = F.pad(x[..., 2:, 5:], (0, 0, 0, 0))
    assert_close(found[..., -1, -1], whole.eval()(last, y)[..., -1, -1])


def test_classes_are_the_best_of_their_texts() -> None:
    _, net, _ = made("segearth_ov", None, torch.float64, **CONFIG)
    x, image = torch.randn(2, 5, 12).double(), torch.randn(2, 3, 8, 8).double()
    y, classes = torch.randn(4, 8).double(), [1, 0, 1, 2]
    logits = net(x, y, image)
    p, labels = net(x, y, image, classes=classes, scale=3.0)
    each = (3 * logits).softmax(1)
    best = torch.stack((each[:, 1], torch.maximum(each[:, 0], each[:, 2]), each[:, 3]), 1)
    assert_close(p, best)
    assert torch.equal(labels, best.argmax(1))
    middle = float(best.detach().amax(1).median())
    other = int(labels[best.amax(1) < middle][0] + 1) % 3
    _, sure = net(x, y, image, classes=classes, scale=3.0, threshold=middle, background=other)
    assert torch.equal(sure, torch.where(best.amax(1) < middle, other, labels))
    assert (sure != labels).any()


def test_the_upsamplers() -> None:
    for kind in ("jbu_one", "jbu_stack"):
        config = {"upsampler": kind, "patch": 16, "key_dim": 4, "radius": 1}
        _, net, inputs = made("segearth_ov", None, torch.float64, **{**CONFIG, **config})
        x, y, image = inputs.values()
        found = net(x, y, image)
        z = net.ln_post(net.blocks[0](x)) @ net.proj
        grid = (image.shape[2] // 16, image.shape[3] // 16)
        features = net.upsampler(z[:, 1:].mT.unflatten(2, grid), image)
        assert_close(found, text_logits(features, z[:, 0], y, 0.3))


def test_published_counts() -> None:
    size, grid = (attnzoo.InputSize(height=n, width=n) for n in (224, 14))
    with torch.device("meta"):
        net = attnzoo.build("segearth_ov", c=768, layers=12, residual=True, upsampler=None)
        assert sum(p.numel() for p in net.parameters()) == 86192640
        net = attnzoo.build("segearth_ov", c=768, layers=12)
    logits = 5 * 512 * (224**2 + 1)
    assert net.macs(size) - logits - net.upsampler.macs(grid) == 16770571776
    assert sum(p.numel() for p in net.upsampler.parameters()) == 293729


def test_refusals() -> None:
    for config, words in (
        ({"upsampler": "jbu_one"}, "patch=4: upsampler='jbu_one' makes maps 16 times"),
        ({"layers": 2, "image_size": 10}, "patch=4 must divide image_size=10"),
        ({"layers": 2, "crop": 8, "stride": 9}, "stride=9 leaves pixels between windows of crop=8"),
    ):
        with pytest.raises(ValueError, match=words):
            attnzoo.build("segearth_ov", **{**CONFIG, **config})
    net = attnzoo.build("segearth_ov", **CONFIG)
    x, y, image = torch.randn(2, 5, 12), torch.randn(3, 8), torch.randn(2, 3, 8, 8)
    for args, words in (
        ((x, y[None], image), r"y has shape \(1, 3, 8\); it is text"),
        ((x, y[:, :7], image), "y has 7 channels"),
        ((x, y), "guidance is missing"),
        ((x, y, image[..., :6]), "guidance has W=6, no multiple of patch=4; the nearest are 4 and"),
        ((x[:, 1:], y, image), r"for a guidance of 8 x 8 it is \(B, 1 \+ 2 \* 2, 12\)"),
        ((x[:1], y, image), "guidance has 2 samples"),
    ):
        with pytest.raises(ValueError, match=words):
            net(*args)
    for options, words in (
        ({"classes": [0, 1]}, r"classes=\[0, 1\] must give each of the 3 texts"),
        ({"classes": [0, 2, 2]}, "without gaps"),
        ({"classes": [0, 1, 1], "background": 2}, "background=2 must be a class, 0 to 1"),
    ):
        with pytest.raises(ValueError, match=words):
            net(x, y, image, **options)
    tower = attnzoo.build("segearth_ov", **CONFIG, layers=1, image_size=8)
    with pytest.raises(ValueError, match="x has H=6, no multiple of patch=4"):
        tower(torch.randn(1, 3, 6, 8), y)
