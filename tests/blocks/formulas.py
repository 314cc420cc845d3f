"""The authors' formulas in plain operations, for the tests of several blocks."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnzoo.blocks.mamba import Mamba

EXACT = 1e-9  # relative, of sums in another order in float64


def position_attention(x: Tensor, p: nn.Module) -> Tensor:
    """PAM of DANet, line by line, with our module's weights."""
    b, c, h, w = x.shape
    q = F.conv2d(x, p.query_conv.weight, p.query_conv.bias).view(b, -1, h * w).permute(0, 2, 1)
    k = F.conv2d(x, p.key_conv.weight, p.key_conv.bias).view(b, -1, h * w)
    attention = torch.softmax(torch.bmm(q, k), dim=-1)
    v = F.conv2d(x, p.value_conv.weight, p.value_conv.bias).view(b, -1, h * w)
    return p.gamma * torch.bmm(v, attention.permute(0, 2, 1)).view(b, c, h, w) + x


def channel_attention(x: Tensor, gamma: Tensor) -> Tensor:
    """CAM of DANet, line by line."""
    b, c, h, w = x.shape
    rows = x.reshape(b, c, -1)
    energy = torch.bmm(rows, rows.permute(0, 2, 1))
    energy = torch.max(energy, -1, keepdim=True)[0].expand_as(energy) - energy
    attention = torch.softmax(energy, dim=-1)
    return gamma * torch.bmm(attention, rows).view(b, c, h, w) + x


def max_mean_gate(t: Tensor, gate: nn.Module) -> Tensor:
    """The authors' spatial gate on axis 1 of `t`, with our module's weights."""
    pooled = torch.cat((t.max(1)[0].unsqueeze(1), t.mean(1).unsqueeze(1)), 1)
    weight = gate.conv.weight
    return t * gate.bn(F.conv2d(pooled, weight, padding=(weight.shape[-1] - 1) // 2)).sigmoid()


def selective_recurrence(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The definition, one step after another."""
    h = u.new_zeros(u.shape[0], *a.shape)
    ys = []
    for t in range(u.shape[1]):
        h = (dt[:, t, :, None] * a).exp() * h + (dt[:, t] * u[:, t])[:, :, None] * b[:, t, None]
        ys.append((h * c[:, t, None]).sum(-1))
    return torch.stack(ys, 1)


def mamba_mixer(block: Mamba, x: Tensor) -> Tensor:
    """The authors' forward pass, formula by formula, on (B, T, C)."""
    weights = dict(block.named_parameters())
    steps = x.shape[1]
    u, z = F.linear(x, weights["in_proj.weight"], weights.get("in_proj.bias")).chunk(2, -1)
    filters = weights["conv1d.weight"]
    taps, inner = filters.shape[2], filters.shape[0]
    u = F.conv1d(u.mT, filters, weights.get("conv1d.bias"), padding=taps - 1, groups=inner)
    u = F.silu(u[..., :steps].mT)
    rank, state = weights["dt_proj.weight"].shape[1], weights["A_log"].shape[1]
    low, b, c = F.linear(u, weights["x_proj.weight"]).split([rank, state, state], -1)
    dt = F.softplus(low @ weights["dt_proj.weight"].mT + weights["dt_proj.bias"])
    y = selective_recurrence(u, dt, -weights["A_log"].exp(), b, c) + weights["D"] * u
    return F.linear(y * F.silu(z), weights["out_proj.weight"], weights.get("out_proj.bias"))


def errors(found: list[Tensor], wanted: list[Tensor]) -> list[float]:
    return [
        float((f - w).abs().max()) / max(float(w.abs().max()), 1e-300)
        for f, w in zip(found, wanted, strict=True)
    ]


def gradients(run: object, *leaves: Tensor) -> list[Tensor]:
    output = run(*leaves)  # type: ignore[operator]
    generator = torch.Generator().manual_seed(3)
    grad = torch.randn(output.shape, generator=generator, dtype=output.dtype)
    found = torch.autograd.grad(output, leaves, grad, materialize_grads=True)
    return [output.detach(), *found]


class HookedDIA(nn.Module):
    """The formula, with module hooks that scale the gradient of the input, as the authors' code."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = copy.deepcopy(block)
        if block.modulated:
            for conv, factor in zip(
                (self.block.d_conv, self.block.d_conv1), block.scales, strict=True
            ):
                conv.register_full_backward_hook(
                    lambda module, inward, outward, factor=factor: (inward[0] * factor,)
                )

    def forward(self, x: Tensor) -> Tensor:
        own = self.block
        a = own.downavg(x.mean(1, keepdim=True))
        b = own.downmax(torch.max(x, 1, keepdim=True)[0])
        if own.modulated:
            z = torch.cat([own.d_conv(a).sigmoid() * b, own.d_conv1(b).sigmoid() * a], 1)
        else:
            z = torch.cat([b, a], 1)
        big = F.interpolate(own.conv(z), scale_factor=2, mode="nearest")
        return (x * big.sigmoid()[..., : x.shape[2], : x.shape[3]]).relu()
