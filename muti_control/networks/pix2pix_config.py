"""Settings of the pix2pix stage."""

from __future__ import annotations

import math

from muti_control.networks.patchgan import PatchGanConfig
from muti_control.networks.pix2pix import GeneratorConfig
from muti_control.optim import OptimConfig
from settings.base import Settings


class Pix2PixStageConfig(Settings):
    """Of the pix2pix stage, a baseline that needs no 'model:'. Loss of the generator: gan_weight LSGAN + l1_weight L1.

    generator, discriminator: the architectures. discriminator_optim: of its own optimizer; ``optim`` is the
    generator's. Source: arXiv 1611.07004, eq. 4; the squares in place of its logarithms are arXiv 1611.04076's.
    """

    generator: GeneratorConfig = GeneratorConfig()
    discriminator: PatchGanConfig = PatchGanConfig()
    discriminator_optim: OptimConfig = OptimConfig(lr=2e-4, weight_decay=0.0, beta1=0.5, ema_decay=0.0)
    l1_weight: float = 100.0
    gan_weight: float = 1.0

    def validate(self) -> None:
        """Raises: ValueError naming the field, what was got and what is expected."""
        for key in ("l1_weight", "gan_weight"):
            if not 0 <= getattr(self, key) < math.inf:
                raise ValueError(f"{key}: got {getattr(self, key)!r}, expected 0 or a positive number")
        if self.discriminator.in_channels != 6:
            raise ValueError(
                f"discriminator.in_channels: got {self.discriminator.in_channels}, expected 6, of skull and face"
            )
        try:
            self.discriminator_optim.validate(averaged=False)
        except ValueError as error:
            raise ValueError(f"discriminator_optim.{error}") from error
        for part, settings in (("generator", self.generator), ("discriminator", self.discriminator)):
            try:
                settings.validate()
            except ValueError as error:
                raise ValueError(f"{part}.{error}") from error
