"""The pix2pix stage: skulls and biometrics -> faces, by a generator and a discriminator that train each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.paired import PairedDataset
from ldm.checkpoint import load_strict
from muti_control.networks.patchgan import PatchGan, accuracy, judged, lsgan_discriminator, lsgan_generator
from muti_control.networks.pix2pix import Generator, encode
from muti_control.training.config import ExperimentConfig
from muti_control.training.model import file_facts, read_lists
from muti_control.training.optimizers import Turn
from muti_control.training.pictures import rank_one, small_grey
from muti_control.training.stage import Stage
from settings.messages import ConfigError

DISCRIMINATOR = "discriminator"
NUM_SHOWN = 8


class Pix2PixStage(Stage):
    """Trains a generator, and beside it a discriminator; the best checkpoint has the lowest error of its faces.

    Scores are those of the control stage, and the error with another person's skull, which a skull-blind generator
    does not mind. The generator is averaged, validated and exported; the discriminator is exported as it is at the end.
    """

    monitor = "valid/l1"
    monitor_mode = "min"
    net: Generator

    def __init__(
        self,
        cfg: ExperimentConfig,
        net: Generator,
        discriminator: PatchGan,
        train_set: PairedDataset,
        valid_set: PairedDataset,
    ) -> None:
        super().__init__(cfg, net, train_set, valid_set, trained=("",))
        self.discriminator = discriminator.to(memory_format=torch.channels_last)
        words = net.cfg.ethnicities or ()
        self.people = {
            part: encode([record.biometrics for record in pairs.records], words)
            for part, pairs in (("train", train_set), ("valid", valid_set))
        }
        self._fake = torch.empty(0)

    @classmethod
    def build(cls, cfg: ExperimentConfig, device: torch.device) -> Pix2PixStage:
        """Build network and data, from fresh weights of ``train.seed`` or from ``init``'s.

        Raises:
            ConfigError: ``init`` knows other ethnicities than the config names, or a person has an unknown one.
            CheckpointError: ``init`` is no Pix2Pix, or its weights do not fit.
        """
        part, (train, valid) = cfg.pix2pix, read_lists(cfg).values()
        begun = None if cfg.init is None else Generator.load(cfg.init)[0]
        words = part.generator.ethnicities or sorted({record.biometrics.ethnicity for record in train})
        if begun is not None:  # an ethnicity is its place in the list that the weights were trained with
            setting, words = part.generator.ethnicities, begun.cfg.ethnicities or []
            if setting is not None and setting != words:
                raise ConfigError(
                    f"pix2pix.generator.ethnicities: got {', '.join(setting)}, expected what {cfg.init} was trained "
                    f"on, {', '.join(words)}, in that order; leave the setting out to take it from the file"
                )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(cfg.train.seed)
            net = Generator(part.generator.with_(ethnicities=words))
            discriminator = PatchGan(part.discriminator)
        if begun is not None:
            load_strict(net, begun.state_dict())
        size = part.generator.image_size
        train_set, valid_set = PairedDataset(train, size=size), PairedDataset(valid, size=size)
        try:
            return cls(cfg, net, discriminator, train_set, valid_set)
        except ValueError as error:
            raise ConfigError(f"data: {error}") from error

    def architecture(self) -> dict[str, Any]:
        return {"generator": self.net.cfg.model_dump(), DISCRIMINATOR: self.discriminator.cfg.model_dump()}

    # --- training -----------------------------------------------------------------------------------------

    def turns(self) -> list[Turn]:
        own = dict(self.discriminator.named_parameters(prefix=DISCRIMINATOR))
        key = "pix2pix.discriminator_optim"
        return [*super().turns(), Turn(DISCRIMINATOR, own, self.cfg.pix2pix.discriminator_optim, key=key)]

    def turn_loss(self, turn: str, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Of the generator: gan_weight LSGAN + l1_weight |face - true face|; of the discriminator: LSGAN."""
        skull, face = batch["skull"], batch["face"]
        if turn == DISCRIMINATOR:
            real = self.discriminator(judged(skull, face))
            fake = self.discriminator(judged(skull, self._fake))  # the generator has not stepped since
            return {
                "loss": lsgan_discriminator(real, fake).mean(),
                "accuracy": accuracy(real, fake).detach(),
            }
        people = self.people["train"][batch["index"].cpu()].to(skull.device)
        drawn = self.net(skull, people, self.draw("dropout")).float()
        self._fake = drawn.detach()
        l1 = (drawn - face).abs().mean()
        gan = lsgan_generator(self.discriminator(judged(skull, drawn))).mean()
        cfg = self.cfg.pix2pix
        return {
            "loss": cfg.gan_weight * gan + cfg.l1_weight * l1,
            "l1": l1.detach() / 2,  # of pictures in [0, 1], as in validation
            "gan": gan.detach(),
        }

    # --- validation ---------------------------------------------------------------------------------------

    def validate_batch(self, batch: dict[str, Any], batch_idx: int) -> None:
        skull = batch["skull"]
        people = self.people["valid"][batch["index"].cpu()].to(skull.device)
        own = self._faces(skull, people)
        others: list[Tensor | None] = [None] * len(skull)
        if len(skull) > 1:  # alone, a skull would be lent to its own person
            others = [*self._faces(skull.roll(1, dims=0), people)]
        truth = (batch["face"].float().cpu() + 1) / 2
        pictures = zip(skull.float().cpu(), own, truth, others, strict=True)
        self.keep("pictures", batch["index"].tolist(), pictures)

    def _faces(self, skulls: Tensor, people: Tensor) -> Tensor:
        return (self.net(skulls, people).float().cpu().clamp(-1, 1) + 1) / 2

    def validation_scores(self) -> dict[str, float]:
        *pictures, others = zip(*self.gather("pictures"), strict=True)
        skulls, faces, truths = (torch.stack(some) for some in pictures)
        errors = [
            float((other - truth).abs().mean())
            for other, truth in zip(others, truths, strict=True)
            if other is not None
        ]
        self.show("faces", [row[:NUM_SHOWN] for row in (skulls, faces, truths)])
        scores = {
            "valid/l1": float((faces - truths).abs().mean()),
            "valid/rank_1": float(rank_one(small_grey(faces, 64), small_grey(truths, 64))),
        }
        return scores | ({"valid/l1_other_skull": sum(errors) / len(errors)} if errors else {})

    # --- what is written at the end -----------------------------------------------------------------------

    def export(self, path: Path) -> None:
        """Write the averaged generator as one file, and the discriminator beside it, of the last step."""
        facts = {"format": "iccr-diff", **file_facts(self)}
        dtype = getattr(torch, self.cfg.train.export_dtype)
        with self.ema.applied(self.averaged_tensors()):
            self.net.save(path, dtype, facts)
        self.discriminator.save(path.with_name(f"{DISCRIMINATOR}{path.suffix}"), dtype, facts)
