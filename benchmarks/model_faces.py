"""Faces the model predicts for a list of subjects: with the right skull, another's, a blank one, or none."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from cldm.controlled import ControlledLatentDiffusion
from cldm.sampling import SamplingConfig, reconstruct
from data.biometrics import prompt
from data.images import read_image
from data.manifest import Record
from muti_control.evaluation.features import picture_features


def read_pictures(records: Sequence[Record], which: str, size: int) -> Tensor:
    """The `which` = "skull" or "face" pictures, (B, 3, size, size) float32 in [0, 1]."""
    paths = [record.skull_path if which == "skull" else record.face_path for record in records]
    pictures = [read_image(path, size)[0] for path in paths if path is not None]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


class ModelFaces:
    """Predicts features (P, D) batch by batch; every picture depends on its own skull, prompt and seed only.

    Args:
        probes: whose prompts are used.
        samples: reconstructions per probe, averaged.
        seed: sample k of probe i has seed `seed + k * len(probes) + i` in every method, so that they differ in the
            condition alone.
    """

    def __init__(
        self,
        model: ControlledLatentDiffusion,
        sampling: SamplingConfig,
        probes: Sequence[Record],
        batch: int,
        samples: int,
        seed: int,
        num_shown: int,
    ) -> None:
        self._model, self._sampling, self._probes = model, sampling, probes
        self._batch, self._samples, self._seed = batch, samples, seed
        self._num_shown = num_shown
        self._size = model.cfg.image_size
        self.shown: dict[str, np.ndarray] = {}
        self.seconds: dict[str, float] = {}

    def predict(self, method: str, donors: Sequence[Record]) -> np.ndarray:
        """Features of one of `benchmarks.rank1.OF_THE_MODEL`; the first pictures are kept in `shown`."""
        make: dict[str, Callable[[list[int]], Tensor]] = {
            "model": lambda rows: self._faces(rows, self._skulls(rows, self._probes)),
            "model, shuffled skull": lambda rows: self._faces(rows, self._skulls(rows, donors)),
            "model, skull off": lambda rows: self._faces(rows, None),
            "model, blank skull": lambda rows: self._faces(rows, 0 * self._skulls(rows, self._probes)),
            "true face through the autoencoder": self._through_autoencoder,
        }
        started = time.perf_counter()
        features: list[np.ndarray] = []
        shown: list[np.ndarray] = []
        for start in range(0, len(self._probes), self._batch):
            rows = list(range(start, min(start + self._batch, len(self._probes))))
            with torch.no_grad():
                pictures = make[method](rows).float().clamp(0, 1).cpu().mean(dim=1).numpy()  # (B, H, W)
            features.append(picture_features(pictures))
            shown.extend(pictures[: max(0, self._num_shown - start)])
            print(f"\r{method}: {rows[-1] + 1} of {len(self._probes)}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        self.shown[method] = np.stack(shown)
        self.seconds[method] = time.perf_counter() - started
        return np.concatenate(features)

    def _skulls(self, rows: list[int], whose: Sequence[Record]) -> Tensor:
        return read_pictures([whose[i] for i in rows], "skull", self._size).to(self._model.device)

    def _faces(self, rows: list[int], skulls: Tensor | None) -> Tensor:
        """The mean of `samples` reconstructions, (B, 3, H, W) in [0, 1]."""
        prompts = [prompt(self._probes[i].biometrics) for i in rows]
        drawn = []
        for k in range(self._samples):
            seeds = [self._seed + k * len(self._probes) + i for i in rows]
            drawn.append(reconstruct(self._model, skulls, prompts, seeds, self._sampling))
        return torch.stack(drawn).mean(dim=0)

    def _through_autoencoder(self, rows: list[int]) -> Tensor:
        faces = read_pictures([self._probes[i] for i in rows], "face", self._size).to(self._model.device)
        latents = self._model.encode_first_stage((faces * 2 - 1).to(self._model.dtype), sample=False)
        return self._model.decode(latents) / 2 + 0.5
