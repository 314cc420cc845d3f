"""Mamba mixer: a selective state space over the sequence, in time linear in its length.

When: sequences are long: the cost is linear in the length, and no step sees later ones.
Paper: Mamba: Linear-Time Sequence Modeling with Selective State Spaces, Gu, Dao, COLM 2024,
    arXiv 2312.00752.
Code: state-spaces/mamba @e9594ce1, `mamba_ssm/modules/mamba_simple.py` (`Mamba`) with
    `mamba_ssm/ops/selective_scan_interface.py` (`selective_scan_ref`).
Math: [u, z] = W_in x; u = silu(conv(u)), causal, one filter of `conv` taps per channel;
    [r, B_t, C_t] = W_x u_t; dt_t = softplus(W_dt r_t + b_dt); A = -exp(A_log);
    h_t = exp(dt_t A) * h_{t-1} + (dt_t u_t) B_t, h_0 = 0, `state` numbers per channel;
    y = W_out ((C_t h_t + D u_t) * silu(z_t)). u and z have e = int(expand c) channels.
Shapes: (..., T, C) -> (..., T, C), or c_out channels; `step` takes (..., C).
Differs: the paper discretizes B exactly (its equation 4), the code uses dt B; we follow the code.
    Theirs requires CUDA, and their reference loops over the steps; ours is ordinary torch. `c_out`
    is an addition, for blocks with another output width.
Cost: with e, r = dt_rank, n = state, k = conv, parameters 2ce + ek + e [conv_bias] + e(r + 2n) +
    re + e + en + e + e c_out [+ 2e + c_out with bias]; MACs T (2ce + ek + e(r + 2n) + re + en +
    e c_out), where en reads the state; the scan itself multiplies about 3en more per step. The
    authors' padded convolution also computes k - 1 steps that are cut off, which do not count.
"""

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..autograd.causal_conv import causal_conv
from ..autograd.selective_scan import scan_with_state, selective_scan
from ..ops.folding import is_plain
from ..ops.leading import fold, unfold
from ..ops.padding import Padding
from ..ops.precision import autocast_disabled, upcast, upcast_dtype
from ..ops.streaming import MambaState, check_sizes, check_state, latest
from ..ops.weight_decay import exempt
from ..registry import InputSize, register
from ..validation import check
from ..validation.types import Above, AtLeast, AtMost, Count, Positive, Width

_DEPTHWISE: dict[str, object] = {"stride": (1,), "padding": (0,), "dilation": (1,)}
_LARGEST = AtMost(1e4)  # step size whose softplus, inverse and product with a weight all types hold


