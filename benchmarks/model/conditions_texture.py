"""The texture condition, measured: its features, and faces that are drawn with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.cohort.style import SETTINGS
from benchmarks.model.conditions_drawing import Bench, Drawer, Floats, Ridge, pictures_of
from cldm.texture import Texture, skin_patches, texture_features
from ldm.latent_diffusion import TextureConfig
from muti_control.evaluation.judges.dlib_recogniser import descriptor_distances


def measure_features(bench: Bench, branch: TextureConfig | None = None) -> dict[str, Any]:
    """What texture features of training faces tell; every read-out is linear, fitted on one half, judged on the other.

    Identity: dlib's descriptor is read out of the features of the same picture, and looked up among the true
    descriptors of the half, and of those in it of the same style alone, where style does not help to find it.
    """
    branch = branch or TextureConfig()
    patches = [skin_patches(bench.true_face(r)[0], branch) for r in bench.fitted]
    features = np.stack([texture_features(p).numpy() for p in patches]).astype(float)
    scrambled = np.stack([texture_features(_scramble(p, i)).numpy() for i, p in enumerate(patches)])
    half = len(features) // 2
    styles = np.stack([bench.style(r) for r in bench.fitted])
    read = Ridge.fit(features[:half], styles[:half])(features[half:])
    errors = ((read - styles[half:]) ** 2).mean(0) / styles[half:].var(0)
    names = sorted({str(r.style) for r in bench.fitted})
    which = np.array([names.index(str(r.style)) for r in bench.fitted])
    voted = Ridge.fit(features[:half], np.eye(len(names))[which[:half]])(features[half:]).argmax(1)
    return {
        "faces": len(features),
        "R2 of each setting": {
            name: round(float(1 - e), 3) for name, e in zip(SETTINGS, errors, strict=True)
        },
        f"the right one of {len(names)} styles": round(float((voted == which[half:]).mean()), 3),
        "largest change by scrambling, in standard deviations": float(
            (np.abs(scrambled - features) / features.std(0)).max()
        ),
        "identity": _identity(bench, features, which),
    }


def _identity(bench: Bench, features: Floats, which: Floats) -> dict[str, float]:
    half = len(features) // 2
    looked = [bench.seen(bench.true_face(r))[0] for r in bench.fitted]
    descriptors = np.concatenate(looked)
    read = Ridge.fit(features[:half], descriptors[:half], 10.0)(features[half:])
    distances = descriptor_distances(read, descriptors[half:])
    first = distances.argmin(1) == np.arange(len(distances))
    same = which[half:, None] == which[None, half:]
    within = np.where(same, distances, np.inf).argmin(1) == np.arange(len(distances))
    return {
        "rank-1": round(float(first.mean()), 4),
        "rank-1, chance": round(1 / len(first), 4),
        "rank-1 within the style": round(float(within.mean()), 4),
        "rank-1 within the style, chance": round(float((1 / same.sum(1)).mean()), 4),
    }


def _scramble(patches: Tensor, seed: int) -> Tensor:
    """The patches in another order, about half of them mirrored along each axis."""
    generator = torch.Generator().manual_seed(seed)
    mixed = patches[torch.randperm(len(patches), generator=generator)].clone()
    for axis in (1, 2):
        rows = torch.rand(len(mixed), generator=generator) < 0.5
        mixed[rows] = mixed[rows].flip(axis)
    return mixed


def measure_texture(bench: Bench, drawer: Drawer) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Faces with the exemplar that the manifest names, with one of another style, and without.

    ``followed`` is the slope of the change in measured style on the change that the exemplars differ by, over subjects:
    1 if a face takes on all of the other exemplar's style, 0 if none. The same is measured between true faces
    that went through the autoencoder, which is what the model can reach at most.

    Returns:
        The figures, and rows of eight pictures by their name.
    """
    branch = drawer.model.cfg.control.texture
    assert branch is not None
    own = [path for record in bench.records if (path := record.texture_path) is not None]
    shift = _shift([str(record.style) for record in bench.records])
    other = [own[(i + shift[i]) % len(own)] for i in range(len(own))]
    shown = {name: pictures_of(paths, drawer.side) for name, paths in (("own", own), ("other", other))}
    faces = {"none": drawer(bench.cases)}
    for name, exemplars in shown.items():
        features = torch.stack([texture_features(skin_patches(picture, branch)) for picture in exemplars])
        faces[name] = drawer(bench.cases, Texture(features, torch.ones(len(features), dtype=torch.bool)))
    wanted = {name: bench.style_of(exemplars) for name, exemplars in shown.items()}
    drawn = {name: bench.style_of(picture) for name, picture in faces.items()}
    decoded = {name: bench.style_of(_through(drawer, exemplars)) for name, exemplars in shown.items()}
    asked = wanted["other"] - wanted["own"]
    scale = asked.std(0) + 1e-9
    nearer = (((drawn["other"] - wanted["other"]) / scale) ** 2).sum(1) < (
        ((drawn["own"] - wanted["other"]) / scale) ** 2
    ).sum(1)
    first = {name: bench.found_first(picture) for name, picture in faces.items()}
    figures = {
        "followed": _slopes(bench, asked, drawn["other"] - drawn["own"]),
        "followed, true faces through the autoencoder": _slopes(
            bench, asked, decoded["other"] - decoded["own"]
        ),
        "share that went towards the other exemplar": bench.mean(nearer.astype(float)),
        "rank-1": {name: bench.mean(values) for name, values in first.items()},
        "rank-1, other less own exemplar": bench.mean(first["other"] - first["own"]),
        "mean absolute change of the picture": round(float((faces["other"] - faces["own"]).abs().mean()), 5),
    }
    rows = {
        "own exemplar": shown["own"][:8],
        "drawn with it": faces["own"][:8],
        "another style": shown["other"][:8],
        "drawn with that": faces["other"][:8],
        "drawn without": faces["none"][:8],
    }
    return figures, rows


def _shift(styles: list[str]) -> list[int]:
    """How far down the list the next subject of another style is, for each."""
    num = len(styles)
    return [next((k for k in range(1, num) if styles[(i + k) % num] != styles[i]), 1) for i in range(num)]


@torch.no_grad()
def _through(drawer: Drawer, pictures: Tensor) -> Tensor:
    """Pictures encoded and drawn again by the model's autoencoder, each with grain of its place in the list."""
    model, found, num_done = drawer.model, [], 0
    for part in pictures.split(drawer.batch_size):
        x = (part * 2 - 1).to(model.device, model.dtype)
        places = range(num_done, num_done + len(part))
        decoded = model.draw(
            model.encode_first_stage(x, sample=False).to(model.dtype), places, drawer.sampling.grain
        )
        num_done += len(part)
        found.append(((decoded.float().cpu() + 1) / 2).clamp(0, 1))
    return torch.cat(found)


def _slopes(bench: Bench, asked: Floats, got: Floats) -> dict[str, Any]:
    """Of each setting: the slope through the origin of ``got`` on ``asked``, with its interval."""
    rng = np.random.default_rng(bench.seed)
    rows = rng.integers(0, len(asked), (bench.resamples, len(asked)))
    found = {}
    for k, name in enumerate(SETTINGS):
        products, squares = got[:, k] * asked[:, k], asked[:, k] ** 2
        spread = products[rows].sum(1) / np.maximum(squares[rows].sum(1), 1e-12)
        low, high = np.percentile(spread, [2.5, 97.5])
        slope = float(products.sum() / max(squares.sum(), 1e-12))
        found[name] = {"slope": round(slope, 3), "interval": [round(float(low), 3), round(float(high), 3)]}
    return found
