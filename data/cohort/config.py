"""Settings of ``python -m data.cohort OUT [key=value ...]``."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from typing import Any, NoReturn

from data.settings import merged

FORMAT_VERSION = 8  # raise when the same seed no longer gives the same pictures or landmarks
SKULL_DIR, FACE_DIR, LANDMARK_DIR = "pairedCS/skull", "pairedCS/craniofacial", "pairedCS/landmarks"
SUBJECT_DIR, SPLIT_DIR = "subjects", "split_data"
NUM_PROTOCOLS = 16  # scanner protocols, and so surface styles, in a cohort
EXTRAS = (
    "views", "variants", "variant_ages", "variant_masses", "variant_styles", "ceiling", "shards", "num_workers",
)  # fmt: skip
PACKAGES = ("embreex", "scipy")  # the `cohort` extra of pyproject.toml: only the making of heads needs them


@dataclass
class CohortConfig:
    """Of the pairs of a cohort, ``EXTRAS`` change nothing: they say what is made beside them, now or by a later run.

    Attributes:
        num_subjects: how many people; one skull and face pair each.
        seed: of the whole cohort.
        size: side of the pictures in px.
        valid_subjects, test_subjects: held-out people; -1 takes 5 % and 10 % of all, and at least 2.
        half_field: half of the side of the camera's field in mm, at least 135.
        center_y: height (mm above the middle of the eyes) seen in the middle of the picture.
        yaw, pitch: pose in degrees, the same for everyone.
        views: further pairs of every subject, turned by up to 12 degrees sideways and 8 up or down.
        variants: how many subjects get faces at other ages, body masses and styles over their one skull picture; those
            of the test split first, then of valid, then of train.
        variant_ages, variant_masses: years and levels of these faces; a subject's own level is left out.
        variant_styles: how many other scanner protocols.
        ceiling: also draw, for the test subjects, the face to be expected from skull and prompt, in the true face's
            surface style and in a neutral one.
        shards: also pack everything into one zip file, in the folder ``packed``.
        num_workers: processes; the pictures do not depend on it.
    """

    num_subjects: int = 300
    seed: int = 0
    size: int = 256
    valid_subjects: int = -1
    test_subjects: int = -1
    half_field: float = 140.0
    center_y: float = -11.0
    yaw: float = 0.0
    pitch: float = 0.0
    views: int = 0
    variants: int = 0
    variant_ages: list[int] = field(default_factory=lambda: [22, 40, 57, 72])
    variant_masses: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 5])
    variant_styles: int = 2
    ceiling: bool = False
    shards: bool = False
    num_workers: int = 1

    def __post_init__(self) -> None:
        if self.valid_subjects < 0:
            self.valid_subjects = max(2, self.num_subjects // 20)
        if self.test_subjects < 0:
            self.test_subjects = max(2, self.num_subjects // 10)

    def check(self) -> None:
        """Raises: ValueError naming the key, its value and what is allowed."""
        limits: dict[str, tuple[float, float]] = {
            "num_subjects": (1, 99_999),
            "seed": (0, 2**31 - 1),
            "size": (64, 1024),
            "half_field": (135, 400),
            "center_y": (-60, 60),
            "yaw": (-14, 14),
            "pitch": (-12, 12),
            "views": (0, 20),
            "variants": (0, self.num_subjects),
            "variant_styles": (0, NUM_PROTOCOLS - 1),
            "num_workers": (1, 256),
        }
        for key, (low, high) in limits.items():
            value = getattr(self, key)
            if not low <= value <= high:
                raise ValueError(f"{key}={value}: expected {low} <= {key} <= {high}")
        for key, (low, high) in {"variant_ages": (14, 99), "variant_masses": (1, 5)}.items():
            values = getattr(self, key)
            if not all(low <= value <= high for value in values) or len(set(values)) < len(values):
                raise ValueError(f"{key}={values}: expected different numbers from {low} to {high}")
        held_out = self.valid_subjects + self.test_subjects
        if held_out >= self.num_subjects:
            raise ValueError(
                f"valid_subjects={self.valid_subjects} and test_subjects={self.test_subjects} hold out "
                f"{held_out} people, but num_subjects={self.num_subjects}, which leaves nobody to train on: lower "
                "them or raise num_subjects"
            )

    def identity(self) -> dict[str, Any]:
        """Everything the pairs and splits depend on; runs with the same identity may share a folder."""
        settings = {key: value for key, value in asdict(self).items() if key not in EXTRAS}
        return {"format": FORMAT_VERSION, **settings}


class ArgumentParser(argparse.ArgumentParser):
    """Answers a wrong command line in one line, as the other programs do."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; --help tells more")


def check_packages() -> None:
    """Raises: ValueError naming the packages that are not installed, and how to get them."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"not installed: {' and '.join(missing)}; run 'make cohort', which installs what is needed, or "
            f"python -m pip install {' '.join(PACKAGES)}"
        )


def parse_config(overrides: list[str]) -> CohortConfig:
    """``["num_subjects=50", ...]`` -> config. Raises: ValueError for an unknown key, a wrong type or value."""
    config = merged(CohortConfig, overrides)
    config.check()
    return config
