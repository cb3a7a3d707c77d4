"""Does the spread of the drawn faces mean something? Landmarks of drawn faces against the true ones, held-out people.

The faces of each person are drawn once; their landmarks are kept in a folder, and a later run continues there.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from cldm.config import SamplingConfig
from cldm.controlled import load_model
from data.biometrics import age_level
from data.cases import cases_of
from data.files import replacing
from data.images import picture_size
from data.landmarks import fractions_of, point_name, read_landmarks
from data.manifest import Record
from ldm.device import choose_device, choose_precision
from muti_control.case.calibration import CalibrationError, landmark_spread
from muti_control.conditions.case_landmarks import choose_landmarks
from muti_control.evaluation.results.statistics import bootstrap_interval
from muti_control.networks.pipnet.reader import LandmarkReader
from muti_control.sampling.config import FACE_LANDMARKS, SKULL_LANDMARKS
from muti_control.sampling.draw import draw_faces, read_skulls
from muti_control.sampling.prepare import recommended_sampling
from muti_control.sampling.request import shipped

HELD = 0.9
AGE_GROUPS = ("under 14", "14 to 29", "30 to 49", "50 to 64", "65 and over")
Points = NDArray[np.float32]


def drawn_landmarks(
    weights: Path, sha256: str, records: Sequence[Record], cache: Path, num_samples: int, device: str
) -> list[Points]:
    """Return landmarks of faces drawn for each record, (num_samples, N, 2) fractions.

    Those in the folder ``cache`` are not drawn again. Faces are drawn by the default settings, seeds 0, 1, ...

    Raises:
        CalibrationError: the folder holds another run.
    """
    chosen = choose_device(device)
    model, metadata = load_model(weights, None, chosen, choose_precision("auto", chosen))
    sampling = SamplingConfig.of(**recommended_sampling(metadata, model.cfg.unet.num_control_outputs))
    run = {"weights_sha256": sha256, "num_samples": num_samples, "sampling": sampling.model_dump()}
    cache.mkdir(parents=True, exist_ok=True)
    settings = cache / "run.json"
    if settings.is_file() and json.loads(settings.read_text(encoding="utf-8")) != run:
        raise CalibrationError(
            f"cache: {cache} holds faces of other weights or settings; give another folder"
        )
    settings.write_text(json.dumps(run), encoding="utf-8")
    cases = cases_of(records)
    source, _ = choose_landmarks("auto", shipped(SKULL_LANDMARKS), cases, model)
    reader = LandmarkReader.load(shipped(FACE_LANDMARKS), chosen)
    for case in tqdm(cases, unit="skull", desc="drawing", disable=None):
        file = cache / f"{case.name}.npy"
        if file.is_file():
            continue
        draws = [(case, k, k) for k in range(num_samples)]
        faces = draw_faces(
            model, draws, read_skulls(draws, model.cfg.image_size), sampling, landmarks=source
        ).wait()
        pictures = torch.from_numpy(faces).permute(0, 3, 1, 2).float().to(chosen) / 255
        with torch.no_grad():
            points = reader(pictures)[0].cpu().numpy()
        with replacing(file) as temporary, temporary.open("wb") as stream:
            np.save(stream, points)
    return [np.load(cache / f"{case.name}.npy", allow_pickle=False) for case in cases]


def true_points(records: Sequence[Record]) -> Points:
    """Return the true landmarks, (P, N, 2) fractions. Raises: CalibrationError: a record without."""
    points = [
        fractions_of(read_landmarks(record.landmarks_path)[0], picture_size(record.face_path))
        for record in records
        if record.landmarks_path is not None and record.face_path is not None
    ]
    if len(points) < len(records):
        raise CalibrationError(
            f"{len(records) - len(points)} of {len(records)} people have no true landmarks"
        )
    return np.stack(points)


def spread_reference(drawn: Sequence[Points], true: Points) -> tuple[dict[str, Points], float]:
    """Return the arrays and the factor that make ellipses hold the true landmark in 90 %, from validation people.

    Returns:
        ``spread``: (N, 3) mean variances xx, xy, yy over people, towards which a person's are drawn. ``spread_scale``:
        (N,) how much wider than the others a point's ellipse must be. And the factor.

    Source: split conformal prediction (Lei et al. 2018), the score being the Mahalanobis distance.
    """
    variances = np.mean([landmark_spread(points)[1] for points in drawn], 0)  # (N, 2, 2)
    usual = 256**2 * variances.reshape(-1, 4)[:, [0, 1, 3]]
    arrays = {"spread": usual.astype(np.float16).astype(np.float32)}  # as the file keeps it
    scores = distances(drawn, true, arrays)
    arrays["spread_scale"] = (_quantile(scores, 0) / _quantile(scores.ravel(), 0)).astype(np.float32)
    return arrays, float(_quantile(distances(drawn, true, arrays).ravel(), 0))


def distances(drawn: Sequence[Points], true: Points, arrays: Mapping[str, Points]) -> NDArray[np.float64]:
    """Return how far true landmarks lie from the mean of the drawn ones, (P, N), in standard deviations."""
    result = []
    for points, goal in zip(drawn, true, strict=True):
        mean, covariance = landmark_spread(points, arrays)
        away = (goal - mean)[..., None]
        result.append(np.sqrt((away.transpose(0, 2, 1) @ np.linalg.solve(covariance, away))[:, 0, 0]))
    return np.array(result)


def coverage(
    drawn: Sequence[Points],
    true: Points,
    records: Sequence[Record],
    arrays: Mapping[str, Points],
    factor: float,
    mm_per_px: float | None,
    size: int = 256,
) -> dict[str, Any]:
    """Return the share of true landmarks within the ellipses and the landmark error: in all, by points and people."""
    inside = distances(drawn, true, arrays) <= factor  # (P, N)
    errors = size * np.linalg.norm(np.stack([points.mean(0) for points in drawn]) - true, axis=-1)
    of_points: dict[str, list[int]] = defaultdict(list)
    for number in range(true.shape[1]):
        of_points[point_name(number, true.shape[1])[1] or "all points"].append(number)
    people: dict[str, list[int]] = defaultdict(list)
    for row, record in enumerate(records):
        people[record.biometrics.sex].append(row)
        people[AGE_GROUPS[age_level(record.biometrics.age) - 1]].append(row)
    everyone = {"all": list(range(len(records))), **dict(sorted(people.items()))}
    return {
        "people": len(records),
        "faces_each": len(drawn[0]),
        "wanted": HELD,
        "held": {name: figure(inside[rows].mean(1)) for name, rows in everyone.items()},
        "held_by_points": {name: figure(inside[:, columns].mean(1)) for name, columns in of_points.items()},
        "landmark_error_px": {name: figure(errors[rows].mean(1)) for name, rows in everyone.items()},
        "mm_per_px": mm_per_px,
    }


def figure(values: NDArray[np.floating]) -> dict[str, float | int]:
    """Return mean and interval (95 %, bootstrap over people) of values (P,)."""
    low, high = bootstrap_interval(values, np.random.default_rng(0))
    return {"value": float(values.mean()), "low": low, "high": high, "n": len(values)}


def _quantile(scores: NDArray[np.floating], axis: int) -> NDArray[np.floating]:
    """Return the conformal quantile: the ceil((n + 1) * 90 %)-th of n scores."""
    num = scores.shape[axis]
    return np.sort(scores, axis)[min(int(np.ceil((num + 1) * HELD)), num) - 1]
