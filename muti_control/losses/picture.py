"""Losses of the decoded face: realism, feature matching, landmarks; and the discriminator's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from muti_control.losses.config import DiscriminatorConfig, LossesConfig
from muti_control.losses.decoding import TermGradients, differentiate
from muti_control.networks.patchgan import PatchGan, judged, lsgan_discriminator, lsgan_generator, scores_of
from muti_control.networks.pipnet.reader import LandmarkReader
from settings.messages import ConfigError


def feature_matching(real: Sequence[Sequence[Tensor]], fake: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return 1 - cosine over the channels of each position, averaged over positions, layers and scales: (B,) in [0, 2].

    real, fake: the outputs of ``PatchGan``; the score maps, their last, are left out. The real ones get no gradient.
    """
    pairs = [
        (r, f)
        for one, other in zip(real, fake, strict=True)
        for r, f in zip(one[:-1], other[:-1], strict=True)
    ]
    cosines = [F.cosine_similarity(r.detach().float(), f.float(), dim=1).flatten(1).mean(1) for r, f in pairs]
    return 1 - torch.stack(cosines).mean(0)


def landmark_error(real: Tensor, fake: Tensor) -> Tensor:
    """Return the mean square of the coordinates' differences, (B,), of points (B, N, 2) in [0, 1]."""
    return (fake.float() - real.detach().float()).square().flatten(1).mean(1)


@dataclass(frozen=True)
class FacePairs:
    """Skulls (n, 3, H, W) in [0, 1] with their true and decoded faces about [-1, 1], detached, for a discriminator."""

    skulls: Tensor
    real: Tensor
    fake: Tensor


class PictureLosses:
    """The loss terms that are on, with the networks they need; the stage itself registers the discriminator."""

    def __init__(
        self, cfg: LossesConfig, discriminator: PatchGan | None, reader: LandmarkReader | None
    ) -> None:
        self.cfg, self.discriminator, self.reader = cfg, discriminator, reader

    def differentiate(
        self,
        decode: Callable[[Tensor], Tensor],
        z: Tensor,
        rows: Tensor,
        skulls: Tensor,
        true_faces: Callable[[Tensor], Tensor],
        weights: Mapping[str, float] | None,
    ) -> tuple[TermGradients, FacePairs]:
        """Decode latents and differentiate the terms, see ``losses.decoding.differentiate``.

        z: latents (n, z, h, w) of the samples ``rows`` (n,) of the batch. skulls: (B, 3, H, W) in [0, 1], of the batch.
        true_faces: rows (k,) -> their true faces (k, 3, H, W), about [-1, 1].
        """
        pairs: list[tuple[Tensor, Tensor]] = []

        def terms(faces: Tensor, some: Tensor) -> dict[str, Tensor]:
            with torch.no_grad():
                real = true_faces(some).float().contiguous(memory_format=torch.channels_last)
            pairs.append((skulls[some], real))
            return self.terms(faces, real, skulls[some])

        result = differentiate(decode, z, rows, terms, self.cfg.chunk, weights)
        own_skulls, real = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        return result, FacePairs(own_skulls, real, result.faces)

    def terms(self, fake: Tensor, real: Tensor, skulls: Tensor) -> dict[str, Tensor]:
        """Return each term, (n,), of faces (n, 3, H, W) about [-1, 1] and the true ones; skulls in [0, 1]."""
        values = {}
        if self.discriminator is not None:
            features = self.discriminator(judged(skulls, fake))
            if self.cfg.gan:
                values["gan"] = lsgan_generator(features)
            if self.cfg.fm:
                with torch.no_grad():
                    true_features = self.discriminator(judged(skulls, real))
                values["fm"] = feature_matching(true_features, features)
        if self.reader is not None:
            with torch.no_grad():
                points, _ = self.reader.soft((real + 1) / 2)
            values["lm"] = landmark_error(points, self.reader.soft((fake + 1) / 2)[0])
        return values

    def discriminator_loss(self, pairs: FacePairs, batch_size: int) -> dict[str, Tensor]:
        """Return LSGAN, summed and divided by the full batch, and the shares of patches on the right side of 1/2."""
        assert self.discriminator is not None
        real, fake = (self.discriminator(judged(pairs.skulls, faces)) for faces in (pairs.real, pairs.fake))
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
    """Return the losses that are on, None without any; a fresh discriminator's weights follow from ``seed``.

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
