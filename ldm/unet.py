"""The denoising UNet of SD1.x: same graph, same parameter names, any width.

The encoder half is a class of its own, because a ControlNet is a trainable copy of exactly that half.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ldm.attention import BasicTransformerBlock, Context, KeysValues, SpatialTransformer, zero_module
from ldm.config import UNetConfig


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoids of t (B,) -> (B, dim), cosines first. Source: arXiv 1706.03762 section 3.5, SD1.x order."""
    half = dim // 2
    freqs = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.float()[:, None] * freqs[None]
    emb = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return F.pad(emb, (0, dim - 2 * half))


class ResBlock(nn.Module):
    """Two convolutions with the time embedding added between them, and a skip connection."""

    def __init__(self, in_channels: int, out_channels: int, emb_dim: int, norm_groups: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(norm_groups, in_channels),
            nn.SiLU(),
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_dim, out_channels))
        # Index 2 is the dropout of the public layout: weightless, but it numbers the convolution.
        self.out_layers = nn.Sequential(
            nn.GroupNorm(norm_groups, out_channels),
            nn.SiLU(),
            nn.Identity(),
            zero_module(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection = (
            nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        )

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x)  # (B, C_out, H, W)
        h = h + self.emb_layers(emb)[:, :, None, None].to(h.dtype)
        return self.skip_connection(x) + self.out_layers(h)


class Downsample(nn.Module):
    """Halve the resolution with a strided convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Double the resolution (nearest neighbour) and convolve."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class TimestepBlock(nn.ModuleList):
    """A numbered sequence of layers; each gets the time embedding or the text if it reads it."""

    def forward(self, x: Tensor, emb: Tensor, context: Context) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x


class UNetEncoder(nn.Module):
    """Time embedding, ``input_blocks`` and ``middle_block``: the part that UNet and ControlNet share."""

    def __init__(self, cfg: UNetConfig) -> None:
        super().__init__()
        self.cfg = cfg
        # Activations in the backward pass; may be changed at any time.
        self.recomputes = cfg.gradient_checkpointing
        ch = cfg.model_channels
        emb_dim = 4 * ch
        self.time_embed = nn.Sequential(nn.Linear(ch, emb_dim), nn.SiLU(), nn.Linear(emb_dim, emb_dim))
        self.input_blocks = nn.ModuleList([TimestepBlock([nn.Conv2d(cfg.in_channels, ch, 3, padding=1)])])
        self.skip_channels = [ch]  # width of each encoder output, in order
        for level, mult in enumerate(cfg.channel_mult):
            for _ in range(cfg.num_res_blocks):
                layers: list[nn.Module] = [ResBlock(ch, mult * cfg.model_channels, emb_dim, cfg.norm_groups)]
                ch = mult * cfg.model_channels
                if level in cfg.attention_levels:
                    layers.append(self._transformer(ch))
                self.input_blocks.append(TimestepBlock(layers))
                self.skip_channels.append(ch)
            if level < len(cfg.channel_mult) - 1:
                self.input_blocks.append(TimestepBlock([Downsample(ch)]))
                self.skip_channels.append(ch)
        self.middle_block = TimestepBlock(
            [
                ResBlock(ch, ch, emb_dim, cfg.norm_groups),
                self._transformer(ch),
                ResBlock(ch, ch, emb_dim, cfg.norm_groups),
            ]
        )
        self._number_texts()

    def _number_texts(self) -> None:
        """Set every transformer's index in the network's list of keys and values."""
        first = 0
        for module in self.modules():
            if isinstance(module, SpatialTransformer):
                module.first_text = first
                first += len(module.transformer_blocks)

    def keys_values(self, context: Tensor) -> list[KeysValues]:
        """Return the keys and values of text embeddings (B, M, context_dim) for every cross-attention, in order of use.

        Given to ``forward`` in the embeddings' place, they save their projection at every step of a sampling.
        """
        blocks = [m for m in self.modules() if isinstance(m, BasicTransformerBlock)]
        return [block.attn2.keys_values(context) for block in blocks]

    def _transformer(self, channels: int) -> SpatialTransformer:
        cfg = self.cfg
        return SpatialTransformer(
            channels, cfg.context_dim, cfg.num_heads, cfg.transformer_depth, cfg.norm_groups
        )

    def _run(self, block: nn.Module, x: Tensor, emb: Tensor, context: Context) -> Tensor:
        if self.recomputes and torch.is_grad_enabled():
            return checkpoint(block, x, emb, context, use_reentrant=False)
        return block(x, emb, context)

    def embed_time(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the time embedding (B, 4 * model_channels) of t (B,)."""
        return self.time_embed(timestep_embedding(t, self.cfg.model_channels).to(dtype))

    def encode(
        self, x: Tensor, emb: Tensor, context: Context, hint: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """Return the outputs of every encoder block and of the middle block.

        x: (B, in_channels, H, W) latent; emb: (B, 4 ch); context: (B, M, context_dim) or :meth:`keys_values` of it;
        hint: (B, ch, H, W) added after the first block (a ControlNet's condition), or None.
        """
        skips = []
        for i, block in enumerate(self.input_blocks):
            x = self._run(block, x, emb, context)
            if i == 0 and hint is not None:
                x = x + hint
            skips.append(x)
        return skips, self._run(self.middle_block, x, emb, context)


class UNetModel(UNetEncoder):
    """eps_hat = UNet(x_t, t, context), optionally with a ControlNet's residuals added."""

    def __init__(self, cfg: UNetConfig) -> None:
        super().__init__(cfg)
        emb_dim = 4 * cfg.model_channels
        skips = list(self.skip_channels)
        ch = skips[-1]
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(cfg.channel_mult))):
            for i in range(cfg.num_res_blocks + 1):
                width = mult * cfg.model_channels
                layers: list[nn.Module] = [ResBlock(ch + skips.pop(), width, emb_dim, cfg.norm_groups)]
                ch = width
                if level in cfg.attention_levels:
                    layers.append(self._transformer(ch))
                if level > 0 and i == cfg.num_res_blocks:
                    layers.append(Upsample(ch))
                self.output_blocks.append(TimestepBlock(layers))
        self.out = nn.Sequential(
            nn.GroupNorm(cfg.norm_groups, ch),
            nn.SiLU(),
            zero_module(nn.Conv2d(ch, cfg.out_channels, 3, padding=1)),
        )
        self._number_texts()

    def forward(
        self, x: Tensor, t: Tensor, context: Context, control: Sequence[Tensor] | None = None
    ) -> Tensor:
        """Return the predicted noise, (B, out_channels, H, W).

        x: (B, in_channels, H, W) noised latent, H and W multiples of 2**(levels - 1); t: (B,) steps;
        context: (B, M, context_dim), or :meth:`keys_values` of it;
        control: ``num_control_outputs`` residuals, encoder order, middle last.

        Raises:
            ValueError: the number of residuals does not fit, or H, W do not divide.
        """
        step = 2 ** (len(self.cfg.channel_mult) - 1)
        if x.shape[2] % step or x.shape[3] % step:
            raise ValueError(
                f"unet: latent of {tuple(x.shape[2:])} does not divide by {step}; "
                f"use pictures of a multiple of {8 * step} px"
            )
        if control is not None and len(control) != self.cfg.num_control_outputs:
            raise ValueError(
                f"unet: got {len(control)} control residuals, expected {self.cfg.num_control_outputs}"
            )
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._encoder_learns(x, context)):
            emb = self.embed_time(t, x.dtype)
            skips, h = self.encode(x, emb, context)
        if control is not None:
            skips = [s + c for s, c in zip(skips, control[:-1], strict=True)]
            h = h + control[-1]
        for block in self.output_blocks:
            h = self._run(block, torch.cat([h, skips.pop()], dim=1), emb, context)
        return self.out(h)  # (B, out_channels, H, W)

    def _encoder_learns(self, x: Tensor, context: Context) -> bool:
        """Whether the encoder half needs a gradient. The frozen one beside a ControlNet does not."""
        inputs = [context] if isinstance(context, Tensor) else [k for pair in context for k in pair]
        own = [
            p for part in (self.time_embed, self.input_blocks, self.middle_block) for p in part.parameters()
        ]
        return any(p.requires_grad for p in (x, *inputs, *own))
