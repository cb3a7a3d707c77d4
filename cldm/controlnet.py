"""The ControlNet: a trainable copy of the UNet's encoder that reads a condition picture.

Source: Zhang et al. 2023, arXiv 2302.05543, with the parameter names of its public checkpoints.
"""

from __future__ import annotations

from torch import Tensor, nn

from cldm.branches import Landmarks, make_branches
from cldm.convolutions import variance_preserving
from cldm.texture import Texture
from ldm.attention import Context, zero_module
from ldm.config import ControlConfig, UNetConfig
from ldm.unet import UNetEncoder


def hint_encoder(cfg: ControlConfig, out_channels: int) -> nn.Sequential:
    """Condition picture (B, C, H, W) -> (B, out_channels, H/8, W/8); the last layer starts at zero.

    The seven convolutions before it start variance-preserving. With PyTorch's default, the difference between two
    skulls fades on its way through them, and the zero layer has next to nothing to learn from.
    """
    if len(cfg.hint_widths) != 7:
        raise ValueError(f"control: got {len(cfg.hint_widths)} hint_widths, expected 7")
    widths = [cfg.hint_channels, *cfg.hint_widths]
    strides = (1, 1, 2, 1, 2, 1, 2)
    layers: list[nn.Module] = []
    for a, b, stride in zip(widths[:-1], widths[1:], strides, strict=True):
        layers += [variance_preserving(a, b, stride), nn.SiLU()]
    return nn.Sequential(*layers, zero_module(nn.Conv2d(widths[-1], out_channels, 3, padding=1)))


class ControlNet(UNetEncoder):
    """Residuals for the UNet's skips and middle from a noised latent and an encoded condition.

    Every path out starts with a zero layer, so a fresh ControlNet changes nothing.
    """

    def __init__(self, unet: UNetConfig, control: ControlConfig) -> None:
        super().__init__(unet)
        self.input_hint_block = hint_encoder(control, unet.model_channels)
        self.zero_convs = nn.ModuleList(
            nn.Sequential(zero_module(nn.Conv2d(ch, ch, 1))) for ch in self.skip_channels
        )
        ch = self.skip_channels[-1]
        self.middle_block_out = nn.Sequential(zero_module(nn.Conv2d(ch, ch, 1)))
        self.branches = make_branches(control, unet.model_channels)

    def encode_hint(self, skull: Tensor) -> Tensor:
        """Skull picture (B, 3, H, W) in [0, 1] -> hint (B, model_channels, H/8, W/8). It does not depend on t."""
        return self.input_hint_block(skull)

    def encode_landmarks(self, landmarks: Landmarks, height: int, width: int) -> Tensor:
        """Landmarks -> addend to the skull's hint, (B, model_channels, height, width) of the latent.

        Raises:
            ValueError: this network has no landmark branch, or one for another number of points.
        """
        if "landmarks" not in self.branches:
            raise ValueError("this model has no landmark branch; add one: python tool_add_control.py IN OUT")
        return self.branches["landmarks"](landmarks, height, width)

    def encode_texture(self, texture: Texture) -> Tensor:
        """Texture features -> addend to the time embedding, (B, 4 * model_channels). It does not depend on t.

        Raises:
            ValueError: this network has no texture branch.
        """
        if "texture" not in self.branches:
            raise ValueError("this model has no texture branch; add one: python tool_add_control.py IN OUT")
        return self.branches["texture"](texture)

    def forward(
        self, x: Tensor, t: Tensor, context: Context, hint: Tensor, texture: Tensor | None = None
    ) -> list[Tensor]:
        """Return the ``num_control_outputs`` residuals, in the UNet's encoder order, middle last.

        x: (B, 4, h, w) noised latent; t: (B,) steps; context: (B, M, context_dim) or :meth:`keys_values` of it;
        hint: (B, model_channels, h, w): the sum of :meth:`encode_hint` and the branches' addends;
        texture: (B, 4 model_channels) of :meth:`encode_texture`, or None.
        """
        emb = self.embed_time(t, x.dtype)  # (B, 4 ch)
        if texture is not None:
            emb = emb + texture
        skips, middle = self.encode(x, emb, context, hint)
        residuals = [conv(h) for conv, h in zip(self.zero_convs, skips, strict=True)]
        return [*residuals, self.middle_block_out(middle)]
