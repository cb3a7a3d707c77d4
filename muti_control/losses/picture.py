"""Losses of the decoded face: realism, feature matching, landmarks; and the discriminator's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from muti_control.losses.config import DiscriminatorConfig, LossesConfig
from muti_control.losses.decoding import Judged, judge
from muti_control.networks.patchgan import PatchGan, judged, lsgan_discriminator, lsgan_generator, scores_of
from muti_control.networks.pipnet.reader import LandmarkReader
from settings.messages import ConfigError


def feature_matching(real: Sequence[Sequence[Tensor]], fake: Sequence[Sequence[Tensor]]) -> Tensor:
    """1 - cosine over the channels of each position, averaged over positions, layers and scales: (B,) in [0, 2].

    real, fake: features as ``PatchGan`` gives them; the score maps, their last, are left out. No gradient goes to
    the real ones.
    """
    pairs = [
        (r, f)
        for one, other in zip(real, fake, strict=True)
        for r, f in zip(one[:-1], other[:-1], strict=True)
    ]
    cosines = [F.cosine_similarity(r.detach().float(), f.float(), dim=1).flatten(1).mean(1) for r, f in pairs]
    return 1 - torch.stack(cosines).mean(0)


def landmark_error(real: Tensor, fake: Tensor) -> Tensor:
    """Mean square of the coordinates' differences, (B,), of points (B, N, 2) in [0, 1]."""
    return (fake.float() - real.detach().float()).square().flatten(1).mean(1)


@dataclass(frozen=True)
class Pictures:
    """What the faces of some samples are judged by: skulls (B, 3, H, W) in [0, 1] of the whole batch, and

    real: rows (n,) of it -> their true faces (n, 3, H, W), about [-1, 1].
    """

    skulls: Tensor
    real: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Shown:
    """What the generator's turn leaves for the discriminator's: skulls in [0, 1], faces about [-1, 1], detached."""

    skulls: Tensor
    real: Tensor
    fake: Tensor


class PictureLosses:
    """The terms that a config switches on, with the frozen and trained networks that they need.

    Holds no parameters of the stage: the stage keeps the discriminator.
    """

    def __init__(
        self, cfg: LossesConfig, discriminator: PatchGan | None, reader: LandmarkReader | None
    ) -> None:
        self.cfg, self.discriminator, self.reader = cfg, discriminator, reader

    def judge(
        self,
        decode: Callable[[Tensor], Tensor],
        z: Tensor,
        rows: Tensor,
        pictures: Pictures,
        weights: Mapping[str, float] | None,
    ) -> tuple[Judged, Shown]:
        """Decode latents (n, z, h, w) of samples ``rows`` and judge them, see ``losses.decoding.judge``."""
        shown: list[tuple[Tensor, Tensor]] = []

        def terms(faces: Tensor, some: Tensor) -> dict[str, Tensor]:
            with torch.no_grad():
                real = pictures.real(some).float().contiguous(memory_format=torch.channels_last)
            skulls = pictures.skulls[some]
            shown.append((skulls, real))
            return self.terms(faces, real, skulls)

        found = judge(decode, z, rows, terms, self.cfg.chunk, weights)
        skulls, real = (torch.cat(parts) for parts in zip(*shown, strict=True))
        return found, Shown(skulls, real, found.faces)

    def terms(self, fake: Tensor, real: Tensor, skulls: Tensor) -> dict[str, Tensor]:
        """Each term, (n,), of faces (n, 3, H, W) about [-1, 1] beside the true ones; skulls in [0, 1]."""
        found = {}
        if self.discriminator is not None:
            features = self.discriminator(judged(skulls, fake))
            if self.cfg.gan:
                found["gan"] = lsgan_generator(features)
            if self.cfg.fm:
                with torch.no_grad():
                    wanted = self.discriminator(judged(skulls, real))
                found["fm"] = feature_matching(wanted, features)
        if self.reader is not None:
            with torch.no_grad():
                points, _ = self.reader.soft((real + 1) / 2)
            found["lm"] = landmark_error(points, self.reader.soft((fake + 1) / 2)[0])
        return found

    def discriminator_loss(self, shown: Shown, batch_size: int) -> dict[str, Tensor]:
        """LSGAN of the samples shown, divided by the full batch; shares of the patches on the right side of 1/2."""
        assert self.discriminator is not None
        real, fake = (self.discriminator(judged(shown.skulls, faces)) for faces in (shown.real, shown.fake))
        return {
            "loss": lsgan_discriminator(real, fake).sum() / batch_size,
            "accuracy_real": torch.stack([(s > 0.5).float().mean() for s in scores_of(real)]).mean(),
            "accuracy_fake": torch.stack([(s < 0.5).float().mean() for s in scores_of(fake)]).mean(),
        }


def build_discriminator(cfg: DiscriminatorConfig, seed: int) -> PatchGan:
    """Return the network to be trained; fresh weights follow from ``seed``.

    Raises:
        ValueError: ``init`` is made for pictures of other channels. CheckpointError: it cannot be read.
    """
    if cfg.init is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return PatchGan(cfg.network)
    loaded = PatchGan.load(cfg.init)
    if loaded.cfg.in_channels != cfg.network.in_channels:
        raise ValueError(
            f"discriminator.init: {cfg.init} takes {loaded.cfg.in_channels} channels, expected "
            f"{cfg.network.in_channels}"
        )
    return loaded.train().requires_grad_(True)


def build_losses(cfg: LossesConfig, seed: int) -> PictureLosses | None:
    """The losses that ``cfg`` switches on, None if none; a fresh discriminator's weights follow from ``seed``.

    Raises:
        ConfigError: a file that is missing or does not fit. CheckpointError: one that cannot be read.
    """
    if not cfg.on:
        return None
    reader = None
    if cfg.lm:
        reader = LandmarkReader.load(cfg.pipnet)
        if reader.role != "face":
            raise ConfigError(
                f"losses.pipnet: {cfg.pipnet} reads landmarks off {reader.role}s, expected one for faces"
            )
    discriminator = build_discriminator(cfg.discriminator, seed) if cfg.gan or cfg.fm else None
    return PictureLosses(cfg, discriminator, reader)
