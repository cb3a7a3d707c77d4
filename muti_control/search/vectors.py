"""Vectors of skulls and faces, and those of a gallery, which are kept in a file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from data.images import IMAGE_SUFFIXES, ImageError, read_image
from ldm.checkpoint import CheckpointError, read_state_dict, sha256, write_state_dict
from ldm.device import choose_device
from muti_control.case.calibration import Calibration, load_calibration
from muti_control.case.prepare import checked_skull
from muti_control.networks.match import MatchNet, load_match, sexes
from muti_control.sampling.config import DEMO_WEIGHTS
from muti_control.sampling.request import shipped

Kind = Literal["skull", "face"]
Floats = NDArray[np.float32]
SIZE, BATCH, READERS = 256, 64, 4


class SearchError(ValueError):
    """A picture or a gallery cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Embedder:
    """A loaded network. sex: of all skulls. prepare: mend skulls as ``sample.py`` does before they are drawn."""

    net: MatchNet
    weights: Path
    digest: str
    sex: str | None = None
    prepare: bool = True

    @classmethod
    def load(
        cls, weights: str, sex: str | None = None, prepare: bool = True, device: str = "auto"
    ) -> Embedder:
        """Raises: ValueError: weights or device that cannot be used."""
        path = shipped(weights)
        if not path.is_file():
            raise SearchError(
                f"weights: {path} does not exist; leave the setting out for the shipped network"
            )
        return cls(load_match(path, choose_device(device)), path, sha256(path), sex, prepare)

    @cached_property
    def checks(self) -> Calibration | None:
        """The reference of the skulls' check, that of the shipped model."""
        model = shipped(DEMO_WEIGHTS)
        return load_calibration(model, sha256(model)) if model.is_file() else None

    def read(self, path: Path, kind: Kind) -> Floats:
        """Return a picture (3, SIZE, SIZE) in [0, 1] as the network sees it; a skull is checked, and mended.

        Raises:
            ImageError: it cannot be read. SearchError: it is no skull.
        """
        picture, _ = read_image(path, SIZE)
        if kind == "skull":
            result = checked_skull(picture, self.checks, None, self.prepare)
            if result.check.level == "stop":
                reasons = "; ".join(finding.text for finding in result.check.findings)
                raise SearchError(f"{path}: {reasons}; give a picture of a skull")
            picture = result.picture
        return np.ascontiguousarray(picture.transpose(2, 0, 1))

    def vectors(self, pictures: NDArray[np.floating], kind: Kind, sex: Sequence[str | None] = ()) -> Floats:
        """Return unit vectors (N, V) of pictures (N, 3, H, W) in [0, 1]. sex: of each skull, if they differ."""
        device = self.net.log_scale.device
        with torch.inference_mode():
            batch = torch.from_numpy(np.asarray(pictures, np.float32)).to(device)
            if kind == "face":
                return self.net.face(batch).cpu().numpy()
            return self.net.skull(batch, sexes(sex or [self.sex] * len(batch)).to(device)).cpu().numpy()


@dataclass(frozen=True)
class Gallery:
    """The pictures of a folder that could be read, and their unit vectors (N, V). problems: a line for each other."""

    paths: Sequence[Path]
    vectors: Floats
    problems: Sequence[str]
    num_new: int


def pictures_in(folder: Path) -> list[Path]:
    """Return the pictures of a folder and of those in it, in order. Raises: SearchError: there are none."""
    if not folder.is_dir():
        kind = "is a file" if folder.exists() else "does not exist"
        raise SearchError(f"gallery: {folder} {kind}; give a folder of pictures")
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if not paths:
        raise SearchError(f"gallery: {folder} holds no picture; they end in {', '.join(IMAGE_SUFFIXES)}")
    return paths


def read_gallery(folder: Path, kind: Kind, embedder: Embedder, cache: Path) -> Gallery:
    """Return the vectors of a folder of faces or skulls; those of unchanged files come from the folder ``cache``.

    A picture that cannot be read, or is no skull, is left out.

    Raises:
        SearchError: there is no picture, or none that can be used.
    """
    paths = pictures_in(folder)
    places = [os.path.relpath(path, folder) for path in paths]
    told = [os.path.abspath(folder), kind, embedder.digest]
    told += [str(embedder.sex), str(embedder.prepare)] if kind == "skull" else []
    file = cache / f"{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]}.safetensors"
    kept = _stored(file)
    states = [
        f"{place} {status.st_size} {status.st_mtime_ns}"
        for place, status in zip(places, map(os.stat, paths), strict=True)
    ]
    new = [k for k, state in enumerate(states) if state not in kept]
    problems = []
    with (
        ThreadPoolExecutor(READERS) as pool,
        tqdm(total=len(new), desc=f"new {kind}s", unit="picture", disable=None) as bar,
    ):
        for first in range(0, len(new), BATCH):
            some = new[first : first + BATCH]
            results = pool.map(lambda k: _read(embedder, paths[k], kind), some)
            good = {}
            for k, result in zip(some, results, strict=True):
                if isinstance(result, str):
                    problems.append(result)
                else:
                    good[k] = result
            if good:
                vectors = embedder.vectors(np.stack(list(good.values())), kind)
                kept |= {states[k]: vector for k, vector in zip(good, vectors, strict=True)}
            bar.update(len(some))
    usable = [k for k, state in enumerate(states) if state in kept]
    if not usable:
        raise SearchError("\n  ".join([f"gallery: no picture in {folder} can be used", *problems[:20]]))
    rows = np.stack([kept[states[k]] for k in usable])
    if new:
        cache.mkdir(parents=True, exist_ok=True)
        names = json.dumps([states[k] for k in usable])
        write_state_dict(file, {"vectors": torch.from_numpy(rows)}, {"files": names})
    return Gallery([paths[k] for k in usable], rows, problems, len(new) - len(problems))


def _read(embedder: Embedder, path: Path, kind: Kind) -> Floats | str:
    """Return the picture, or why it cannot be used."""
    try:
        return embedder.read(path, kind)
    except (ImageError, SearchError) as error:
        return str(error)


def _stored(file: Path) -> dict[str, Floats]:
    """Return the vectors of a cache file by name, size and time of the picture; none where it is missing or damaged."""
    if not file.is_file():
        return {}
    try:
        state, metadata = read_state_dict(file, mmap=False)
        rows = state["vectors"].float().numpy()
        return dict(zip(json.loads(metadata["files"]), rows, strict=True))
    except (CheckpointError, KeyError, ValueError, TypeError):
        return {}
