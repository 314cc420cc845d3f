"""ADCD-Net: two stages that classify a patch of a multispectral and a panchromatic image.

When: a patch of a multispectral and a panchromatic image is to be put into one class.
Paper: An Adaptive Dual-Supervised Cross-Deep Dependency Network for Pixel-Wise Classification,
    IEEE TGRS 2025, document 10841446.
Code: ChenC1027/ADCD-Net @bb9440ce, `ADCD_Net.py` (`SS_Net`, `S_Net`), `SPS.py`, which import the
    sequence core `Mamba` from a file `DTM.py` that was never published.
Math: for each image three convolutions f_1, f_2, f_3 and d = dia(f_3). Stage 1 gives prior maps
    d', prior tokens t = relu(norm(W flatten(d'))) and the loss sum_k mean_HW |u_k(d'_pan) -
    u_k(d'_ms)|^2, u_k unit along channels of three convolutions of 2 d' - 1. Stage 2, with
    features of its own: r = dtm([f_1, f_2, f_3, d], token=t) for each image;
    e = relu((sigmoid(d') + 1) d) of both, flattened and added, fused = W_1 e;
    logits = W_2 relu(norm(.)) of fused (with dropout), r_pan and r_ms, with one norm and W_2.
Shapes: x (B, c, H, W) and y (B, c_y, 4 H, 4 W) of the size built for -> (fused, pan, ms), each
    (B, num_classes); `stage=1` -> loss, tokens (B, 1, dims[0]), (B, 1, dims[1]), maps
    (B, widths[2], ceil(H / 2), ceil(W / 2)) of x and y.
Differs: the sequence core is assembled, as `dtm` says; all else is the authors' arithmetic. Layers
    of theirs that never act are left out. Theirs detaches what stage 1 gives, so that its tokens
    are projections never trained, and trains the loss's own convolutions, which can shrink the
    loss without the features: both are the default, `detach=False` and `train_metric=False` the
    remedy. Prediction computes neither the loss nor tokens that nobody reads.
Cost: 136,855,667 parameters by default, 125,838,336 of them of stage 2's tokenizers;
    `tokenizer="pool"` needs 16 times fewer and takes any size.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from torch import Tensor, nn

from ..ops.stop_gradient import stop_gradient
from ..registry import Inputs, InputSize, Random, register
from ..validation import check
from ..validation.messages import shown
from ..validation.types import AtLeast, Count, Positive, Rate, Width
from ._adcd import Images, Metric, Stage1, Stage2

Several = Annotated[int, AtLeast(2)]
Widths = tuple[Width, Width, Width]


class ADCDNet(nn.Module):
    """ADCD-Net: `net(x, y)` classifies patches; `net(x, y, stage=1)` gives the first stage's loss.

    The authors train `net.stage1` by its loss for 5 epochs, then `net.stage2` by
    CE(fused) + 0.8 (CE(pan) + CE(ms)), each with an Adam of its own. With `detach=False` and
    `train_metric=False` one optimizer trains both, by the sum of the two losses.

    Args:
        c: channels of the multispectral image x.
        c_y: channels of the panchromatic image y.
        num_classes: classes.
        size: height and width of x; y has four times as many of both.
        widths: channels of the three convolutions.
        dims: widths of the tokens of x and of y.
        hidden: width of the readouts.
        loss_widths: channels of the loss's convolutions; None: no loss, for prediction alone.
        pool: which token of `dtm` is read: the "last", the "first", or the "mean".
        state: of `dtm`.
        conv: of `dtm`.
        expand: of `dtm`.
        dropout: of the fused branch.
        tokenizer: "flatten" or, for any size, "pool"; see `dtm`.
        detach: whether no gradient reaches stage 1 from stage 2.
        train_metric: whether the loss's convolutions are trained.

    Raises:
        ValueError: images whose sizes do not go together, or other ones than `size`.
    """

    def __init__(
        self,
        c: Width = 4,
        *,
        c_y: Width = 1,
        num_classes: Several = 7,
        size: tuple[Count, Count] = (16, 16),
        widths: Widths = (128, 256, 128),
        dims: tuple[Several, Several] = (256, 512),
        hidden: Several = 64,
        loss_widths: Widths | None = (128, 256, 256),
        pool: Literal["last", "first", "mean"] = "last",
        state: Count = 16,
        conv: Count = 4,
        expand: Positive = 1,
        dropout: Rate = 0.5,
        tokenizer: Literal["flatten", "pool"] = "flatten",
        detach: bool = True,
        train_metric: bool = True,
    ) -> None:
        super().__init__()
        self.c, self.c_y, self.size, self.detach = c, c_y, size, detach
        self.any_size = tokenizer == "pool"
        first, second = Images(c, c_y, widths), Images(c, c_y, widths)
        metric = None if loss_widths is None else Metric(widths[2], loss_widths)
        if metric is not None:
            metric.requires_grad_(train_metric)
        self.stage1 = Stage1(first, first.last(*size), dims, self.any_size, metric)
        config: dict[str, Any] = {
            "c_out": hidden,
            "expand": expand,
            "state": state,
            "conv": conv,
            "pool": pool,
        }
        config["tokenizer"] = tokenizer
        self.stage2 = Stage2(second, size, dims, num_classes, dropout, config)
        self.apply(_initialize)

    def forward(self, x: Tensor, y: Tensor, *, stage: int | None = None) -> tuple[Tensor, ...]:
        """Logits (fused, pan, ms), or with `stage=1` the loss, tokens and maps of stage 1."""
        self._check(x, y)
        if stage not in (None, 1):
            raise ValueError(f"stage={shown(stage)} must be 1, or None for both")
        m, p, t_ms, t_pan = self.stage1(x, y)
        if stage == 1:
            return self.stage1.loss(m, p), t_ms, t_pan, m, p
        prior: tuple[Tensor, ...] = (m, p, t_ms, t_pan)
        prior = tuple(map(stop_gradient, prior)) if self.detach else prior
        out: tuple[Tensor, Tensor, Tensor] = self.stage2(x, y, *prior)
        return out

    def macs(self, size: InputSize) -> int:
        """Multiply-adds of one sample's prediction."""
        at = (size.height, size.width) if self.any_size else self.size
        return self.stage1.macs(*at) + self.stage2.macs(*at)

    def _check(self, x: Tensor, y: Tensor) -> None:
        like = self.stage2.fc2
        check.image(x, self.c, like)
        check.image(y, self.c_y, like, name="y")
        check.same_batch(x=x, y=y)
        if not self.any_size and tuple(x.shape[2:]) != self.size:
            raise ValueError(
                f"x is {x.shape[2]} x {x.shape[3]}; the network was built for size={self.size}: "
                "cut x into patches of that size, or build with tokenizer='pool'"
            )
        if tuple(y.shape[2:]) != (4 * x.shape[2], 4 * x.shape[3]):
            raise ValueError(
                f"y is {y.shape[2]} x {y.shape[3]}; it must have four times the height and width "
                f"of x, {4 * x.shape[2]} x {4 * x.shape[3]}: resize it"
            )

    def extra_repr(self) -> str:
        return f"c={self.c}, c_y={self.c_y}, size={self.size}, detach={self.detach}"


