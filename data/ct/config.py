"""Settings of ``python -m data.ct IN OUT [key=value ...]``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from data.cohort import config as cohort
from settings.base import Settings

FORMAT_VERSION = 1  # raise when the same scan no longer gives the same pictures
# Module -> distribution: the extras `cohort` and `ct` of pyproject.toml.
PACKAGES = {**cohort.PACKAGES, "pydicom": "pydicom", "vtkmodules": "vtk"}


class CtConfig(Settings):
    """How a scan becomes a pair.

    Attributes:
        biometrics: CSV of the patients (id, sex, age, ethnicity, body_mass or bmi or height and weight). Given, IN is a
            folder with one folder or file a patient, named by id; empty, IN is one scan.
        series: SeriesNumber or SeriesInstanceUID to take; "" takes the best.
        pose: "auto", "yaw,pitch,roll" in degrees, or a JSON file with landmarks in the scan's LPS mm.
        step: of the grid the scan is resampled to, in mm.
        bone_hu: density at which bone begins.
        offset: added to every value, for volumes stored without their rescaling (-1024 is usual).
        rescale: "header", or "auto": where the values are no Hounsfield units, the linear map that brings air to -1000
            and soft tissue to 40 is applied.
        max_gib: largest volume that is read.
        size, half_field, center_y: of the pictures; the cohort's.
        meshes: also write both surfaces as PLY.
        private: folder for the salt and the list of codes; default: OUT with ".private" added.
        num_workers: processes, in a batch.
    """

    biometrics: str = ""
    series: str = ""
    pose: str = "auto"
    step: Annotated[float, Field(ge=0.5, le=2.5)] = 1.0
    bone_hu: Annotated[float, Field(ge=100, le=800)] = 220.0
    offset: Annotated[float, Field(ge=-40000, le=40000)] = 0.0
    rescale: Literal["header", "auto"] = "header"
    max_gib: Annotated[float, Field(ge=0.01, le=64)] = 1.5
    size: Annotated[int, Field(ge=64, le=1024)] = 256
    half_field: Annotated[float, Field(ge=135, le=400)] = 140.0
    center_y: Annotated[float, Field(ge=-60, le=60)] = -11.0
    meshes: bool = True
    private: str = ""
    num_workers: Annotated[int, Field(ge=1, le=256)] = 1

    def identity(self) -> dict[str, Any]:
        """Return the settings that the pictures depend on; runs with the same identity may share a folder."""
        aside = {"num_workers", "private", "biometrics", "max_gib"}
        if self.rescale == "header":  # as in folders of before
            aside.add("rescale")
        return {"format": FORMAT_VERSION, **self.model_dump(exclude=aside)}