class Mamba(nn.Module):
    """Mamba mixer on (..., T, C): causal, without norm, residual or dropout.

    `step` computes a stream step by step, with the outputs of one call on the whole series:

        state = mamba.initial_state()
        for x_t in stream:  # (..., C)
            y_t, state = mamba.step(x_t, state)

    A stream can begin with a whole call: `y, state = mamba(x, return_state=True)`. In a batch of
    series of different lengths `key_padding_mask` (..., T), True = ignore, names the steps that no
    other sees; their outputs are zero.

    Args:
        c: channels in, and channels out if `c_out` is None.
        state: size of the state of each inner channel.
        conv: taps of the causal convolution.
        expand: inner channels per channel in; `int(expand * c)` of them.
        dt_rank: rank of the projection that gives the step sizes; "auto" is `c / 16`, rounded up.
        bias: whether the first and the last projection have biases.
        conv_bias: whether the convolution has one.
        c_out: channels out; None for `c`.
        dt_min: smallest initial step size (at zero input).
        dt_max: largest initial step size.
        dt_init: initialization of the step projection: "random" (uniform) or "constant".
        dt_scale: scale of that initialization.
        dt_init_floor: initial step sizes below this are raised to it.

    Raises:
        ValueError: no inner channel left, or `dt_min` above `dt_max`.
    """

    def __init__(
        self,
        c: Width,
        *,
        state: Count = 16,
        conv: Count = 4,
        expand: Positive = 2,
        dt_rank: Count | Literal["auto"] = "auto",
        bias: bool = False,
        conv_bias: bool = True,
        c_out: Width | None = None,
        dt_min: Positive = 0.001,
        dt_max: Annotated[float, Above(0), _LARGEST] = 0.1,
        dt_init: Literal["random", "constant"] = "random",
        dt_scale: Annotated[float, AtLeast(0), _LARGEST] = 1.0,
        dt_init_floor: Annotated[float, AtLeast(1e-30), _LARGEST] = 1e-4,
    ) -> None:
        super().__init__()
        if dt_min > dt_max:
            raise ValueError(f"dt_min={dt_min} must be at most dt_max={dt_max}")
        self.c, self.state, self.c_out = c, state, c if c_out is None else c_out
        self.taps = conv
        self.rank = -(-c // 16) if dt_rank == "auto" else dt_rank
        inner = _inner(c, expand)
        self.in_proj = nn.Linear(c, 2 * inner, bias=bias)
        self.conv1d = nn.Conv1d(inner, inner, conv, groups=inner, bias=conv_bias)
        self.x_proj = nn.Linear(inner, self.rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        exempt(self, "A_log", "D")
        self.out_proj = nn.Linear(inner, self.c_out, bias=bias)
        with torch.no_grad():
            self._init_dt(dt_min, dt_max, dt_init, dt_scale, dt_init_floor)

    def _init_dt(self, low: float, high: float, init: str, scale: float, floor: float) -> None:
        """Step sizes log-uniform in [low, high], by the inverse of softplus."""
        bound = scale * self.rank**-0.5
        if init == "constant":
            self.dt_proj.weight.fill_(bound)
        else:
            self.dt_proj.weight.uniform_(-bound, bound)
        log_dt = torch.rand_like(self.D) * math.log(high / low) + math.log(low)
        dt = log_dt.exp().clamp(min=floor)
        self.dt_proj.bias.copy_(dt + (-torch.expm1(-dt)).log())

    def forward(
        self, x: Tensor, *, key_padding_mask: Tensor | None = None, return_state: bool = False
    ) -> Tensor | tuple[Tensor, MambaState]:
        """(..., T, C); with `return_state` that and the state from which `step` goes on."""
        check.sequence(x, self.c, self.in_proj)
        check.flag(return_state=return_state)
        padded = check.padding_mask(key_padding_mask, x.shape[:-1], x)
        padding = None if padded is None else Padding.of(fold(padded, keep=1))
        series = fold(x) if padding is None else padding.pack(fold(x))  # N T C
        raw, z = self.in_proj(series).chunk(2, -1)  # N T e
        u = F.silu(self._convolved(raw))
        dt, b, c = self._selected(u)
        if not return_state:
            y = self._projected(selective_scan(u, dt, self._rates(), b, c), u, z)
            return unfold(y if padding is None else padding.unpack(y), x)
        if padding is not None:  # a step of size 0 leaves the state as it is
            dt = dt.masked_fill(padding.hidden[..., None], 0)
        y, hidden = scan_with_state(u, dt, self._rates(), b, c)
        y = self._projected(y, u, z)
        inputs = latest(raw, self.taps - 1, None if padding is None else padding.lengths())
        state = MambaState(unfold(inputs, x), unfold(hidden, x))
        return unfold(y if padding is None else padding.unpack(y), x), state

    def initial_state(self, *batch: int) -> MambaState:
        """The state before the first step: zeros, for the given leading sizes or for any sizes.

        Without sizes the state is broadcast to the leading axes of the first `step`.
        """
        check_sizes(batch)
        weight = check.first_parameter(self.in_proj)
        weight = self.D if weight is None else weight  # a quantized layer has none
        inner, taps = self.D.shape[0], self.taps
        return MambaState(
            inputs=weight.new_zeros(*batch, taps - 1, inner),
            hidden=weight.new_zeros(*batch, inner, self.state, dtype=upcast_dtype(weight.dtype)),
        )

    def step(self, x_t: Tensor, state: MambaState | None = None) -> tuple[Tensor, MambaState]:
        """One step of a stream: (..., C) and the state before it, to (..., C) and the state after.

        Args:
            x_t: the step's input, with the same leading sizes at every step.
            state: the state that the previous step returned; at first None or `initial_state()`.

        Returns:
            The step's output, equal to that of the whole call, and the new state; the old one is
            not modified.
        """
        check.token(x_t, self.c, self.in_proj, name="x_t")
        state = self.initial_state() if state is None else state
        check_state(x_t, state, self.initial_state())
        inputs, hidden = state
        u, z = self.in_proj(x_t).chunk(2, -1)  # ... e
        window = torch.cat((inputs.expand(*u.shape[:-1], -1, -1).to(u), u.unsqueeze(-2)), -2)
        u = F.silu(self._tap(window))  # ... e
        dt, b, c = self._selected(u)
        decay = (dt.unsqueeze(-1) * self._rates()).exp()  # ... e n
        hidden = decay * hidden + (dt * u).unsqueeze(-1) * b.unsqueeze(-2)
        y = (hidden * c.unsqueeze(-2)).sum(-1)
        return self._projected(y, u, z), MambaState(window[..., 1:, :], hidden)

    def _convolved(self, u: Tensor) -> Tensor:
        """The causal convolution of (N, T, e)."""
        conv = self.conv1d
        if is_plain(conv, nn.Conv1d, **_DEPTHWISE):
            return causal_conv(u, conv.weight, conv.bias)
        y: Tensor = conv(F.pad(u.mT, (self.taps - 1, 0))).mT
        return y

    def _tap(self, window: Tensor) -> Tensor:
        """The convolution of one window (..., conv, e)."""
        conv = self.conv1d
        if not is_plain(conv, nn.Conv1d, **_DEPTHWISE):
            y: Tensor = unfold(conv(fold(window).mT).squeeze(-1), window)
            return y
        u = (window * conv.weight[:, 0].t()).sum(-2)
        return u if conv.bias is None else u + conv.bias

    def _selected(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Step sizes, in float32 at least, and the matrices B and C of the input and the output."""
        r, b, c = self.x_proj(u).split((self.rank, self.state, self.state), -1)
        layer = self.dt_proj
        if is_plain(layer, nn.Linear) and layer.bias is not None:
            dt = upcast(F.linear(r, layer.weight)) + upcast(layer.bias)
        else:
            dt = upcast(layer(r))
        return F.softplus(dt), b, c

    def _rates(self) -> Tensor:
        return -upcast(self.A_log).exp()

    def _projected(self, y: Tensor, u: Tensor, z: Tensor) -> Tensor:
        """W_out ((y + D u) * silu(z))."""
        gated = (y + upcast(self.D) * u) * F.silu(z)
        if u.dtype != torch.float16 or not is_plain(self.out_proj, nn.Linear):
            out: Tensor = self.out_proj(gated.to(u.dtype))
            return out
        weight, bias = self.out_proj.weight, self.out_proj.bias
        with autocast_disabled(gated):  # float16's gated product may overflow, not the output
            y = F.linear(gated, upcast(weight), None if bias is None else upcast(bias))
        return y.to(u.dtype)

    def macs(self, size: InputSize) -> int:
        layers = (self.in_proj, self.conv1d, self.x_proj, self.dt_proj, self.out_proj)
        return size.steps * (sum(m.weight.numel() for m in layers) + self.A_log.numel())

    def extra_repr(self) -> str:
        return f"c={self.c}, state={self.state}"


def _inner(c: int, expand: float) -> int:
    inner = int(expand * c)
    if inner < 1:
        raise ValueError(
            f"expand={expand} leaves no inner channel of c={c} (int({expand * c}) = {inner}); "
            f"take expand={1 / c:.3g} or more"
        )
    return inner


register(
    "mamba",
    Mamba,
    layout="sequence",
    family="state-space",
    example={"c": 64},
    upstream={},  # the authors' names are the same
)
