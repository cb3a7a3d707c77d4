"""The KL autoencoder of SD1.x (f = 8): same graph, same parameter names, any width."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ldm.checkpoint import check_size
from ldm.config import AutoencoderConfig
from ldm.grain import Grain, summary
from ldm.unet import Upsample

GRAIN = "first_stage_model.grain."  # keys of the grain head in a checkpoint


class ResnetBlock(nn.Module):
    """Two convolutions and a skip connection, without a time embedding."""

    def __init__(self, in_channels: int, out_channels: int, norm_groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(norm_groups, in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(norm_groups, out_channels, eps=1e-6)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class AttnBlock(nn.Module):
    """Single-head self-attention over positions."""

    def __init__(self, channels: int, norm_groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, channels, eps=1e-6)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (rearrange(f(y), "b c h w -> b 1 (h w) c") for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q.contiguous(), k.contiguous(), v.contiguous())  # (B, 1, H*W, C)
        return x + self.proj_out(rearrange(y, "b 1 (h w) c -> b c h w", h=x.shape[2]))


class Downsample(nn.Module):
    """Halve the resolution; padded on the right and at the bottom only, as the public weights expect."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


def _blocks(in_channels: int, out_channels: int, num_blocks: int, norm_groups: int) -> nn.ModuleList:
    widths = [in_channels, *[out_channels] * num_blocks]
    return nn.ModuleList(ResnetBlock(a, b, norm_groups) for a, b in pairwise(widths))


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, channels: int, norm_groups: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, norm_groups)
        self.attn_1 = AttnBlock(channels, norm_groups)
        self.block_2 = ResnetBlock(channels, channels, norm_groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class DownLevel(nn.Module):
    """The blocks of one encoder level and, on every level but the last, the way down."""

    def __init__(
        self, in_channels: int, out_channels: int, num_blocks: int, norm_groups: int, last: bool
    ) -> None:
        super().__init__()
        self.block = _blocks(in_channels, out_channels, num_blocks, norm_groups)
        self.downsample = nn.Identity() if last else Downsample(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return self.downsample(x)


class UpLevel(nn.Module):
    """The blocks of one decoder level and, on every level but the finest, the way up."""

    def __init__(
        self, in_channels: int, out_channels: int, num_blocks: int, norm_groups: int, last: bool
    ) -> None:
        super().__init__()
        self.recomputes = False  # block by block
        self.block = _blocks(in_channels, out_channels, num_blocks, norm_groups)
        self.upsample = nn.Identity() if last else Upsample(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = _run(block, x, self.recomputes)
        return self.upsample(x)


def _run(module: nn.Module, x: Tensor, recompute: bool) -> Tensor:
    if recompute and torch.is_grad_enabled():
        return checkpoint(module, x, use_reentrant=False)
    return module(x)


class Encoder(nn.Module):
    """Picture (B, 3, H, W) in [-1, 1] -> moments (B, 2 z, H/f, W/f)."""

    def __init__(self, cfg: AutoencoderConfig) -> None:
        super().__init__()
        self.cfg = cfg
        widths = [cfg.ch, *(cfg.ch * mult for mult in cfg.ch_mult)]
        num_levels = len(cfg.ch_mult)
        self.conv_in = nn.Conv2d(cfg.in_channels, cfg.ch, 3, padding=1)
        self.down = nn.ModuleList(
            DownLevel(widths[i], widths[i + 1], cfg.num_res_blocks, cfg.norm_groups, last=i == num_levels - 1)
            for i in range(num_levels)
        )
        self.mid = Middle(widths[-1], cfg.norm_groups)
        self.norm_out = nn.GroupNorm(cfg.norm_groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], 2 * cfg.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for module in (*self.down, self.mid):
            h = _run(module, h, self.cfg.gradient_checkpointing)
        return self.conv_out(F.silu(self.norm_out(h)))


class Decoder(nn.Module):
    """Latent (B, z, H/f, W/f) -> picture (B, 3, H, W), about [-1, 1] but not clipped."""

    def __init__(self, cfg: AutoencoderConfig) -> None:
        super().__init__()
        self.cfg = cfg
        widths = [*(cfg.ch * mult for mult in cfg.ch_mult), cfg.ch * cfg.ch_mult[-1]]
        self.conv_in = nn.Conv2d(cfg.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], cfg.norm_groups)
        # Stored from fine to coarse, as the public layout numbers them; run from coarse to fine.
        self.up = nn.ModuleList(
            UpLevel(widths[i + 1], widths[i], cfg.num_res_blocks + 1, cfg.norm_groups, last=i == 0)
            for i in range(len(cfg.ch_mult))
        )
        self.norm_out = nn.GroupNorm(cfg.norm_groups, widths[0], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[0], cfg.in_channels, 3, padding=1)
        self.recompute(cfg.gradient_checkpointing)

    def recompute(self, enabled: bool) -> None:
        """Set whether the backward pass computes the blocks' activations again, instead of keeping them."""
        self._recomputes = enabled
        for level in self.up:
            assert isinstance(level, UpLevel)
            level.recomputes = enabled

    def features(self, z: Tensor) -> Tensor:
        """Return the input of the last convolution, (B, C, H, W)."""
        h = _run(self.mid, self.conv_in(z), self._recomputes)
        for level in reversed(self.up):
            h = level(h)
        return F.silu(self.norm_out(h))

    def forward(self, z: Tensor) -> Tensor:
        return self.conv_out(self.features(z))


class DiagonalGaussian:
    """The encoder's posterior in float32, from moments (B, 2 z, h, w): mean and log-variance, clipped to [-30, 20]."""

    def __init__(self, moments: Tensor) -> None:
        self.mean, logvar = moments.float().chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Return mean + std * noise, (B, z, h, w), with noise from ``generator`` (on its own device)."""
        device = generator.device if generator is not None else self.mean.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=torch.float32)
        return self.mean + (0.5 * self.logvar).exp() * noise.to(self.mean)

    def mode(self) -> Tensor:
        """Return the mean, (B, z, h, w)."""
        return self.mean

    def kl(self) -> Tensor:
        """Return the KL divergence from N(0, 1), summed over a sample's latent: (B,), in nats."""
        return 0.5 * (self.mean**2 + self.logvar.exp() - 1.0 - self.logvar).flatten(1).sum(1)


class AutoencoderKL(nn.Module):
    """Encoder, decoder and the two 1x1 convolutions between them. Latents here are not scaled."""

    def __init__(self, cfg: AutoencoderConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.encoder = Encoder(cfg)
        self.decoder = Decoder(cfg)
        self.quant_conv = nn.Conv2d(2 * cfg.z_channels, 2 * cfg.z_channels, 1)
        self.post_quant_conv = nn.Conv2d(cfg.z_channels, cfg.z_channels, 1)
        self.grain = _grain_head(cfg) if cfg.grain else None

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """Return the posterior over (B, z, H/f, W/f) of pictures x (B, 3, H, W) in [-1, 1].

        Raises:
            ValueError: H or W is no multiple of the downscale f.
        """
        f = self.cfg.downscale
        if x.shape[2] % f or x.shape[3] % f:
            raise ValueError(f"autoencoder: picture of {tuple(x.shape[2:])} px is no multiple of {f} px")
        return DiagonalGaussian(self.quant_conv(self.encoder(x)))

    def decode(self, z: Tensor) -> Tensor:
        """Return the pictures (B, 3, f h, f w), about [-1, 1], of latents z (B, z, h, w). Carries gradient."""
        return self.decoder(self.post_quant_conv(z))

    def decode_with_features(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the result of :meth:`decode` and the decoder's last features, (B, C, f h, f w)."""
        features = self.decoder.features(self.post_quant_conv(z))
        return self.decoder.conv_out(features), features

    def draw(
        self, z: Tensor, noise: Tensor, exemplars: Tensor | None = None, present: Tensor | None = None
    ) -> Tensor:
        """Return the picture of :meth:`decode` with grain on it, (B, 3, f h, f w) float32. Needs a grain head.

        noise: of :func:`ldm.grain.grain_noise`, for pictures of f h x f w px. exemplars, present: see
        :meth:`ldm.grain.Grain.forward`; a head without exemplars ignores them.
        """
        assert self.grain is not None
        picture, features = self.decode_with_features(z)
        if self.grain.exemplar is None:
            exemplars = present = None
        grain = self.grain(features, picture, summary(picture, z), noise, exemplars, present)
        return picture.float() + grain


def _grain_head(cfg: AutoencoderConfig) -> Grain:
    return Grain(cfg.ch * cfg.ch_mult[0], cfg.z_channels, cfg.grain, cfg.grain_exemplar)


def fresh_grain(state: Mapping[str, Tensor], cfg: AutoencoderConfig, seed: int = 0) -> dict[str, Tensor]:
    """Return the weights, by checkpoint key, of a grain head that ``cfg`` has and ``state`` lacks: it adds nothing yet.

    A checkpoint from before the head existed loads with these. If its head follows no exemplar, only that part is new.

    Raises:
        CheckpointError: the architecture asks for a head of a gigabyte or more.
    """
    if not cfg.grain:
        return {}
    with torch.device("meta"):
        check_size("first_stage.grain", _grain_head(cfg).state_dict().values())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        grain = _grain_head(cfg)
    fresh = {f"{GRAIN}{name}": value for name, value in grain.state_dict().items()}
    own, exemplar = [key for key in state if key.startswith(GRAIN)], f"{GRAIN}exemplar."
    if any(key.startswith(exemplar) for key in own):
        return {}
    return {key: value for key, value in fresh.items() if not own or key.startswith(exemplar)}
