"""The calibration of a weights file: one file beside it, made by ``python -m muti_control.case.calibrate``.

``models/demo/iccr_demo.safetensors`` has ``models/demo/iccr_demo.calibration.safetensors``. It holds the reference and
the limits of the input check, the people of the training list, the factor of the spread and the error rates. It carries
the SHA-256 of its weights: other weights refuse it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveFloat

from data.biometrics import Biometrics, age_level
from settings.base import Settings
from settings.reading import from_json

SUFFIX = ".calibration.safetensors"
FORMAT = 1
MAX_BYTES = 2 * 2**20
PRIOR = 8  # the mean covariance over people counts as so many faces
SEXES = ("female", "male")
AGE_LEVELS = BODY_MASSES = (1, 2, 3, 4, 5)
COMMAND = "python -m muti_control.case.calibrate weights={weights} data.root=FOLDER_OF_THE_TRAINING_DATA"

Counts = list[list[list[Annotated[list[NonNegativeInt], Field(min_length=5, max_length=5)]]]]


class CalibrationError(ValueError):
    """A calibration file cannot be used; the message says why and how to make another."""


class Population(Settings):
    """The people of the training list.

    ethnicities: as the prompts have them. ages: the youngest and the oldest, years.
    counts: people by sex (``SEXES``), ethnicity, age level 1 to 5 and body mass level 1 to 5.
    """

    ethnicities: list[str]
    ages: Annotated[list[float], Field(min_length=2, max_length=2)]
    counts: Counts

    @classmethod
    def of_people(cls, people: Sequence[Biometrics]) -> Self:
        """Count people; at least one."""
        ethnicities = sorted({person.ethnicity for person in people})
        table = np.zeros((len(SEXES), len(ethnicities), len(AGE_LEVELS), len(BODY_MASSES)), int)
        for person in people:
            place = SEXES.index(person.sex), ethnicities.index(person.ethnicity)
            table[(*place, age_level(person.age) - 1, person.body_mass - 1)] += 1
        ages = [float(person.age) for person in people]
        return cls(ethnicities=ethnicities, ages=[min(ages), max(ages)], counts=table.tolist())

    @property
    def table(self) -> NDArray[np.int64]:
        """The counts, (2 sexes, E ethnicities, 5 age levels, 5 body mass levels)."""
        return np.array(self.counts, np.int64).reshape(len(SEXES), len(self.ethnicities), 5, 5)


class Calibration(Settings):
    """What was measured for one weights file.

    Attributes:
        weights_sha256: of the weights.
        population: the people of the training list.
        limits: of the input check, by name; see ``muti_control.case.check``.
        spread_factor: an ellipse of this many standard deviations of a landmark over drawn faces holds the true
            landmark in 90 %. None: not measured.
        check: false alarms of the input check, and detections of planted alterations, on test skulls.
        coverage: share of true landmarks within these ellipses on the test list, in all and by group, with intervals.
        error_rates: rank-1, best of k and landmark error of an evaluation of these weights. None: none exists.
        made_with: settings and revision of the program that made the file.
        arrays: references of the input check and of the spread, float32 by name; in the file tensors beside the rest.
    """

    format: int = FORMAT
    weights_sha256: str
    population: Population
    limits: dict[str, float] = {}
    spread_factor: PositiveFloat | None = None
    check: dict[str, Any] | None = None
    coverage: dict[str, Any] | None = None
    error_rates: dict[str, Any] | None = None
    made_with: dict[str, Any] = {}
    arrays: dict[str, Any] = Field(default={}, exclude=True)

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all. Raises: CheckpointError, CalibrationError: above 2 MiB."""
        import torch  # here and below: the rest serves checks that must not wait for it

        from ldm.checkpoint import write_state_dict

        size = sum(array.size * 2 for array in self.arrays.values())
        if size > MAX_BYTES:
            raise CalibrationError(f"{path}: {size} bytes of arrays, expected at most {MAX_BYTES}")
        state = {name: torch.from_numpy(array).half() for name, array in self.arrays.items()}
        state = state or {"nothing": torch.zeros(1)}
        write_state_dict(path, state, {"calibration": self.model_dump_json()})


def calibration_path(weights: Path) -> Path:
    """Return the path of the calibration of a weights file: beside it."""
    return weights.with_name(weights.stem + SUFFIX)


def load_calibration(weights: Path, sha256: str) -> Calibration | None:
    """Return the calibration beside a weights file, or None where there is none.

    sha256: of the weights.

    Raises:
        CalibrationError: it belongs to other weights, or it cannot be read; the message says how to make another.
    """
    from ldm.checkpoint import read_state_dict

    path, remedy = calibration_path(weights), f"remove it, or make its own: {COMMAND.format(weights=weights)}"
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > 2 * MAX_BYTES:
            raise CalibrationError(f"{path.stat().st_size} bytes, expected at most {MAX_BYTES}")
        state, metadata = read_state_dict(path, mmap=False)
        calibration = from_json(Calibration, metadata.get("calibration", "null"))
    except (ValueError, OSError) as error:
        raise CalibrationError(f"{path}: is no calibration that can be read ({error}); {remedy}") from error
    if calibration.format != FORMAT or calibration.weights_sha256 != sha256:
        raise CalibrationError(
            f"{path}: belongs to weights {calibration.weights_sha256[:12]}..., not to {weights.name} "
            f"({sha256[:12]}...); {remedy}"
        )
    calibration.arrays = {name: value.float().numpy() for name, value in state.items()}
    return calibration


def landmark_spread(
    points: NDArray[np.floating], arrays: Mapping[str, NDArray[np.float32]] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean (N, 2) and covariance (N, 2, 2) of landmarks of K drawn faces, (K, N, 2).

    Points are fractions of the picture. arrays: of a calibration; with its ``spread`` (px of 256, squared) a point's
    covariance, which few faces leave uncertain, is drawn towards the mean over people, and scaled for that point.
    """
    mean = points.mean(0, dtype=np.float64)
    away = points - mean
    covariance = np.einsum("kni,knj->nij", away, away) / max(len(points) - 1, 1)
    if arrays is not None and "spread" in arrays:
        xx, xy, yy = arrays["spread"].astype(np.float64).T / 256**2
        usual = np.stack([np.stack([xx, xy], -1), np.stack([xy, yy], -1)], -1)
        num = len(points) - 1
        covariance = (num * covariance + PRIOR * usual) / (num + PRIOR)
        covariance = covariance * arrays.get("spread_scale", np.ones(len(usual)))[:, None, None] ** 2
    return mean, covariance
