"""Small modules, each with one fault that a check must tell, and right ones that look odd."""

import random
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

C = 8


class Fault(NamedTuple):
    """A module with a fault, the check that tells it, and words of its message."""

    module: type[nn.Module]
    check: str
    words: str


FAULTS: list[Fault] = []


def fault(check: str, words: str) -> Any:
    def add(module: type[nn.Module]) -> type[nn.Module]:
        FAULTS.append(Fault(module, check, words))
        return module

    return add


class Gate(nn.Module):
    """A right one: scales channels by a gate of their means."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(C, C)

    def gate(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3))).sigmoid()[:, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


@fault("isolation", "batch axis is mixed up")
class BatchAxisMixedUp(Gate):
    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        tokens = x.permute(1, 0, 2, 3).reshape(b, c, h * w)  # ought to be (c, b, h * w)
        return tokens.sigmoid().reshape(b, c, h, w) * self.gate(x)


@fault("isolation", "mean, variance, norm or softmax over the batch axis")
class BatchNormByHand(Gate):
    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((0, 2, 3), keepdim=True)
        return (x - mean) / (x.var((0, 2, 3), keepdim=True) + 1e-5).sqrt() * self.gate(x)


@fault("device", "on the CPU")
class ConstantOnTheCPU(Gate):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.linspace(0.5, 1, C)[:, None, None]

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.to(x.dtype) * self.gate(x)


@fault("device", "faults.py")
class ConstantMadeOnTheCPU(Gate):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.ones(C, 1, 1, dtype=x.dtype) * self.gate(x)


@fault("dtype", "float64 constant")
class Float64Constant(Gate):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x) * torch.full((C, 1, 1), 0.5, dtype=torch.float64)


@fault("memory", "bytes more")
class OutputsKept(Gate):
    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.kept.append(self.gate(x).detach())
        return x * self.kept[-1]


@fault("caches", "something of the earlier call is used")
class PositionsOfTheFirstCall(Gate):
    def __init__(self) -> None:
        super().__init__()
        self.ramp: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.ramp is None:
            self.ramp = torch.linspace(0, 1, x.shape[3], dtype=x.dtype, device=x.device)
        return x * self.gate(x) + self.ramp


@fault("caches", "something of the earlier call is used")
class LargestSizeSoFar(Gate):
    def __init__(self) -> None:
        super().__init__()
        self.width = 0

    def forward(self, x: Tensor) -> Tensor:
        self.width = max(self.width, x.shape[3])
        return x * self.gate(x) / self.width


@fault("zeros", "gradients of inputs that are not finite")
class NormWithoutEps(Gate):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x) * x.norm(dim=1, keepdim=True).sqrt()


@fault("untouched", "changed in place")
class InputChanged(Gate):
    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x)
        x *= 2
        return x * gate


@fault("gradients", "detached branch")
class DetachedBranch(Gate):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x).detach()


@fault("gradcheck", "a branch is detached")
class DetachedInput(Gate):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.detach())


@fault("gradients", "spare.weight is unused")
class UnusedParameter(Gate):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(C, C)


@fault("values", ".item()")
class ItemInForward(Gate):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x) / (1 + x.abs().max().item())


@fault("sizes", "a size is baked in")
class BakedSize(Gate):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, C, 14 * 14).view(-1, C, 14, 14) * self.gate(x)


@fault("aliasing", "view of input x")
class ViewReturned(Gate):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).view(x.shape)


@fault("modes", "acts in eval mode")
class DropoutInEval(Gate):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x * self.gate(x), 0.3)


@fault("deterministic", "draws from random")
class RandomElsewhere(Gate):
    def forward(self, x: Tensor) -> Tensor:
        keep = random.random() if self.training else 1.0
        return x * self.gate(x) * keep


@fault("copy", "no leaf")
class NonLeafBuffer(Gate):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("norm", self.fc.weight.square().sum().sqrt())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x) / (1 + self.norm.detach())


class WrongSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0]  # half of what it is


@fault("gradcheck", "backward of WrongSquare is wrong")
class WrongBackward(Gate):
    def forward(self, x: Tensor) -> Tensor:
        return WrongSquare.apply(x) * self.gate(x)


class OnceSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad * ctx.saved_tensors[0]


@fault("gradgradcheck", "second derivative")
class NoSecondDerivative(Gate):
    def forward(self, x: Tensor) -> Tensor:
        return OnceSquare.apply(x) * self.gate(x)


class DetachedSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad * ctx.saved_tensors[0].detach()


@fault("gradgradcheck", "the backward of DetachedSquare is not differentiable")
class SecondDerivativeLost(Gate):
    def forward(self, x: Tensor) -> Tensor:
        return DetachedSquare.apply(x) * self.gate(x)


@fault("gradcheck", "a branch is detached")
class DetachedInFloat32(Gate):
    def forward(self, x: Tensor) -> Tensor:
        scale = x.detach().float().pow(2).mean(1, keepdim=True).add(1e-6).rsqrt().to(x.dtype)
        return x * scale * self.gate(x)


@fault("gradients", "changed in place")
class SavedTensorChanged(Gate):
    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x)
        y = x * gate
        gate += 1
        return y


@fault("float16", "overflows")
class HalfOverflow(Gate):
    def forward(self, x: Tensor) -> Tensor:
        energy = (300 * x).square().sum((2, 3), keepdim=True)
        return x * self.gate(x) * (energy / (1 + energy))


@fault("sizes", "divided without its remainder")
class OddSizesFail(Gate):
    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        halves = x.reshape(b, c, h // 2, 2, w // 2, 2).mean((3, 5))
        return halves.repeat_interleave(2, 2).repeat_interleave(2, 3) * self.gate(x)


@fault("stateless", "seen grows with every call")
class StateInAList(Gate):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(1.0)
        return x * self.gate(x)


@fault("registered", "layers holds a layer that is not registered")
class LayersInAList(Gate):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Conv2d(C, C, 1)]

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[0].to(x.dtype)(x) * self.gate(x)


@fault("tied", "fc.weight and other.weight are one and the same parameter")
class TiedByAccident(Gate):
    def __init__(self) -> None:
        super().__init__()
        self.other = self.fc

    def forward(self, x: Tensor) -> Tensor:
        return x * self.other(self.fc(x.mean((2, 3)))).sigmoid()[:, :, None, None]


@fault("pickle", "act")
class LambdaHeld(Gate):
    def __init__(self) -> None:
        super().__init__()
        self.act = lambda x: x.tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x) * self.gate(x)


def doubled(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return 2 * output


@fault("copy", "loses a hook")
class HookLostByDeepcopy(Gate):
    def __init__(self) -> None:
        super().__init__()
        self.register_forward_hook(doubled)

    def __deepcopy__(self, memo: Any) -> "HookLostByDeepcopy":
        twin = type(self)()
        twin._forward_hooks.clear()
        twin.load_state_dict(self.state_dict())
        return twin.train(self.training)


@fault("copy", "reference to the original")
class HookOfTheOriginal(Gate):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.fc.register_forward_hook(lambda module, args, output: output * self.scale)


@fault("seed", "seeds torch's global generator")
class Reseeds(Gate):
    def forward(self, x: Tensor) -> Tensor:
        torch.manual_seed(0)
        return x * self.gate(x)


@fault("bfloat16", "in float32")
class Float32UnderHalf(Gate):
    def forward(self, x: Tensor) -> Tensor:
        return x.float() * self.gate(x)


@fault("strides", "not contiguous")
class NonContiguousCrash(Gate):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(len(x), -1).view(x.shape) * self.gate(x)


@fault("channels_last", "channels_last is ignored")
class ChannelsLastIgnored(Gate):
    def forward(self, x: Tensor) -> Tensor:
        return (x * self.gate(x)).contiguous(memory_format=torch.contiguous_format)


@fault("batch", "a norm in train mode gets a single value")
class BatchOfOneNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(C, C), nn.BatchNorm1d(C)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.norm(self.fc(x.mean((2, 3)))).sigmoid()[:, :, None, None]


class Attention(nn.Module):
    """A right one: attention over (B, T, C), causal and with a mask."""

    causal = True

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(C, 3 * C)

    def hidden(self, scores: Tensor, key_padding_mask: Tensor | None) -> Tensor:
        steps = scores.shape[-1]
        later = torch.ones(steps, steps, dtype=torch.bool, device=scores.device).triu(1)
        return later if key_padding_mask is None else later | key_padding_mask[:, None]

    def forward(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = q @ k.mT / C**0.5
        scores = scores.masked_fill(self.hidden(scores, key_padding_mask), -torch.inf)
        return scores.softmax(-1) @ v


@fault("causal", "a causal leak")
class CausalLeak(Attention):
    def hidden(self, scores: Tensor, key_padding_mask: Tensor | None) -> Tensor:
        return super().hidden(scores, key_padding_mask).tril(2)


@fault("mask", "key_padding_mask is ignored")
class MaskIgnored(Attention):
    causal = False

    def hidden(self, scores: Tensor, key_padding_mask: Tensor | None) -> Tensor:
        return torch.zeros_like(scores, dtype=torch.bool)


class ChannelSoftmax(Gate):
    """Odd, and right: a softmax over channels, and another over rows."""

    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(1) * x.softmax(2) * self.gate(x)


class SeveralOutputs(Gate):
    """Odd, and right: a dict of several outputs, one of them a map over pairs."""

    def forward(self, x: Tensor) -> dict[str, Any]:
        flat = x.flatten(2)
        return {"y": x * self.gate(x), "maps": [(flat.mT @ flat).softmax(-1), x.mean((1, 2, 3))]}


class NoParameters(nn.Module):
    """Odd, and right: nothing to learn."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.mean((2, 3), keepdim=True).sigmoid()


