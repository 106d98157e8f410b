"""The pre-norm transformer block that ViT and GPT share."""

import torch.nn.functional as F
from torch import Tensor, nn

from pntk.errors import ConfigError


class SelfAttention(nn.Module):
    """Multi-head self-attention out of two linear layers.

    ``nn.MultiheadAttention`` keeps its input projection as a bare parameter; here every
    parameter belongs to an ``nn.Linear``.

    Source: Vaswani et al. (2017), "Attention is all you need", section 3.2.
    """

    def __init__(self, dim: int, heads: int, causal: bool) -> None:
        super().__init__()
        if dim % heads:
            raise ConfigError(
                f"dim is {dim} and heads is {heads}, but dim must be a multiple of heads: "
                f"use dim={-(-dim // heads) * heads}, or another number of heads"
            )
        self.heads = heads
        self.causal = causal
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map [b, t, dim] to [b, t, dim]."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # [b, t, 3, heads, dim / heads]
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each [b, heads, t, dim / heads]
        y = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        mixed: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return mixed


class Block(nn.Module):
    """Attention and a two-layer GELU network, each normalised first and added to its input.

    Source: Xiong et al. (2020), "On layer normalization in the transformer architecture".
    """

    def __init__(self, dim: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, heads, causal)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map [b, t, dim] to [b, t, dim]."""
        x = x + self.attention(self.norm1(x))
        y: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return y
