"""Settings of ``python -m data.cohort OUT [key=value ...]``."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, model_validator

from settings.base import Settings, expect

FORMAT_VERSION: Literal[8] = 8  # raise when the same seed no longer gives the same pictures or landmarks
WIDE_FORMAT = 9  # the recipe of data.cohort.wide
SKULL_DIR, FACE_DIR, LANDMARK_DIR = "pairedCS/skull", "pairedCS/craniofacial", "pairedCS/landmarks"
SUBJECT_DIR, SPLIT_DIR = "subjects", "split_data"
NUM_PROTOCOLS = 16  # scanner protocols, and so surface styles, in a cohort
EXTRAS = (
    "views", "variants", "variant_ages", "variant_masses", "variant_styles", "ceiling", "shards", "num_workers",
)  # fmt: skip
# Module -> distribution: the extra `cohort` of pyproject.toml.
PACKAGES = {"embreex": "embreex", "scipy": "scipy"}


class CohortConfig(Settings):
    """A cohort. The settings in ``EXTRAS`` do not change its pairs: they add pictures, now or in a later run."""

    often = (
        "num_subjects",
        "seed",
        "size",
        "valid_subjects",
        "test_subjects",
        "format",
        "views",
        "variants",
        "ceiling",
        "num_workers",
    )

    format: Literal[8, 9] = FORMAT_VERSION
    """Recipe 8, or 9, which varies pose, lamp, surface, teeth, jaw, neck and body mass as in CTs."""
    num_subjects: Annotated[int, Field(ge=1, le=99_999)] = 300
    """People, with one pair of skull and face each."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the whole cohort."""
    size: Annotated[int, Field(ge=64, le=1024)] = 256
    """Side of the pictures, px."""
    valid_subjects: int = -1
    """People of the validation list; -1 takes 5 % of all, at least 2."""
    test_subjects: int = -1
    """People of the test list; -1 takes 10 % of all, at least 2."""
    half_field: Annotated[float, Field(ge=135, le=400)] = 140.0
    """Half the side of the camera's field, mm."""
    center_y: Annotated[float, Field(ge=-60, le=60)] = -11.0
    """Height above the middle of the eyes that is seen in the middle of the picture, mm."""
    yaw: Annotated[float, Field(ge=-14, le=14)] = 0.0
    """Turn of every head to the side, degrees."""
    pitch: Annotated[float, Field(ge=-12, le=12)] = 0.0
    """Turn of every head up or down, degrees."""
    views: Annotated[int, Field(ge=0, le=20)] = 0
    """Further pairs of every person. Format 8 turns them by up to 12 degrees. Format 9 turns them by up to 6,
    and gives them another light and surface."""
    variants: NonNegativeInt = 0
    """People with faces at other ages, body masses and styles; those of the test list first."""
    variant_ages: list[Annotated[int, Field(ge=14, le=99)]] = [22, 40, 57, 72]
    """Ages of these faces, years."""
    variant_masses: list[Annotated[int, Field(ge=1, le=5)]] = [1, 2, 3, 4, 5]
    """Body mass levels of these faces."""
    variant_styles: Annotated[int, Field(ge=0, lt=NUM_PROTOCOLS)] = 2
    """Other scanner protocols of these faces."""
    ceiling: bool = False
    """Also draw the expected faces of the test people, in the true surface style and in a neutral one."""
    shards: bool = False
    """Also pack everything into one zip file, in the folder packed."""
    num_workers: Annotated[int, Field(ge=1, le=256)] = 1
    """Processes. The pictures do not depend on it."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.valid_subjects < 0:
            self.valid_subjects = max(2, self.num_subjects // 20)
        if self.test_subjects < 0:
            self.test_subjects = max(2, self.num_subjects // 10)
        held_out = self.valid_subjects + self.test_subjects
        more = f"more than the {held_out} held out by valid_subjects and test_subjects"
        expect(held_out < self.num_subjects, "num_subjects", self.num_subjects, more)
        expect(self.variants <= self.num_subjects, "variants", self.variants, f"at most {self.num_subjects}")
        for key, values in (("variant_ages", self.variant_ages), ("variant_masses", self.variant_masses)):
            expect(len(set(values)) == len(values), key, values, "different numbers")
        return self

    def identity(self) -> dict[str, Any]:
        """Return the settings that pairs and splits depend on; runs with the same identity may share a folder."""
        return {key: value for key, value in self.model_dump().items() if key not in EXTRAS}

    @property
    def wide(self) -> bool:
        """Whether the recipe is that of data.cohort.wide."""
        return self.format == WIDE_FORMAT


def check_packages(packages: Mapping[str, str] = PACKAGES, extras: str = "cohort") -> None:
    """Raises: ValueError naming the packages (module -> distribution) that are not installed, and how to get them."""
    missing = [name for module, name in packages.items() if find_spec(module) is None]
    if missing:
        raise ValueError(
            f"not installed: {' and '.join(missing)}; install what is needed: python -m pip install -e '.[{extras}]'"
        )
