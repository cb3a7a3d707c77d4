"""Settings of the losses: of the autoencoder, its grain and the decoded face, and of the discriminator of both."""

from __future__ import annotations

import math

import torch

from muti_control.networks.patchgan import PatchGan, PatchGanConfig
from muti_control.optim import OptimConfig
from settings.base import Settings


class DiscriminatorConfig(Settings):
    """The discriminator that realism and feature matching need; it learns beside what it judges.

    init: its weights (a discriminator.safetensors); null: fresh ones. every: steps from one of its turns to the next.
    network: its architecture, without ``init``. optim: its own optimizer.
    """

    init: str | None = None
    every: int = 1
    network: PatchGanConfig = PatchGanConfig()
    optim: OptimConfig = OptimConfig(lr=1e-4, beta1=0.5, warmup_steps=0, clip_norm=0.0, ema_decay=0.0)

    def validate(self, in_channels: int) -> None:
        """Of one for pictures of that many channels.

        Raises: ValueError naming the field, what was got and what is expected.
        """
        if self.every < 1:
            raise ValueError(f"every: got {self.every!r}, expected at least 1")
        if self.network.in_channels != in_channels:
            raise ValueError(
                f"network.in_channels: got {self.network.in_channels!r}, expected {in_channels} in this stage"
            )
        try:
            self.network.validate()
        except ValueError as error:
            raise ValueError(f"network.{error}") from error
        try:
            self.optim.validate(averaged=False)
        except ValueError as error:
            raise ValueError(f"optim.{error}") from error

    def build(self, seed: int) -> PatchGan:
        """The network to be trained; fresh weights follow from ``seed``.

        Raises:
            ValueError: ``init`` is made for pictures of other channels. CheckpointError: it cannot be read.
        """
        if self.init is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                return PatchGan(self.network)
        found = PatchGan.load(self.init)
        if found.cfg.in_channels != self.network.in_channels:
            raise ValueError(
                f"discriminator.init: {self.init} takes {found.cfg.in_channels} channels, expected "
                f"{self.network.in_channels}"
            )
        return found.train().requires_grad_(True)


class AutoencoderStageConfig(Settings):
    """Loss of the autoencoder stage: |x - x_hat| + edge_weight |grad x - grad x_hat| + kl_weight KL / pixels, and

    texture_weight: of how much rougher or smoother the surface comes back (``autoencoder_losses.texture_loss``);
    without it and gan, grain and noise are wiped out.
    gan: realism (LSGAN): how hard its gradient pulls at the decoder's last layer, relative to all other terms; 0: no
    discriminator. gan_ramp_steps: over which it rises to that. discriminator: its own; it sees single pictures.
    With either of them the best validation (train.export=best) is that of the least difference in roughness, not of the
    highest PSNR, which would be the smoothest.
    crop_size: side in px of the random crops it trains on, 0 for whole pictures (it validates on whole ones).
    on_skulls: train on the skull pictures too, not on the faces alone.
    """

    crop_size: int = 0
    edge_weight: float = 1.0
    kl_weight: float = 1e-6
    texture_weight: float = 0.0
    gan: float = 0.0
    gan_ramp_steps: int = 0
    discriminator: DiscriminatorConfig = DiscriminatorConfig(network=PatchGanConfig(in_channels=3))
    on_skulls: bool = False

    def validate(self) -> None:
        """Raises: ValueError naming the field, what was got and what is expected."""
        for key in ("edge_weight", "kl_weight", "texture_weight", "gan", "gan_ramp_steps", "crop_size"):
            if not 0 <= getattr(self, key) < math.inf:
                raise ValueError(f"{key}: got {getattr(self, key)!r}, expected 0 or a positive number")
        try:
            self.discriminator.validate(in_channels=3)
        except ValueError as error:
            raise ValueError(f"discriminator.{error}") from error


