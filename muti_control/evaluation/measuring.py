"""From faces on disk to the figures of ``metrics.json``: one face in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.biometrics import describe
from data.images import write_png
from muti_control.evaluation.judges.dlib_recogniser import Pictures
from muti_control.evaluation.judges.edit_readers import EditReader
from muti_control.evaluation.judges.lpips import LPIPS, Lpips
from muti_control.evaluation.judges.picture_measures import KID, PSNR, SSIM, kid, psnr, ssim
from muti_control.evaluation.judges.recognisers import Eye, Vector, descriptors, points
from muti_control.evaluation.judging import Bench, Verdict
from muti_control.evaluation.methods.edits import EditPlan
from muti_control.evaluation.methods.faces import Faces, read_grey
from muti_control.evaluation.protocol.run_folder import CASES
from muti_control.evaluation.results.results import (
    Coverage,
    Diversity,
    Edit,
    EditPicture,
    Figure,
    Measure,
    Measured,
    Method,
    NotRun,
    Sensitivity,
)
from muti_control.evaluation.results.statistics import mean_pairwise_distance
from muti_control.evaluation.results.summary import NoChangeError, Resampling, coverage, edit, measured

Floats = NDArray[np.floating]
SHOWN_EDITS = 3  # probes of each edit that the report shows
WITHIN = (1, 10)  # ranks that count as a hit in coverage
CHANGE = Measure(
    "change", "change of the picture", "grey levels of 255", "", 2, "Mean absolute difference of pixels."
)
CHANGE_DLIB = Measure("change_dlib", "change for dlib", "", "", 3, "Distance of the two descriptors.")
CHANGE_POINTS = Measure(
    "change_points", "change of dlib's 68 points", "px", "", 2, "Root mean square over points, not aligned."
)
CHANGES = (CHANGE, CHANGE_DLIB, CHANGE_POINTS)
NME = Measure(
    "nme", "NME by dlib", "% of the eyes' distance", "lower", 2,
    "Mean distance of dlib's 68 points from those of the true face, as they lie in the picture, over the distance of "
    "the outer corners of its eyes.",
)  # fmt: skip
KID_DLIB = Measure(
    "kid_dlib", "KID of dlib descriptors", "x 1000", "lower", 2,
    "KID between the set of faces and the set of true faces, of dlib's descriptors: blind to what dlib is blind to.",
)  # fmt: skip
MEASURES = (PSNR, SSIM, LPIPS, NME, KID, KID_DLIB, *CHANGES)
EYE_CORNERS = (36, 45)  # of dlib's points


@dataclass
class Judged:
    """Everything said of one method's faces.

    seen: probe -> what dlib saw in each face drawn of it. likeness: measure -> its value for each probe's first face.
    """

    faces: Faces
    verdicts: Mapping[str, Verdict]
    seen: dict[int, list[Vector | None]] = field(default_factory=dict)
    likeness: dict[str, Floats] = field(default_factory=dict)


@dataclass(frozen=True)
class Measuring:
    """Measures one run.

    groups: of each probe, for the breakdown; truths: their true faces. folder: of the run, for pictures.
    backbone, lpips: of KID and LPIPS, where weights are given. readers: of edits, the best first.
    """

    bench: Bench
    groups: Sequence[Mapping[str, str]]
    truths: Sequence[Path]
    how: Resampling
    folder: Path
    backbone: Eye | None = None
    lpips: Lpips | None = None
    readers: Sequence[EditReader] = ()

    def judge(self, faces: Faces, advance: Callable[[int], None]) -> Judged:
        """Hold every face of a method against the gallery."""
        seen: dict[int, list[Vector | None]] = {}
        likeness = {m.name: np.full(len(self.groups), np.nan) for m in (PSNR, SSIM, LPIPS, NME)}

        def look_on(probe: int, draw: int, picture: Pictures, vectors: Mapping[str, Vector | None]) -> None:
            seen.setdefault(probe, []).append(vectors.get("dlib"))
            if draw == 0:
                truth = read_grey(self.truths[probe], self.bench.size)
                likeness[PSNR.name][probe] = psnr(picture, truth)
                likeness[SSIM.name][probe] = ssim(picture, truth)
                likeness[NME.name][probe] = self._nme(vectors.get("dlib"), self.truths[probe])
                if self.lpips is not None:
                    likeness[LPIPS.name][probe] = self.lpips.distances(picture[None], truth[None])[0]
            advance(1)

        return Judged(faces, self.bench.judge(faces, look_on), seen, likeness)

    def method(self, judged: Judged) -> Method:
        """Its entry in the results."""
        info, size = judged.faces.info, self.bench.gallery.size
        likeness = {
            name: measured(values, self.how)
            for name, values in judged.likeness.items()
            if np.isfinite(values).any()
        }
        if self.backbone is not None and len(judged.faces.pictures) > 1:
            likeness[KID.name] = self._kid(self.backbone, judged.faces)
        if (found := self._kid_dlib(judged)) is not None:
            likeness[KID_DLIB.name] = found
        excluded = sum(column >= 0 for column in judged.faces.excluded.values())
        return Method(
            name=info.name,
            label=info.label,
            kind=info.kind,
            note=info.note,
            identification={
                name: verdict.summary(self.groups, size, excluded, self.how)
                for name, verdict in judged.verdicts.items()
            },
            pictures={} if info.name == "permuted" else likeness,
            seconds=judged.faces.seconds,
        )

    def _nme(self, seen: Vector | None, truth: Path) -> float:
        """In %; NaN where dlib found no face."""
        true = None if seen is None else self._look(truth)
        if seen is None or true is None:
            return float("nan")
        drawn, there = (points(vector[None])[0].astype(np.float64) for vector in (seen, true))
        eyes = np.linalg.norm(there[EYE_CORNERS[0]] - there[EYE_CORNERS[1]])
        return float(100 * np.linalg.norm(drawn - there, axis=1).mean() / eyes)

    def _kid_dlib(self, judged: Judged) -> Measured | None:
        """Of the first faces in which dlib found one; None where it did not look, or found fewer than two."""
        pairs = [(seen[0], self._look(self.truths[i])) for i, seen in judged.seen.items()]
        known = [(mine, true) for mine, true in pairs if mine is not None and true is not None]
        if len(known) < 2:
            return None
        drawn, there = (descriptors(np.stack(side)) for side in zip(*known, strict=True))
        return Measured(Figure(1000 * kid(drawn, there), None, None, len(known)))

    def _kid(self, eye: Eye, faces: Faces) -> Measured:
        """Of the set of first faces and the set of the same people's true faces, times 1000."""
        sets = (
            [paths[0] for paths in faces.pictures.values()],
            [self.truths[probe] for probe in faces.pictures],
        )
        features = [
            np.stack([self.bench.sightings.found(eye, read_grey(path, self.bench.size)) for path in paths])
            for paths in sets
        ]
        return Measured(Figure(1000 * kid(*features), None, None, len(faces.pictures)))

    # ------------------------------------------------------------ several faces of one skull
    def coverage(self, own: Judged, swapped: Judged | None) -> list[Coverage]:
        """Is the true face within the best of k, or found by k together, beside the same with another's skull?"""
        both = [own] if swapped is None else [own, swapped]
        draws = max(len(paths) for paths in own.faces.pictures.values())
        probes = [
            i
            for i in sorted(own.faces.pictures)
            if all(len(j.faces.pictures.get(i, ())) == draws for j in both)
        ]
        if draws < 2 or not probes:
            return []
        return [
            coverage(
                judge.name,
                {j.faces.info.name: [j.verdicts[judge.name].draws[i] for i in probes] for j in both},
                within,
                probes,
                self.how,
                {j.faces.info.name: [j.verdicts[judge.name].together[i] for i in probes] for j in both},
            )
            for judge in self.bench.judges
            for within in WITHIN
            if within < self.bench.gallery.size
        ]

    def diversity(self, judged: Judged) -> Diversity | None:
        """How far the faces drawn of one skull lie apart; None where there is one of each."""
        several = {i: paths for i, paths in judged.faces.pictures.items() if len(paths) > 1}
        if not several:
            return None
        values = self._nowhere()
        for i, paths in several.items():
            pictures = [read_grey(path, self.bench.size).astype(np.float32) for path in paths]
            pairs = [(a, b) for k, a in enumerate(pictures) for b in pictures[:k]]
            values["change"][i] = np.mean([np.abs(a - b).mean() for a, b in pairs])
            vectors = [vector for vector in judged.seen[i] if vector is not None]
            if len(vectors) == len(paths):
                stack = np.stack(vectors)
                values["change_dlib"][i] = mean_pairwise_distance(descriptors(stack)[None])[0]
                flat = points(stack).reshape(1, len(stack), -1)
                values["change_points"][i] = mean_pairwise_distance(flat)[0] / np.sqrt(flat.shape[2] / 2)
        num = max(len(paths) for paths in several.values())
        return Diversity(judged.faces.info.name, num, self._known(values))

    def sensitivity(self, own: Judged, other: Judged, condition: str, change: str) -> Sensitivity:
        """How much the first faces of two methods differ, probe by probe; they share their noise."""
        values = self._nowhere()
        for i, paths in other.faces.pictures.items():
            if i not in own.faces.pictures:
                continue
            a, b = (
                read_grey(path, self.bench.size).astype(np.float32)
                for path in (own.faces.pictures[i][0], paths[0])
            )
            values["change"][i] = np.abs(a - b).mean()
            x, y = own.seen[i][0], other.seen[i][0]
            if x is not None and y is not None:
                pair = np.stack([x, y])
                values["change_dlib"][i] = np.linalg.norm(np.diff(descriptors(pair), axis=0))
                values["change_points"][i] = np.sqrt((np.diff(points(pair), axis=0) ** 2).sum(axis=2).mean())
        return Sensitivity(own.faces.info.name, condition, change, self._known(values))

    def _nowhere(self) -> dict[str, Floats]:
        return {measure.name: np.full(len(self.groups), np.nan) for measure in CHANGES}

    def _known(self, values: Mapping[str, Floats]) -> dict[str, Measured]:
        return {name: measured(row, self.how) for name, row in values.items() if np.isfinite(row).any()}

    # ------------------------------------------------------------ edits
    def edits(self, plan: EditPlan, before: Judged, after: Judged) -> list[Edit | NotRun]:
        """The change of the reconstruction against the true change, by each reader."""
        if not self.readers:
            reason = "nothing reads the faces: give face_landmark_weights=FILE, or dlib among the recognisers"
            return [NotRun(f"edit {plan.name}", plan.label, reason)]
        found: list[Edit | NotRun] = []
        for reader in self.readers:
            drawn = before.faces.info.kind != "limit"
            shown = SHOWN_EDITS if drawn and reader is self.readers[0] else 0
            found.append(self._edit(plan, reader, before, after, shown))
        return found

    def _edit(
        self, plan: EditPlan, reader: EditReader, before: Judged, after: Judged, shown: int
    ) -> Edit | NotRun:
        rows: list[Floats] = []
        probes: list[int] = []
        for i, paths in pictures_of_edit(plan, before.faces, after.faces, self.truths).items():
            seen = [self._see(reader.eye, path) for path in paths]
            known = [vector for vector in seen if vector is not None]
            if len(known) == len(seen):
                rows.append(np.stack(known))
                probes.append(i)
        name, label = plan.name, plan.label
        if not rows:
            return NotRun(f"edit {name}", label, f"{reader.eye.name} found a face in too few of the pictures")
        old, new, true_old, true_new = (
            reader.points(column).astype(np.float64) for column in np.stack(rows, axis=1)
        )
        judge = "dlib" if "dlib" in after.verdicts else self.bench.judges[0].name
        try:
            return edit(
                before.faces.info.name,
                name,
                label,
                reader.space,
                (old, new),
                (true_old, true_new),
                probes,
                after.verdicts[judge].ranks[probes] == 1,
                before.verdicts[judge].ranks[probes] == 1,
                [self._edit_pictures(plan, i, before, after) for i in probes[:shown]],
                resampling=self.how,
            )
        except NoChangeError as error:
            return NotRun(f"edit {name}", label, str(error))

    def _edit_pictures(self, plan: EditPlan, probe: int, before: Judged, after: Judged) -> EditPicture:
        """One probe before and after the edit, and the same of the person, copied beside the results."""
        variant = plan.variants[probe]
        assert variant.face_path is not None
        sources = {
            "before": before.faces.pictures[probe][0],
            "after": after.faces.pictures[probe][0],
            "true_before": self.truths[probe],
            "true_after": variant.face_path,
        }
        names = {}
        (self.folder / CASES).mkdir(exist_ok=True)
        for role, path in sources.items():
            names[role] = f"{CASES}/{plan.name}_{before.faces.info.name}_{probe}_{role}.png"
            write_png(self.folder / names[role], read_grey(path, self.bench.size))
        return EditPicture(probe=probe, caption=f"told: {describe(variant.biometrics)}", **names)

    def _look(self, path: Path) -> Vector | None:
        eye = next((eye for eye in self.bench.eyes if eye.name == "dlib"), None)
        return None if eye is None else self._see(eye, path)

    def _see(self, eye: Eye, path: Path) -> Vector | None:
        return self.bench.sightings.look(eye, read_grey(path, self.bench.size))


def pictures_of_edit(
    plan: EditPlan, before: Faces, after: Faces, truths: Sequence[Path]
) -> dict[int, tuple[Path, Path, Path, Path]]:
    """Of each probe: drawn before and after the edit, and the person's true faces before and after it."""
    found = {}
    for i, variant in plan.variants.items():
        assert variant.face_path is not None
        found[i] = before.pictures[i][0], after.pictures[i][0], truths[i], variant.face_path
    return found
