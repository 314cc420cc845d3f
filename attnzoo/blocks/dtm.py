"""Deep temporal Mamba: a Mamba mixer over features of several depths and a prior token.

When: features of several depths of a network are to be summed up in one vector.
Paper: An Adaptive Dual-Supervised Cross-Deep Dependency Network for Pixel-Wise Classification
    (ADCD-Net, its DTM module), IEEE TGRS 2025, document 10841446.
Code: ChenC1027/ADCD-Net @bb9440ce, `ADCD_Net.py` (`S_Net.forward`), which imports `Mamba` from a
    file `DTM.py` that was never published.
Math: t_i = relu(norm(W_i flatten(f_i) + b_i)), one token of `dim` per depth; s = [t_1, ..., t_k,
    token]; y = mamba(norm(s)), c_out wide; out = relu(norm(y_last)), or of another readout `pool`.
    norm(x) = a_2 (x - mean) / (std + 1e-6) + b_2 with the unbiased std.
Shapes: k maps (B, C_i, H_i, W_i) and optionally `token` (B, n, dim) -> (B, c_out); with
    `need_tokens=True` also y, (B, k + n, c_out), for a head of one's own on every depth.
Differs: the tokenizers, norms, order and readout are the authors'. Their `Mamba` is not public; it
    is replaced here by the official mixer, with a last projection c_out wide. The reference vectors
    are computed with it, too, and are not the authors' results. Their code wraps the token in a new
    `nn.Parameter` at every call, which detaches it: `detach=True` does the same. Their classifier
    `fc2` is left to the user. `tokenizer="pool"` is ours: it averages each map over a grid before
    W_i, so that it accepts any height and width.
Cost: with n_i = C_i H_i W_i (C_i grid^2 when pooled), parameters sum_i (n_i dim + 3 dim) + 2 dim +
    mamba + 2 c_out; MACs sum_i n_i dim + mamba's, of k steps and one of the token.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from ..ops.pooling import adaptive_average
from ..ops.precision import upcast
from ..ops.stop_gradient import stop_gradient
from ..registry import Inputs, InputSize, Random, register
from ..validation import check, messages
from ..validation.types import AtLeast, Count, NotEmpty, Positive, Width
from .mamba import Mamba

MapSize = tuple[Width, Count, Count]  # C, H, W
Normed = Annotated[int, AtLeast(2)]  # a width that is normalized: one value has no deviation


class DTM(nn.Module):
    """Deep temporal Mamba on a list of (B, C_i, H_i, W_i), shallow to deep.

    `block(features, token=prior)`: the scan is causal, and the prior, at the end, sees every depth.

    Args:
        sizes: (C, H, W) of each map; `tokenizer="pool"` accepts any height and width.
        dim: width of a token.
        c_out: channels out.
        expand: inner channels of the mixer per channel of a token.
        state: size of the state of each inner channel.
        conv: taps of the mixer's causal convolution.
        pool: readout: "last" token (the authors' "cls"), "first" (their `cls_token="head"`), or
            the "mean" of all.
        tokenizer: "flatten" (the authors') projects all values of a map of fixed size; "pool"
            projects the means over a grid, for maps of any size.
        grid: rows and columns of that grid.
        detach: whether the token's gradient is cut, as in the authors' training.
        readout_norm: whether the readout is normalized and rectified, else left to the caller.

    Raises:
        ValueError: `expand` leaves no inner channel of `dim`.
    """

    def __init__(
        self,
        sizes: Annotated[tuple[MapSize, ...], NotEmpty()],
        *,
        dim: Normed = 256,
        c_out: Normed = 64,
        expand: Positive = 1,
        state: Count = 16,
        conv: Count = 4,
        pool: Literal["last", "first", "mean"] = "last",
        tokenizer: Literal["flatten", "pool"] = "flatten",
        grid: Count = 4,
        detach: bool = False,
        readout_norm: bool = True,
    ) -> None:
        super().__init__()
        self.sizes, self.dim, self.pool, self.detach = sizes, dim, pool, detach
        across = grid if tokenizer == "pool" else None
        self.tokenizers = nn.ModuleList(Tokenizer(size, dim, across) for size in sizes)
        self.proj_norm = UnbiasedNorm(dim)
        self.mamba = Mamba(dim, c_out=c_out, expand=expand, state=state, conv=conv)
        self.out_norm = UnbiasedNorm(c_out) if readout_norm else None

    def forward(
        self, features: Sequence[Tensor], *, token: Tensor | None = None, need_tokens: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """(B, c_out), or that and the mixer's output (B, T, c_out) for every token."""
        check.flag(need_tokens=need_tokens)
        self._check(features, token)
        tokens = [make(x) for make, x in zip(self.tokenizers, features, strict=True)]
        series = torch.stack(tokens, 1)  # B k dim
        if token is not None:
            series = torch.cat((series, stop_gradient(token) if self.detach else token), 1)
        y = self.mamba(self.proj_norm(series))  # B T c_out
        read = y.mean(1) if self.pool == "mean" else y[:, 0 if self.pool == "first" else -1]
        out: Tensor = read if self.out_norm is None else self.out_norm(read).relu()
        return (out, y) if need_tokens else out

    def _check(self, features: Sequence[Tensor], token: Tensor | None) -> None:
        like = self.proj_norm
        if not isinstance(features, (list, tuple)) or len(features) != len(self.sizes):
            listed = isinstance(features, (list, tuple))
            got = f"{len(features)} maps" if listed else f"a {type(features).__name__}"
            raise ValueError(
                f"features must be a list of {len(self.sizes)} maps, one for each of "
                f"sizes={messages.shown(self.sizes)}, not {got}"
            )
        for i, (x, size, make) in enumerate(
            zip(features, self.sizes, self.tokenizers, strict=True)
        ):
            check.image(x, size[0], like, name=f"features[{i}]")
            if make.grid is None and tuple(x.shape[1:]) != size:
                raise ValueError(
                    f"features[{i}] has shape {tuple(x.shape)}; tokenizer='flatten' was built for "
                    f"sizes[{i}]={size}: resize the map, or build with tokenizer='pool'"
                )
            _check_batch(f"features[{i}]", x, features[0])
        if token is not None:
            check.sequence(token, self.dim, like, name="token")
            if token.ndim != 3:
                raise ValueError(
                    f"token has shape {tuple(token.shape)}; it must be (B, n, {self.dim})"
                )
            _check_batch("token", token, features[0])

    def macs(self, size: InputSize) -> int:
        maps = [m.weight.numel() for m in self.tokenizers.modules() if isinstance(m, nn.Linear)]
        return sum(maps) + self.mamba.macs(size._replace(steps=len(self.sizes) + 1))

    def extra_repr(self) -> str:
        return f"sizes={self.sizes}, dim={self.dim}, pool={self.pool!r}"


class UnbiasedNorm(nn.Module):
    """The authors' layer norm: unbiased deviation, with eps added to it, not to the variance."""

    def __init__(self, size: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.a_2 = nn.Parameter(torch.ones(size))
        self.b_2 = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        centered = upcast(x) - upcast(x).mean(-1, keepdim=True)
        std = torch.linalg.vector_norm(centered, dim=-1, keepdim=True) / (x.shape[-1] - 1) ** 0.5
        out: Tensor = self.a_2 * centered / (std + self.eps) + self.b_2
        return out.to(x.dtype)


class Tokenizer(nn.Sequential):
    """One token of a map: a projection of all its values, or of its means over a grid."""

    def __init__(self, size: tuple[int, int, int], dim: int, grid: int | None) -> None:
        c, height, width = size
        super().__init__(
            nn.Linear(c * (grid * grid if grid else height * width), dim),
            UnbiasedNorm(dim),
        )
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        pooled = adaptive_average(x, self.grid, self.grid) if self.grid else x
        token: Tensor = self[1](self[0](pooled.flatten(1))).relu()  # B dim
        return token


def _check_batch(name: str, x: Tensor, like: Tensor) -> None:
    if x.shape[0] != like.shape[0]:
        raise ValueError(
            f"{name} has {x.shape[0]} samples, features[0] has {like.shape[0]}; they must agree"
        )


def inputs(random: Random, size: InputSize, config: Mapping[str, Any]) -> Inputs:
    """Maps of the sizes that the block is built for; pooled ones have the given height and width.

    Deeper maps of a pooled pyramid are smaller than the first in the proportions of `sizes`.
    """
    maps = list(config["sizes"])
    if config["tokenizer"] == "pool":
        _, rows, columns = maps[0]
        maps = [
            (c, max(1, size.height * h // rows), max(1, size.width * w // columns))
            for c, h, w in maps
        ]
    token = random(size.batch, 1, config["dim"])
    return {"features": [random(size.batch, *m) for m in maps], "token": token}


def _branch(net: str, name: str) -> dict[str, str]:
    """Key names of one of the authors' two branches."""
    return {
        **{f"{net}.{name}_st{i + 1}": f"tokenizers.{i}" for i in range(3)},
        f"{name}_st4": "tokenizers.3",
        f"proj_norm{name.lower()}": "proj_norm",
        f"{name}_mb": "mamba",
        "out_proj_norm": "out_norm",
    }


register(
    "dtm",
    DTM,
    layout="features",
    family="state-space",
    example={"sizes": ((32, 16, 16), (64, 8, 8), (32, 8, 8), (32, 8, 8)), "dim": 64, "c_out": 64},
    inputs=inputs,
    upstream=(
        {"st": "tokenizers", "mb": "mamba"},  # the assembled reference vectors
        _branch("featnet1", "Ms"),
        _branch("featnet2", "Pan"),
    ),
)
