"""The transformer of TSViT, over dates and over patches."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..autograd.attention import attention


class Layer(nn.Module):
    """Attention and MLP, each on the normalized stream."""

    def __init__(self, dim: int, heads: int, dim_head: int, hidden: int, dropout: float) -> None:
        super().__init__()
        inner = heads * dim_head
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * inner, bias=False)
        projected = not (heads == 1 and dim_head == dim)
        self.proj = nn.Linear(inner, dim) if projected else nn.Identity()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)
        self.proj_dropout = nn.Dropout(dropout if projected else 0.0)

    def forward(self, x: Tensor, padded: Tensor | None, kept: int | None) -> Tensor:
        """(N, L, D) to (N, kept, D); `padded` (N, 1, 1, L) are keys without weight."""
        parts = torch.unflatten(self.qkv(self.norm1(x)), 2, (3, self.heads, -1))
        q, k, v = parts.permute(2, 0, 3, 1, 4)  # N heads L d
        joined = attention(q[:, :, :kept], k, v, padded).transpose(1, 2).flatten(2)
        x = x[:, :kept] + self.proj_dropout(self.proj(joined))
        hidden = self.dropout(F.gelu(self.fc1(self.norm2(x))))
        out: Tensor = x + self.dropout(self.fc2(hidden))
        return out


class Transformer(nn.Module):
    """Layers and a last norm."""

    def __init__(
        self, depth: int, dim: int, heads: int, dim_head: int, hidden: int, dropout: float
    ) -> None:
        super().__init__()
        config = (dim, heads, dim_head, hidden, dropout)
        self.layers = nn.ModuleList(Layer(*config) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.inner = heads * dim_head

    def forward(self, x: Tensor, padded: Tensor | None = None, kept: int | None = None) -> Tensor:
        """The first `kept` tokens of (N, L, D), or all."""
        for i, layer in enumerate(self.layers, 1):
            x = layer(x, padded, kept if i == len(self.layers) else None)
        out: Tensor = self.norm(x)
        return out

    def macs(self, sequences: int, tokens: int) -> int:
        """Multiply-adds of that many sequences of that many tokens, all of them kept."""
        weights = sum(p.numel() for p in self.layers.parameters() if p.ndim == 2)
        return sequences * tokens * (weights + len(self.layers) * 2 * tokens * self.inner)
