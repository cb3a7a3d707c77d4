"""The match stage: skulls and faces of one person get like vectors, those of different people unlike ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.biometrics import age_level
from data.images import read_image, to_uint8
from data.manifest import Record, check_disjoint
from muti_control.conditions.altered import alteration_of, on_tensor
from muti_control.conditions.partial import with_missing_bone
from muti_control.networks.match import MatchNet, sexes
from muti_control.training.config import ExperimentConfig
from muti_control.training.model import file_facts, read_list
from muti_control.training.seeded_batches import EndlessBatches, generator
from muti_control.training.stage import Stage
from settings.messages import ConfigError


class MatchPairs(Dataset[dict[str, Any]]):
    """The people of a list: an item is a skull picture and a face picture of one of them, grey, of ``size`` px.

    Pictures are read once and stay in memory, 8-bit. Which of a person's pictures are taken, whether both are mirrored
    and how each is altered follows from the seed, the person and the pass (``EndlessBatches.count_passes``).
    """

    def __init__(
        self, records: Sequence[Record], size: int, augment: float = 0.0, flip: bool = False, seed: int = 0
    ) -> None:
        self.records, self.size = list(records), size
        self.augment, self.flip, self.seed = augment, flip, seed
        rows: defaultdict[str, list[int]] = defaultdict(list)
        for row, record in enumerate(self.records):
            rows[record.subject].append(row)
        self.people = list(rows.values())
        self.groups = [group_of(self.records[own[0]]) for own in self.people]
        self._pictures: dict[tuple[int, str], Tensor] = {}

    def __len__(self) -> int:
        return len(self.people)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Raises: ImageError where a picture cannot be read."""
        epoch, person = divmod(number, len(self))
        rng, own = np.random.default_rng([self.seed, epoch, person]), self.people[person]
        skull, face = (own[int(k)] for k in rng.integers(len(own), size=2))
        mirrored = self.flip and bool(rng.random() < 0.5)
        pictures = {
            kind: self.altered(row, kind, epoch, mirrored) for row, kind in ((skull, "skull"), (face, "face"))
        }
        return {**pictures, "sex": sexes([self.records[skull].biometrics.sex])[0], "index": person}

    def altered(self, row: int, kind: str, epoch: int, mirrored: bool = False) -> Tensor:
        """Return a picture (1, S, S) in [0, 1]; a face is altered apart from its skull."""
        picture = self.picture(row, kind).float() / 255
        picture = picture.flip(2) if mirrored else picture
        if not self.augment:
            return picture
        alteration = alteration_of(f"{kind} {self.records[row].source}", epoch, self.seed, self.augment)
        return on_tensor(alteration.skull, picture)

    def picture(self, row: int, kind: str) -> Tensor:
        """Return the "skull" or "face" of a record, (1, S, S) uint8."""
        if (row, kind) not in self._pictures:
            record = self.records[row]
            path = record.skull_path if kind == "skull" else record.face_path
            assert path is not None
            grey = to_uint8(read_image(path, self.size)[0].mean(2))
            self._pictures[row, kind] = torch.from_numpy(grey)[None]
        return self._pictures[row, kind]


def group_of(record: Record) -> tuple[str, int, int]:
    """Return sex, age level and body mass: what is known of a person without the skull."""
    person = record.biometrics
    return person.sex, age_level(person.age), person.body_mass


class LikePeople(EndlessBatches):
    """Passes over the people; in a share of them those of one group follow one another, and so fall into one batch."""

    groups: Sequence[tuple[str, int, int]]
    hard_share: float

    def _order(self, pass_number: int) -> Tensor:
        draws = generator(self.seed, 0, pass_number, "order")
        order = torch.randperm(self.num_items, generator=draws)
        if float(torch.rand((), generator=draws)) >= self.hard_share:
            return order
        places = {group: k for k, group in enumerate(sorted(set(self.groups)))}
        keys = torch.tensor([places[self.groups[i]] for i in order.tolist()])
        start = int(torch.randint(self.num_items, (), generator=draws))
        return order[keys.argsort(stable=True)].roll(start)