class ListInputs(nn.Module):
    """Odd, and right: a list of maps of several sizes, and a keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(C, C, 1)

    def forward(self, maps: list[Tensor], *, scale: Tensor) -> Tensor:
        first = maps[0]
        resized = [F.interpolate(m, first.shape[2:], mode="nearest") for m in maps]
        return self.conv(sum(resized[1:], first)) * scale


class WithDropout(Gate):
    """Right: dropout and BatchNorm that know their modes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm2d(C), nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.norm(x)) * self.gate(x)


class Encoder(nn.Module):
    """Right: torch's own attention, with a residual and norms."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(C)
        self.attention = nn.MultiheadAttention(C, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(x)
        return x + self.attention(z, z, z, need_weights=False)[0]


class Float32Norm(nn.Module):
    """Right: a norm that is computed in float32 whatever the dtype, and a softmax likewise."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(C))

    def forward(self, x: Tensor) -> Tensor:
        scale = x.float().pow(2).mean(-1, keepdim=True).add(1e-6).rsqrt().to(x.dtype)
        gate = torch.softmax(x, -1, dtype=torch.float32).to(x.dtype)
        return F.silu(x * scale * self.weight) * gate


class Recurrent(nn.Module):
    """Right: torch's own LSTM, whose state has the batch as its second axis."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(C, C, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        return self.lstm(x)


class Tokens(nn.Module):
    """Right: whole numbers in."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.fc = nn.Embedding(10, C), nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.embedding(x))


def image() -> Tensor:
    return torch.randn(2, C, 14, 14)


def sequence() -> Tensor:
    return torch.randn(2, 7, C)


RIGHT: list[tuple[type[nn.Module], Any]] = [
    (Gate, image),
    (ChannelSoftmax, image),
    (SeveralOutputs, image),
    (NoParameters, image),
    (WithDropout, image),
    (Attention, sequence),
    (Encoder, sequence),
    (Float32Norm, sequence),
    (Recurrent, sequence),
    (Tokens, lambda: torch.randint(0, 10, (2, 6))),
    (
        ListInputs,
        lambda: {
            "maps": [torch.randn(2, C, 12, 12), torch.randn(2, C, 6, 6)],
            "scale": torch.rand(2, 1, 1, 1),
        },
    ),
]


def inputs_of(module: type[nn.Module]) -> Tensor:
    return sequence() if issubclass(module, Attention) else image()
