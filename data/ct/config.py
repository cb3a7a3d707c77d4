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
    """How a scan becomes a pair."""

    often = (
        "biometrics",
        "series",
        "pose",
        "bone_hu",
        "offset",
        "rescale",
        "size",
        "meshes",
        "private",
        "num_workers",
    )

    biometrics: str = ""
    """CSV of the patients. IN is then a folder with one folder or file for each. Empty: IN is one scan."""
    series: str = ""
    """SeriesNumber or SeriesInstanceUID to take; empty takes the best."""
    pose: str = "auto"
    """auto, "yaw,pitch,roll" in degrees, or a JSON file with landmarks in the scan's LPS mm."""
    step: Annotated[float, Field(ge=0.5, le=2.5)] = 1.0
    """Grid that the scan is resampled to, mm."""
    bone_hu: Annotated[float, Field(ge=100, le=800)] = 220.0
    """Density at which bone begins, HU."""
    offset: Annotated[float, Field(ge=-40000, le=40000)] = 0.0
    """Added to every value, for volumes stored without their rescaling (-1024 is usual), HU."""
    rescale: Literal["header", "auto"] = "header"
    """auto brings air to -1000 and soft tissue to 40 HU where the values are no HU."""
    max_gib: Annotated[float, Field(ge=0.01, le=64)] = 1.5
    """Largest volume that is read, GiB."""
    size: Annotated[int, Field(ge=64, le=1024)] = 256
    """Side of the pictures, px."""
    half_field: Annotated[float, Field(ge=135, le=400)] = 140.0
    """Half the side of the camera's field, mm."""
    center_y: Annotated[float, Field(ge=-60, le=60)] = -11.0
    """Height above the middle of the eyes that is seen in the middle of the picture, mm."""
    meshes: bool = True
    """Also write both surfaces as PLY."""
    private: str = ""
    """Folder of the salt and the list of codes; empty takes OUT with ".private" added."""
    num_workers: Annotated[int, Field(ge=1, le=256)] = 1
    """Processes, for a folder of patients."""

    def identity(self) -> dict[str, Any]:
        """Return the settings that the pictures depend on; runs with the same identity may share a folder."""
        aside = {"num_workers", "private", "biometrics", "max_gib"}
        if self.rescale == "header":  # as in folders of before
            aside.add("rescale")
        return {"format": FORMAT_VERSION, **self.model_dump(exclude=aside)}