class MatchStage(Stage):
    """Trains both towers; the best checkpoint finds validation people best by other pictures of them."""

    monitor = "valid/mrr"
    monitor_mode = "max"
    net: MatchNet
    train_set: MatchPairs
    valid_set: MatchPairs

    @classmethod
    def build(cls, cfg: ExperimentConfig, device: torch.device) -> MatchStage:
        """Build network and data.

        Raises:
            ConfigError: too few people. ManifestError: a list cannot be used.
        """
        part = cfg.match
        train, valid = (read_list(cfg.data, name) for name in (cfg.data.train, cfg.data.valid))
        check_disjoint({"train": train, "valid": valid})
        size = part.network.image_size
        train_set = MatchPairs(train, size, cfg.data.augment, part.flip, cfg.train.seed)
        if len(train_set) < cfg.train.batch_size:
            raise ConfigError(
                f"train.batch_size: got {cfg.train.batch_size}, expected at most {len(train_set)}, the people of "
                f"{cfg.data.train}: the others of a batch are what a face is told apart from"
            )
        valid_set = MatchPairs(valid[: cfg.train.num_valid], size, cfg.data.augment, seed=cfg.train.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(cfg.train.seed)
            net = MatchNet(part.network, part.drop_features, part.scale)
        return cls(cfg, net, train_set, valid_set, trained=("",))

    def train_dataloader(self) -> DataLoader[Any]:
        """Return endless batches of people; ``updates`` is the loader's whole state."""
        batches = LikePeople(
            len(self.train_set),
            self.cfg.train.batch_size,
            self.cfg.train.seed,
            first_batch=self.updates * self.cfg.train.accumulate,
            rank=self.global_rank,
            world_size=self.trainer.world_size,
            count_passes=True,
        )
        batches.groups, batches.hard_share = self.train_set.groups, self.cfg.match.hard_share
        return self._loader(self.train_set, batch_sampler=batches)

    # --- training -----------------------------------------------------------------------------------------

    def loss_of(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return the symmetric InfoNCE of a batch, within each process; a person twice in it is no negative."""
        skulls, sex = batch["skull"], batch["sex"]
        if self.cfg.partial.share > 0:
            skulls = with_missing_bone(skulls, self.cfg.partial, self.draw("partial"))
        sex_known = torch.rand(len(sex), generator=self.draw("sex")) >= self.cfg.match.drop_sex
        vectors = self.net.skull(skulls, sex * sex_known.to(sex)), self.net.face(batch["face"])
        with torch.autocast(self.device.type, enabled=False):
            logits = self.net.logits(*vectors)  # (B, B)
            index = batch["index"]
            again = (index[:, None] == index) & ~torch.eye(len(index), dtype=torch.bool, device=index.device)
            logits = logits.masked_fill(again, -torch.inf)
            own = torch.arange(len(index), device=index.device)
            loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        found = (logits.argmax(1) == own).float().mean()
        return {"loss": loss, "rank_1": found, "scale": self.net.log_scale.detach().exp()}

    # --- validation ---------------------------------------------------------------------------------------

    def valid_loader(self) -> DataLoader[Any]:
        """Return this process's share of the validation pictures, each with its own skull and face, in order."""
        rows = range(self.global_rank, len(self.valid_set.records), self.trainer.world_size)
        return self._loader(_Pictures(self.valid_set, rows), batch_size=self.cfg.train.batch_size)

    def validate_batch(self, batch: dict[str, Any], batch_idx: int) -> None:
        vectors = self.net.skull(batch["skull"], batch["sex"]), self.net.face(batch["face"])
        self.keep("vectors", batch["index"].tolist(), zip(*(v.cpu() for v in vectors), strict=True))

    def validation_scores(self) -> dict[str, float]:
        """Return mean reciprocal rank, rank-1 and rank-10 of ``ranks_of_people``."""
        skulls, faces = (torch.stack(own).numpy() for own in zip(*self.gather("vectors"), strict=True))
        subjects = [record.subject for record in self.valid_set.records]
        ranks = torch.tensor(ranks_of_people(skulls @ faces.T, subjects))
        return {
            "valid/mrr": float((1 / ranks).mean()),
            "valid/rank_1": float((ranks == 1).float().mean()),
            "valid/rank_10": float((ranks <= 10).float().mean()),
        }

    # --- what is written at the end -----------------------------------------------------------------------

    def export(self, path: Path) -> None:
        """Write the averaged network as one file."""
        with self.ema.applied(self.averaged_tensors()):
            dtype = getattr(torch, self.cfg.train.export_dtype)
            self.net.save(path, dtype, {"format": "iccr-diff", **file_facts(self)})


class _Pictures(Dataset[dict[str, Any]]):
    """The pictures of people, one by one, altered as in the first pass."""

    def __init__(self, pairs: MatchPairs, rows: Sequence[int]) -> None:
        self.pairs, self.rows = pairs, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        row = self.rows[number]
        pictures = {kind: self.pairs.altered(row, kind, 0) for kind in ("skull", "face")}
        return {**pictures, "sex": sexes([self.pairs.records[row].biometrics.sex])[0], "index": row}


def ranks_of_people(scores: np.ndarray, subjects: Sequence[str]) -> list[int]:
    """Return, for each skull, the rank of its person among all people, by their best face; ties count against it.

    scores: (N, N) of skulls and faces of N pictures. The face of a skull's own picture, which lies exactly over it,
    does not count if the person has others.
    """
    people = {subject: k for k, subject in enumerate(dict.fromkeys(subjects))}
    person = np.array([people[subject] for subject in subjects])
    several = np.bincount(person)[person] > 1
    scores = scores.copy()
    np.fill_diagonal(scores, np.where(several, -np.inf, scores.diagonal()))
    best = np.full((len(scores), len(people)), -np.inf)
    for k in range(len(people)):
        best[:, k] = scores[:, person == k].max(1)
    own = best[np.arange(len(scores)), person]
    return [int(rank) for rank in (best >= own[:, None]).sum(1)]
