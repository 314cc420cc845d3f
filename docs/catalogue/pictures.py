"""What a block attends to, on a photograph of scikit-learn or a series of statsmodels, as JPEG.

Nothing is trained: the parameters have their initial values. The features of the photograph are its
colors and the responses of oriented filters, mixed into as many channels as the block has; through
a ReLU; those of the series are its last values.
"""

import io
import math
from typing import Any

import matplotlib
import torch
import torch.nn.functional as F
from torch import Tensor

import attnzoo
from attnzoo.registry import find
from attnzoo.testing.inputs import make_inputs
from attnzoo.validation.tensors import tensors

import upsample_photo

SIZE = (160, 240)
PATCH = 5
STEPS = 48


def picture(name: str) -> bytes | None:
    """The picture of one block, or None if it has no weights to show on these data."""
    matplotlib.use("agg")
    from matplotlib import pyplot

    torch.manual_seed(3)  # with seed 0, every hidden unit of se is negative: all gates are 0.5
    layout = find(name).layouts[0]
    figure, axes = pyplot.subplots(figsize=(3.2, 2.15), dpi=100, layout="constrained")
    try:
        if name in attnzoo.names(family="upsampler"):
            _upsampled(name, axes)
        elif layout in ("image", "pair") and _takes_like_images(name):
            _on_photograph(name, axes)
        elif "sequence" in find(name).layouts and "c" in find(name).example:
            _on_series(name, axes)
        else:
            return None
        buffer = io.BytesIO()
        figure.savefig(buffer, format="jpg")
        return buffer.getvalue()
    except ValueError as error:
        if "no weights to show" in str(error) or "attentions of" in str(error):
            return None
        raise
    finally:
        pyplot.close(figure)


def strip() -> bytes:
    """The README's picture: a photograph and what six blocks give weight to in it."""
    matplotlib.use("agg")
    from matplotlib import pyplot

    names = ("simam", "cbam", "coordatt", "ema", "ms_cam", "iaff", "danet_position")
    figure, places = pyplot.subplots(2, 4, figsize=(9.6, 3.6), dpi=90, layout="constrained")
    places.flat[0].imshow(upsample_photo.photograph(*SIZE)[0].clamp(0, 1).permute(1, 2, 0).numpy())
    places.flat[0].axis("off")
    places.flat[0].set_title("photograph", fontsize=9)
    for name, axes in zip(names, places.flat[1:], strict=True):
        torch.manual_seed(0)
        _on_photograph(name, axes)
        axes.set_title(name, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="jpg")
    pyplot.close(figure)
    return buffer.getvalue()


def _takes_like_images(name: str) -> bool:
    """Whether all inputs are images of one shape."""
    entry = find(name)
    inputs = make_inputs(entry, dict(entry.example), entry.input_size, device="meta")
    shapes = {tuple(tensor.shape) for tensor in tensors(inputs)}
    return len(shapes) == 1 and len(shapes.pop()) == 4


def _on_photograph(name: str, axes: Any) -> None:
    config = dict(find(name).example)
    photo = upsample_photo.photograph(*SIZE)
    maps = F.avg_pool2d(upsample_photo.features(photo), PATCH)
    x = _mixed(maps, config["c"])
    inputs = [x, F.avg_pool2d(x, 5, 1, 2)] if find(name).layouts[0] == "pair" else [x]
    block = attnzoo.build(name, **config).eval()
    attnzoo.plot_attention(block, *inputs, picture=photo[0], axes=axes)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_size(8)


def _mixed(maps: Tensor, c: int) -> Tensor:
    """(1, F, H, W) in c channels, by a fixed random matrix and a ReLU, as in a network."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(c, maps.shape[1], generator=generator) / math.sqrt(maps.shape[1])
    return torch.einsum("cf,bfhw->bchw", matrix, maps).relu()


def _on_series(name: str, axes: Any) -> None:
    from statsmodels.datasets import sunspots

    entry = find(name)
    config = dict(entry.example)
    if "layout" in entry.signature.parameters:
        config["layout"] = "sequence"
    c = config["c"]
    values = torch.tensor(sunspots.load_pandas().data["SUNACTIVITY"].to_numpy()[-(STEPS + c) :])
    values = ((values - values.mean()) / values.std()).float()
    x = values.unfold(0, c, 1)[-STEPS:][None]  # 1 T C: the last c values of each step
    if "window" in entry.signature.parameters:
        config["window"] = 0  # all steps
    if "length" in entry.signature.parameters:
        config["length"] = STEPS
    block = attnzoo.build(name, **config).eval()
    keywords = {"positions": torch.arange(float(STEPS))[None]} if name == "ltae" else {}
    attnzoo.plot_attention(block, x, picture=values[-STEPS:], axes=axes, **keywords)


def _upsampled(name: str, axes: Any) -> None:
    photo = upsample_photo.photograph(192, 288)
    target = upsample_photo.features(photo)
    result = upsample_photo.upsample(name, photo, target)
    if result.error is None:
        axes.imshow(((result.features[0] + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy())
    else:
        axes.imshow(upsample_photo.colors([result.features], target)[0])
    axes.axis("off")
