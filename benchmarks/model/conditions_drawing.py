"""Who is drawn by ``benchmarks.model.conditions``, how, and what judges the faces."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.cohort.style import SETTINGS, patch_statistics
from cldm.branches import Landmarks
from cldm.controlled import ControlledLatentDiffusion, load_model
from cldm.sampling import SamplingConfig, reconstruct
from cldm.texture import Texture
from data.cases import Case, cases_of, read_skull
from data.cohort.config import SUBJECT_DIR
from data.images import read_image
from data.manifest import Record, read_manifest
from ldm.config import ConfigError
from ldm.device import choose_device, choose_precision
from muti_control.conditions.case_landmarks import CaseLandmarks, choose_landmarks
from muti_control.evaluation.judges.dlib_recogniser import Recogniser, descriptor_distances
from muti_control.sampling.prepare import recommended_sampling

Floats = NDArray[np.floating]
STRENGTH = 1.0  # of the ridge regressions, on standardised features


@dataclass
class Drawer:
    """A model that draws cases, the same seeds whatever else is asked."""

    model: ControlledLatentDiffusion
    sampling: SamplingConfig
    landmarks: CaseLandmarks | None
    batch_size: int
    seed: int

    @property
    def side(self) -> int:
        """Of its pictures, px."""
        return self.model.cfg.image_size

    def __call__(self, cases: Sequence[Case], texture: Texture | None = None, variant: int = 0) -> Tensor:
        """Faces (B, 3, H, W) in [0, 1] of cases, whose bone may be missing."""
        found = []
        for start in range(0, len(cases), self.batch_size):
            rows = slice(start, start + self.batch_size)
            part = cases[rows]
            skulls = torch.stack([torch.from_numpy(read_skull(c, self.side)).permute(2, 0, 1) for c in part])
            shown: Landmarks | None = None if self.landmarks is None else self.landmarks.of(part, skulls)
            exemplars = None if texture is None else Texture(texture.features[rows], texture.present[rows])
            seeds = [self.seed + len(cases) * variant + start + i for i in range(len(part))]
            prompts = [case.prompt for case in part]
            found.append(
                reconstruct(
                    self.model, skulls, prompts, seeds, self.sampling, landmarks=shown, texture=exemplars
                )
            )
            print(f"drew {min(start + self.batch_size, len(cases))} of {len(cases)}", flush=True)
        return torch.cat(found)


@dataclass
class Bench:
    """A cohort's people: ``gallery``, the test split; ``records``, those who are drawn; ``fitted``, of the training."""

    root: Path
    gallery: list[Record]
    records: list[Record]
    fitted: list[Record]
    seed: int
    resamples: int
    _judge: Recogniser = field(default_factory=Recogniser)

    @classmethod
    def of(cls, root: str, num: int, num_fitted: int, seed: int, resamples: int) -> Bench:
        """Raises: ManifestError, ConfigError: not a cohort with styles and exemplars."""
        lists = Path(root) / "split_data"
        gallery, train = (read_manifest(lists / f"{name}.json") for name in ("test", "train"))
        bare = [r for r in (*gallery, *train) if r.style is None or r.texture_path is None]
        if bare:
            raise ConfigError(
                f"cohort: {root}: line {bare[0].line} of a list has no 'style' and 'texture'; make the cohort anew: "
                "python -m data.cohort"
            )
        return cls(Path(root), gallery, gallery[:num], train[:num_fitted], seed, resamples)

    @property
    def cases(self) -> list[Case]:
        """Of those who are drawn."""
        return cases_of(self.records)

    def drawer(self, file: Path, skull_reader: Path, batch_size: int, device: str, precision: str) -> Drawer:
        """A model, as its weights recommend it to be used. Raises: ValueError."""
        where = choose_device(device)
        model, metadata = load_model(file, device=where, dtype=choose_precision(precision, where))
        sampling = SamplingConfig(**recommended_sampling(metadata, model.cfg.unet.num_control_outputs))
        landmarks, lacking = choose_landmarks("auto", skull_reader, self.cases, model)
        if lacking is not None:
            raise ConfigError(lacking)
        return Drawer(model, sampling, landmarks, batch_size, self.seed)

    def skulls(self, side: int, missing: str | None = None) -> Tensor:
        """(B, 3, side, side) in [0, 1] of the first eight who are drawn."""
        cases = [replace(case, missing=missing) for case in self.cases[:8]]
        return torch.stack([torch.from_numpy(read_skull(case, side)).permute(2, 0, 1) for case in cases])

    def truths(self, side: int) -> Tensor:
        """True faces (B, 3, side, side) in [0, 1] of those who are drawn."""
        return pictures_of([_face(record) for record in self.records], side)

    def style(self, record: Record) -> Floats:
        """The settings of a face's style, in the order of ``SETTINGS``."""
        path = self.root / SUBJECT_DIR / f"{record.subject}.json"
        scan = json.loads(path.read_text(encoding="utf-8"))["face_scan"]
        return np.array([scan[name] for name in SETTINGS], float)

    @staticmethod
    def true_face(record: Record, side: int = 256) -> Tensor:
        """(1, 3, side, side) in [0, 1]."""
        return pictures_of([_face(record)], side)

    # ------------------------------------------------------------ judges
    def seen(self, faces: Tensor) -> tuple[Floats, Floats]:
        """dlib's descriptors (B, 128) and points (B, 68, 2) in px of 256."""
        pictures = (faces * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        looked = [self._judge.look(picture) for picture in pictures]
        scale = 256 / faces.shape[-1]
        return np.stack([d for d, _ in looked]), np.stack([p for _, p in looked]) * scale

    @cached_property
    def gallery_seen(self) -> tuple[Floats, Floats]:
        """Of all true faces of the split."""
        looked = [self.seen(self.true_face(r)) for r in self.gallery]
        return np.concatenate([d for d, _ in looked]), np.concatenate([p for _, p in looked])

    def found_first(self, faces: Tensor) -> Floats:
        """(B,) 1 where the true face is the nearest of the gallery."""
        distances = descriptor_distances(self.seen(faces)[0], self.gallery_seen[0])
        return (distances.argmin(1) == np.arange(len(faces))).astype(float)

    @cached_property
    def style_reader(self) -> Ridge:
        """Patch statistics -> settings, fitted on true training faces."""
        seen = np.stack([statistics(self.true_face(r)[0]) for r in self.fitted])
        return Ridge.fit(seen, np.stack([self.style(r) for r in self.fitted]))

    def style_of(self, faces: Tensor) -> Floats:
        """Settings (B, 6) as read off pictures."""
        return self.style_reader(np.stack([statistics(face) for face in faces]))

    def mean(self, values: Floats) -> dict[str, Any]:
        """Mean over subjects with its 95 % bootstrap interval."""
        values = np.asarray(values, float)
        rng = np.random.default_rng(self.seed)
        rows = rng.integers(0, len(values), (self.resamples, len(values)))
        low, high = np.percentile(values[rows].mean(1), [2.5, 97.5])
        return {
            "mean": round(float(values.mean()), 4),
            "interval": [round(float(low), 4), round(float(high), 4)],
        }


@dataclass(frozen=True)
class Ridge:
    """A linear read-out of standardised features."""

    centre: Floats
    scale: Floats
    mean: Floats
    weights: Floats

    @classmethod
    def fit(cls, x: Floats, y: Floats, strength: float = STRENGTH) -> Ridge:
        """x (N, F), y (N, K)."""
        centre, scale, mean = x.mean(0), x.std(0) + 1e-9, y.mean(0)
        design = (x - centre) / scale
        gram = design.T @ design + strength * np.eye(x.shape[1])
        return cls(centre, scale, mean, np.linalg.solve(gram, design.T @ (y - mean)))

    def __call__(self, x: Floats) -> Floats:
        return self.mean + (x - self.centre) / self.scale @ self.weights


def statistics(face: Tensor) -> Floats:
    """Of ``benchmarks.cohort.style``, of a face (3, H, W) in [0, 1]. Near-black of a decoder counts as background."""
    grey = face.mean(0).numpy()
    return patch_statistics(np.where(grey > 8 / 255, grey, 0))


def pictures_of(paths: Sequence[Path], side: int) -> Tensor:
    """(B, 3, side, side) float32 in [0, 1]."""
    return torch.stack([torch.from_numpy(read_image(path, side)[0]).permute(2, 0, 1) for path in paths])


def _face(record: Record) -> Path:
    assert record.face_path is not None
    return record.face_path
