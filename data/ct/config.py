"""Settings of ``python -m data.ct IN OUT [key=value ...]``."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

FORMAT_VERSION = 1  # raise when the same scan no longer gives the same pictures
PACKAGES = {  # module -> distribution: the extras `cohort` and `ct` of pyproject.toml
    "embreex": "embreex", "scipy": "scipy", "pydicom": "pydicom", "SimpleITK": "SimpleITK", "vtkmodules": "vtk",
}  # fmt: skip


@dataclass
class CtConfig:
    """How a scan becomes a pair.

    Attributes:
        biometrics: CSV of the patients (id, sex, age, ethnicity, body_mass or bmi or height and weight). Given, IN is a
            folder with one folder or file a patient, named by id; empty, IN is one scan.
        series: SeriesNumber or SeriesInstanceUID to take; "" takes the best.
        pose: "auto", "yaw,pitch,roll" in degrees, or a JSON file with landmarks in the scan's LPS mm.
        step: of the grid the scan is resampled to, in mm.
        bone_hu: density at which bone begins.
        offset: added to every value, for volumes stored without their rescaling (-1024 is usual).
        max_gib: largest volume that is read.
        size, half_field, center_y: of the pictures; the cohort's.
        meshes: also write both surfaces as PLY.
        private: folder for the salt and the list of codes; default: OUT with ".private" added.
        num_workers: processes, in a batch.
    """

    biometrics: str = ""
    series: str = ""
    pose: str = "auto"
    step: float = 1.0
    bone_hu: float = 220.0
    offset: float = 0.0
    max_gib: float = 1.5
    size: int = 256
    half_field: float = 140.0
    center_y: float = -11.0
    meshes: bool = True
    private: str = ""
    num_workers: int = 1

    def check(self) -> None:
        """Raises: ValueError naming the key, its value and what is allowed."""
        limits: dict[str, tuple[float, float]] = {
            "step": (0.5, 2.5),
            "bone_hu": (100, 800),
            "offset": (-40000, 40000),
            "max_gib": (0.01, 64),
            "size": (64, 1024),
            "half_field": (135, 400),
            "center_y": (-60, 60),
            "num_workers": (1, 256),
        }
        for key, (low, high) in limits.items():
            value = getattr(self, key)
            if not (math.isfinite(value) and low <= value <= high):
                raise ValueError(f"{key}={value}: expected {low} <= {key} <= {high}")

    def identity(self) -> dict[str, Any]:
        """Everything the pictures depend on beside the scans; runs with the same may share a folder."""
        settings = asdict(self)
        for key in ("num_workers", "private", "biometrics", "max_gib"):
            del settings[key]
        return {"format": FORMAT_VERSION, **settings}


def check_packages() -> None:
    """Raises: ValueError naming the packages that are not installed, and how to get them."""
    missing = [name for module, name in PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise ValueError(
            f"not installed: {' and '.join(missing)}; the extras 'cohort' and 'ct' name what is needed: "
            "python -m pip install -e .[cohort,ct]"
        )


def parse_config(overrides: list[str]) -> CtConfig:
    """``["step=0.8", ...]`` -> config. Raises: ValueError for an unknown key, a wrong type or value."""
    known = ", ".join(asdict(CtConfig()))
    base = OmegaConf.structured(CtConfig)
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals or key not in asdict(CtConfig()):
            raise ValueError(f"{item!r}: expected key=value; keys: {known}")
        if isinstance(getattr(CtConfig, key), str):
            OmegaConf.update(base, key, value)  # as it stands: a pose or a UID is no number or list
            continue
        try:
            base = OmegaConf.merge(base, OmegaConf.from_dotlist([item]))
        except OmegaConfBaseException as error:
            raise ValueError(f"{item}: {str(error).splitlines()[0]}; keys: {known}") from error
    config = OmegaConf.to_object(base)
    assert isinstance(config, CtConfig)
    config.check()
    return config
