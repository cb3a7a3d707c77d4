"""Transformer blocks of the UNet, with the parameter names of the public SD1.x checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

KeysValues = tuple[Tensor, Tensor]
"""Keys and values of one cross-attention, each (B, heads, M, D / heads)."""

Context = Tensor | Sequence[KeysValues]
"""Input of the cross-attentions: embeddings (B, M, C), or the keys and values that the layers computed from them."""


def zero_module(module: nn.Module) -> nn.Module:
    """Set every parameter of ``module`` to zero and return it; such a layer adds nothing at first."""
    for p in module.parameters():
        nn.init.zeros_(p)
    return module


class CrossAttention(nn.Module):
    """Multi-head attention of x (B, N, D) over ``context`` (B, M, C), or over itself without one."""

    def __init__(self, query_dim: int, context_dim: int, num_heads: int) -> None:
        super().__init__()
        if query_dim % num_heads:
            raise ValueError(f"attention: width {query_dim} does not divide into {num_heads} heads")
        self.num_heads = num_heads
        self.to_q = nn.Linear(query_dim, query_dim, bias=False)
        self.to_k = nn.Linear(context_dim, query_dim, bias=False)
        self.to_v = nn.Linear(context_dim, query_dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(query_dim, query_dim))

    def keys_values(self, context: Tensor) -> KeysValues:
        """Return the keys and values of embeddings (B, M, C); they depend on nothing else."""
        return self._heads(self.to_k(context)), self._heads(self.to_v(context))

    def forward(self, x: Tensor, context: Tensor | KeysValues | None = None) -> Tensor:
        k, v = context if isinstance(context, tuple) else self.keys_values(x if context is None else context)
        out = F.scaled_dot_product_attention(self._heads(self.to_q(x)), k, v)  # (B, h, N, d)
        return self.to_out(rearrange(out, "b h n d -> b n (h d)"))  # (B, N, D)

    def _heads(self, y: Tensor) -> Tensor:
        return rearrange(y, "b n (h d) -> b h n d", h=self.num_heads)


class GEGLU(nn.Module):
    """Linear layer whose second half gates the first through GELU. Source: arXiv 2002.05202."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim_in, 2 * dim_out)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """Position-wise GEGLU network with a four-fold hidden width."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        # Index 1 is the dropout of the public layout: it has no weights, but it numbers the last layer.
        self.net = nn.Sequential(GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class BasicTransformerBlock(nn.Module):
    """Pre-norm self-attention, cross-attention to the text, feed-forward."""

    def __init__(self, dim: int, context_dim: int, num_heads: int) -> None:
        super().__init__()
        self.attn1 = CrossAttention(dim, dim, num_heads)
        self.ff = FeedForward(dim)
        self.attn2 = CrossAttention(dim, context_dim, num_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, context: Tensor | KeysValues) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer over the positions of a feature map (B, C, H, W), conditioned on text.

    first_text: index of this transformer's first block in the network's list of keys and values.
    """

    def __init__(self, channels: int, context_dim: int, num_heads: int, depth: int, norm_groups: int) -> None:
        super().__init__()
        self.first_text = 0
        self.norm = nn.GroupNorm(norm_groups, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(channels, context_dim, num_heads) for _ in range(depth)
        )
        self.proj_out = zero_module(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """x: (B, C, H, W); context: embeddings (B, M, context_dim), or keys and values of the whole network."""
        height = x.shape[2]
        y = self.proj_in(self.norm(x))  # (B, C, H, W)
        y = rearrange(y, "b c h w -> b (h w) c")
        for i, block in enumerate(self.transformer_blocks, self.first_text):
            y = block(y, context if isinstance(context, Tensor) else context[i])  # (B, H*W, C)
        y = rearrange(y, "b (h w) c -> b c h w", h=height)
        if x.is_contiguous(memory_format=torch.channels_last):
            y = y.contiguous(memory_format=torch.channels_last)
        return x + self.proj_out(y)