def _initialize(layer: nn.Module) -> None:
    """The authors': Xavier uniform for the weights of 2-d convolutions and linear layers."""
    if isinstance(layer, (nn.Conv2d, nn.Linear)):
        nn.init.xavier_uniform_(layer.weight)


def inputs(random: Random, size: InputSize, config: Mapping[str, Any]) -> Inputs:
    pooled = config["tokenizer"] == "pool"
    rows, columns = (size.height, size.width) if pooled else config["size"]
    x = random(size.batch, config["c"], rows, columns)
    return {"x": x, "y": random(size.batch, config["c_y"], 4 * rows, 4 * columns)}


def _images(net: str, ours: str) -> dict[str, str]:
    """Keys of the features and DIA of a stage."""
    keys = {f"{net}.dct": f"{ours}.dia_ms", f"{net}.dct1": f"{ours}.dia_pan"}
    for k, image in ((1, "ms"), (2, "pan")):
        for i in range(3):
            keys[f"{net}.featnet{k}.conv{i + 1}"] = f"{ours}.{image}.convs.{i}"
            keys[f"{net}.featnet{k}.bn{i + 1}"] = f"{ours}.{image}.norms.{i}"
    return keys


def _series(name: str, k: int) -> dict[str, str]:
    """Keys of a branch over the depths."""
    ours = f"stage2.dtm_{name.lower()}"
    keys = {f"cnn1.featnet{k}.{name}_st{i + 1}": f"{ours}.tokenizers.{i}" for i in range(3)}
    keys[f"cnn1.{name}_st4"] = f"{ours}.tokenizers.3"
    keys[f"cnn1.proj_norm{name.lower()}"] = f"{ours}.proj_norm"
    return {**keys, f"cnn1.{name}_mb": f"{ours}.mamba"}


_IDLE = (
    *(f"cnn0.featnet{k}.{name}_st{i}" for k, name in ((1, "Ms"), (2, "Pan")) for i in (1, 2, 3)),
    *(f"cnn{n}.featnet{k}.mb_conv{i}" for n in (0, 1) for k in (1, 2) for i in (2, 3, 4)),
    *(f"cnn{n}.featnet2.bn4" for n in (0, 1)),
    *(f"cnn0.loss_pan.net.{layer}" for layer in ("conv4", "bn1", "d_pan1", "d_pan2", "d_pan3")),
)

register(
    "adcd_net",
    ADCDNet,
    layout="pair",
    family="network",
    example={
        "c": 3,
        "num_classes": 3,
        "size": (5, 6),
        "widths": (4, 6, 4),
        "dims": (6, 4),
        "hidden": 4,
        "loss_widths": None,
        "state": 2,
        "dropout": 0.0,
        "detach": False,
    },
    inputs=inputs,
    upstream={
        **_images("cnn0", "stage1.images"),
        **_images("cnn1", "stage2.images"),
        **_series("Ms", 1),
        **_series("Pan", 2),
        "cnn0.Ms_st4": "stage1.token_ms",
        "cnn0.Pan_st4": "stage1.token_pan",
        "cnn0.loss_pan.net": "stage1.metric",
        "cnn1.out_proj_norm": "stage2.out_norm",
        "cnn1.fc1": "stage2.fc1",
        "cnn1.fc2": "stage2.fc2",
        **dict.fromkeys(_IDLE),
    },
    limits={
        "gradcheck": "it runs, but dia's scales make the gradient no derivative, by the authors' "
        "design"
    },
)