class GrainStageConfig(Settings):
    """Of the grain stage, whose loss is ``autoencoder_losses.texture_loss`` of decoded pictures with grain.

    filters: of the noise, in a head that ``init`` has not yet. crop_size: side in px of the random windows it trains on
    (it validates on whole pictures). crops: windows of each decoded picture. exemplars: how often another face of the
    same style (the manifest's "texture") tells what the surface shall look like, in place of the decoded face itself;
    0: never, and a new head follows no exemplar when faces are drawn.
    """

    filters: int = 8
    crop_size: int = 96
    crops: int = 4
    exemplars: float = 0.0

    def validate(self) -> None:
        """Raises: ValueError naming the field, what was got and what is expected."""
        for key, low, high in (("filters", 1, 64), ("crop_size", 32, 4096), ("crops", 1, 256)):
            if not low <= getattr(self, key) <= high:
                raise ValueError(f"{key}: got {getattr(self, key)!r}, expected {low} to {high}")
        if not 0 <= self.exemplars <= 1:
            raise ValueError(f"exemplars: got {self.exemplars!r}, expected a share, 0 to 1")


class LossesConfig(Settings):
    """Of the control stage: losses of the face that the predicted clean latent decodes to, beside the noise loss.

    gan, fm, lm: realism (LSGAN), feature matching in the discriminator, landmarks; 0 switches a term off.
    by: "ratio": they say how large the norm of the term's gradient on the control network is to be, relative to the
    noise loss's; the weights follow from measurement. "weight": they are the weights.
    noise: weight of the noise loss. ramp_steps: over which gan, fm and lm rise to what they are.
    min_t, max_t: only samples whose t is within are decoded. sub_batch: at most so many of a micro-batch, drawn.
    chunk: of these at a time; it changes memory and nothing else. recompute: of the decoder, compute activations a
    second time in the backward pass instead of keeping them.
    real: what a face is compared with, the "picture" or the true latent "decoded" as well: so nothing is
    asked of the control network that the frozen autoencoder cannot draw.
    pipnet: file of the frozen network that reads landmarks off faces. measure_every: steps between measurements of the
    gradients' norms (and in the first ones, until each was seen a few times); 0: none, with by=weight.
    """

    gan: float = 0.0
    fm: float = 0.0
    lm: float = 0.0
    by: str = "ratio"
    noise: float = 1.0
    ramp_steps: int = 0
    min_t: int = 0
    max_t: int = 500
    sub_batch: int = 4
    chunk: int = 4
    recompute: bool = True
    real: str = "decoded"
    pipnet: str = "models/demo/pipnet_face.safetensors"
    measure_every: int = 50
    discriminator: DiscriminatorConfig = DiscriminatorConfig()

    @property
    def on(self) -> bool:
        """Whether any face is decoded."""
        return bool(self.gan or self.fm or self.lm)

    @property
    def wanted(self) -> dict[str, float]:
        """Ratio or weight of each term that is on."""
        terms = {"gan": self.gan, "fm": self.fm, "lm": self.lm}
        return {name: value for name, value in terms.items() if value}

    def validate(self) -> None:
        """Raises: ValueError naming the field, what was got and what is expected."""
        checks = [
            *(
                (0 <= getattr(self, key) < math.inf, key, getattr(self, key), "0 (off) or a positive number")
                for key in ("gan", "fm", "lm")
            ),
            (0 < self.noise < math.inf, "noise", self.noise, "a positive number"),
            (self.by in ("ratio", "weight"), "by", self.by, "ratio or weight"),
            (self.real in ("decoded", "picture"), "real", self.real, "decoded or picture"),
            (self.ramp_steps >= 0, "ramp_steps", self.ramp_steps, "0 or more"),
            (0 <= self.min_t <= self.max_t, "min_t", self.min_t, f"0 to max_t={self.max_t}"),
            *(
                (getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
                for key in ("sub_batch", "chunk")
            ),
            (
                self.measure_every >= (1 if self.by == "ratio" else 0),
                "measure_every",
                self.measure_every,
                "at least 1 with by=ratio" if self.by == "ratio" else "0 (never) or more",
            ),
        ]
        for good, key, got, expected in checks:
            if not good:
                raise ValueError(f"{key}: got {got!r}, expected {expected}")
        try:
            self.discriminator.validate(in_channels=6)  # skull and face
        except ValueError as error:
            raise ValueError(f"discriminator.{error}") from error
