"""Mamba mixer: a selective state space over the sequence, in time linear in its length.

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
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..autograd.causal_conv import causal_conv
from ..autograd.selective_scan import selective_scan
from ..ops.leading import fold, unfold
from ..ops.precision import autocast_disabled, upcast, upcast_dtype
from ..registry import InputSize, register
from ..validation import check, messages
from ..validation.types import Above, AtLeast, AtMost, Count, Positive, Width

_LARGEST = AtMost(1e4)  # step sizes that do not overflow in any dtype


class MambaState(NamedTuple):
    """The state that one step of a stream passes to the next."""

    inputs: Tensor  # (..., conv - 1, e), the latest inputs of the convolution
    hidden: Tensor  # (..., e, state), float32 for half-precision blocks


class Mamba(nn.Module):
    """Mamba mixer on (..., T, C): causal, without norm, residual or dropout.

    `step` computes a stream step by step, with the outputs of one call on the whole series:

        state = mamba.initial_state()
        for x_t in stream:  # (..., C)
            y_t, state = mamba.step(x_t, state)

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
        self.rank = -(-c // 16) if dt_rank == "auto" else dt_rank
        inner = _inner(c, expand)
        self.in_proj = nn.Linear(c, 2 * inner, bias=bias)
        self.conv1d = nn.Conv1d(inner, inner, conv, groups=inner, bias=conv_bias)
        self.x_proj = nn.Linear(inner, self.rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        for parameter in (self.A_log, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]  # as the authors mark it
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

    def forward(self, x: Tensor) -> Tensor:
        check.sequence(x, self.c, self.in_proj.weight)
        u, z = self.in_proj(fold(x)).chunk(2, -1)  # N T e
        u = F.silu(causal_conv(u, self.conv1d.weight, self.conv1d.bias))
        dt, b, c = self._selected(u)
        y = selective_scan(u, dt, self._rates(), b, c)
        return unfold(self._projected(y, u, z), x)

    def initial_state(self, *batch: int) -> MambaState:
        """The state before the first step: zeros, for the given leading sizes or for any sizes.

        Without sizes the state is broadcast to the leading axes of the first `step`.
        """
        for i, size in enumerate(batch):
            if isinstance(size, bool) or not isinstance(size, int) or size < 0:
                raise ValueError(f"batch[{i}]={messages.shown(size)} must be an int of at least 0")
        weight = self.in_proj.weight
        inner, taps = self.D.shape[0], self.conv1d.kernel_size[0]
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
        check.token(x_t, self.c, self.in_proj.weight, name="x_t")
        state = self.initial_state() if state is None else state
        self._check_state(x_t, state)
        inputs, hidden = state
        u, z = self.in_proj(x_t).chunk(2, -1)  # ... e
        window = torch.cat((inputs.expand(*u.shape[:-1], -1, -1).to(u), u.unsqueeze(-2)), -2)
        u = (window * self.conv1d.weight[:, 0].t()).sum(-2)  # ... e
        u = F.silu(u if self.conv1d.bias is None else u + self.conv1d.bias)
        dt, b, c = self._selected(u)
        decay = (dt.unsqueeze(-1) * self._rates()).exp()  # ... e n
        hidden = decay * hidden + (dt * u).unsqueeze(-1) * b.unsqueeze(-2)
        y = (hidden * c.unsqueeze(-2)).sum(-1)
        return self._projected(y, u, z), MambaState(window[..., 1:, :], hidden)

    def _selected(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Step sizes, in float32 at least, and the matrices B and C of the input and the output."""
        r, b, c = self.x_proj(u).split((self.rank, self.state, self.state), -1)
        dt = upcast(F.linear(r, self.dt_proj.weight)) + upcast(self.dt_proj.bias)
        return F.softplus(dt), b, c

    def _rates(self) -> Tensor:
        return -upcast(self.A_log).exp()

    def _projected(self, y: Tensor, u: Tensor, z: Tensor) -> Tensor:
        """W_out ((y + D u) * silu(z))."""
        gated = (y + upcast(self.D) * u) * F.silu(z)
        if u.dtype != torch.float16:
            out: Tensor = self.out_proj(gated.to(u.dtype))
            return out
        weight, bias = self.out_proj.weight, self.out_proj.bias
        with autocast_disabled(gated):  # float16's gated product may overflow, not the output
            y = F.linear(gated, upcast(weight), None if bias is None else upcast(bias))
        return y.to(u.dtype)

    def _check_state(self, x_t: Tensor, state: MambaState) -> None:
        if not isinstance(state, tuple) or len(state) != 2:
            raise TypeError(
                f"state must be what step returned or initial_state(), not a {type(state).__name__}"
            )
        for name, given, zero in zip(MambaState._fields, state, self.initial_state(), strict=True):
            check.token(given, like=zero, name=f"state.{name}")
            ahead = tuple(given.shape[:-2])
            if given.shape[-2:] != zero.shape or ahead not in ((), tuple(x_t.shape[:-1])):
                raise ValueError(
                    f"state.{name} has shape {tuple(given.shape)}; for x_t of shape "
                    f"{tuple(x_t.shape)} it is {(*x_t.shape[:-1], *zero.shape)}: start from "
                    "initial_state() and pass on what step returned"
                )

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
