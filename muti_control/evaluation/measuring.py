"""From faces on disk to the figures of ``metrics.json``: one face in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.biometrics import describe
from data.images import write_png
from muti_control.evaluation.judges.edit_readers import EditReader
from muti_control.evaluation.judges.lpips import LPIPS
from muti_control.evaluation.judges.picture_measures import KID, PSNR, SSIM, Pictures, kid, psnr, ssim
from muti_control.evaluation.judges.recognisers import Eye, Vector, descriptors, points
from muti_control.evaluation.judges.sightings import Sightings
from muti_control.evaluation.judging import Gallery, Verdict
from muti_control.evaluation.methods.edits import EditPlan
from muti_control.evaluation.methods.faces import Faces, read_grey
from muti_control.evaluation.plan import Plan
from muti_control.evaluation.protocol.inputs import face_of
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
from muti_control.evaluation.results.summary import (
    NoChangeError,
    coverage,
    edit,
    groups_of,
    identification,
    measured,
)

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
class Judgement:
    """The judgement of one method's faces.

    vectors: probe -> dlib's vector of each of its faces. likeness: measure -> its value for each probe's first face.
    """

    faces: Faces
    verdicts: Mapping[str, Verdict]
    vectors: dict[int, list[Vector | None]] = field(default_factory=dict)
    likeness: dict[str, Floats] = field(default_factory=dict)


class Measuring:
    """The measures of one run. folder: of the run, for pictures."""

    def __init__(self, plan: Plan, folder: Path, gallery: Gallery, sightings: Sightings) -> None:
        self._plan, self._folder, self._gallery, self._sightings = plan, folder, gallery, sightings
        self._how, self._size, self._columns = plan.resampling, plan.inputs.size, plan.inputs.rows
        self._groups = [groups_of(record.biometrics) for record in plan.inputs.probes]
        self._truths = [face_of(record) for record in plan.inputs.probes]
        self._dlib = next((eye for eye in plan.eyes if eye.name == "dlib"), None)

    def judge(self, faces: Faces, advance: Callable[[int], None]) -> Judgement:
        """Return the ranks and the likeness of a method's faces. advance: called for every probe."""
        names = (PSNR.name, SSIM.name, LPIPS.name, NME.name)
        result = Judgement(
            faces,
            {judge.name: Verdict.empty(len(self._truths)) for judge in self._plan.judges},
            likeness={name: self._nowhere() for name in names},
        )
        for probe, paths in faces.pictures.items():
            result.vectors[probe] = []
            for path in paths:
                picture = read_grey(path, self._size)
                views = self._sightings.look_at_all(self._plan.eyes, picture)
                result.vectors[probe].append(views.get("dlib"))
                for judge in self._plan.judges:
                    vector = views[judge.eye.name]
                    row = None if vector is None else self._gallery.distances(judge, vector)
                    truth, excluded = int(self._columns[probe]), faces.excluded.get(probe, -1)
                    result.verdicts[judge.name].enter(probe, row, truth, excluded, self._gallery.size)
                if path == paths[0]:
                    self._compare(result, probe, picture)
            advance(1)
        return result

    def _compare(self, result: Judgement, probe: int, picture: Pictures) -> None:
        """Enter the likeness of a probe's first face to the true face."""
        truth = read_grey(self._truths[probe], self._size)
        result.likeness[PSNR.name][probe] = psnr(picture, truth)
        result.likeness[SSIM.name][probe] = ssim(picture, truth)
        if self._plan.lpips is not None:
            result.likeness[LPIPS.name][probe] = self._plan.lpips.distances(picture[None], truth[None])[0]
        vector, true = result.vectors[probe][0], self._look(self._truths[probe])
        if vector is not None and true is not None:
            own, target = (points(v[None])[0].astype(np.float64) for v in (vector, true))
            eyes = np.linalg.norm(target[EYE_CORNERS[0]] - target[EYE_CORNERS[1]])
            result.likeness[NME.name][probe] = 100 * np.linalg.norm(own - target, axis=1).mean() / eyes

    def method(self, judgement: Judgement) -> Method:
        """Return the entry of a method in the results."""
        info, pictures = judgement.faces.info, {}
        if info.name != "permuted":
            pictures = self._known(judgement.likeness) | self._kid(judgement)
        excluded = sum(column >= 0 for column in judgement.faces.excluded.values())
        return Method(
            name=info.name,
            label=info.label,
            kind=info.kind,
            note=info.note,
            identification={
                name: identification(
                    verdict.ranks,
                    self._gallery.size,
                    self._groups,
                    verdict.own,
                    verdict.others,
                    missed=len(verdict.missed),
                    excluded=excluded,
                    how=self._how,
                )
                for name, verdict in judgement.verdicts.items()
            },
            pictures=pictures,
            seconds=judgement.faces.seconds,
        )

    def _kid(self, judgement: Judgement) -> dict[str, Measured]:
        """Return the KID (times 1000) of the first faces and the same people's true faces, by each network there is."""
        probes = list(judgement.faces.pictures)
        sets: dict[str, list[tuple[Vector, Vector]]] = {}
        if (eye := self._plan.backbone) is not None:
            files = [(judgement.faces.pictures[probe][0], self._truths[probe]) for probe in probes]
            features = [tuple(self._see(eye, path) for path in pair) for pair in files]
            sets[KID.name] = [(own, true) for own, true in features if own is not None and true is not None]
        pairs = [(judgement.vectors[probe][0], self._look(self._truths[probe])) for probe in probes]
        both = [(own, true) for own, true in pairs if own is not None and true is not None]
        sets[KID_DLIB.name] = [(descriptors(own[None])[0], descriptors(true[None])[0]) for own, true in both]
        return {
            name: Measured(Figure(1000 * kid(*map(np.stack, zip(*rows, strict=True))), None, None, len(rows)))
            for name, rows in sets.items()
            if len(rows) > 1
        }

    # ------------------------------------------------------------ several faces of one skull
    def coverage(self, own: Judgement, swapped: Judgement | None) -> list[Coverage]:
        """Return whether the best of k faces, or k together, find the true face; beside it another's skull."""
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
                self._how,
                {j.faces.info.name: [j.verdicts[judge.name].together[i] for i in probes] for j in both},
            )
            for judge in self._plan.judges
            for within in WITHIN
            if within < self._gallery.size
        ]

    def diversity(self, judgement: Judgement) -> Diversity | None:
        """Return how far the faces of one skull lie apart; None where each skull has one face."""
        several = {i: paths for i, paths in judgement.faces.pictures.items() if len(paths) > 1}
        if not several:
            return None
        values = {i: self._spread(paths, judgement.vectors[i]) for i, paths in several.items()}
        num = max(len(paths) for paths in several.values())
        return Diversity(judgement.faces.info.name, num, self._measured(values))

    def sensitivity(self, own: Judgement, other: Judgement, condition: str, change: str) -> Sensitivity:
        """Return how much the first faces of two methods differ, probe by probe; they share their noise."""
        values = {
            i: self._spread((own.faces.pictures[i][0], paths[0]), (own.vectors[i][0], other.vectors[i][0]))
            for i, paths in other.faces.pictures.items()
            if i in own.faces.pictures
        }
        return Sensitivity(own.faces.info.name, condition, change, self._measured(values))

    def _spread(self, paths: Sequence[Path], vectors: Sequence[Vector | None]) -> dict[str, float]:
        """Return the mean difference of every two pictures, by each measure of change. vectors: dlib's of them."""
        pictures = [read_grey(path, self._size).astype(np.float32) for path in paths]
        pairs = [(a, b) for k, a in enumerate(pictures) for b in pictures[:k]]
        values = {CHANGE.name: float(np.mean([np.abs(a - b).mean() for a, b in pairs]))}
        rows = [vector for vector in vectors if vector is not None]
        if len(rows) == len(paths):
            stack = np.stack(rows)
            flat = points(stack).reshape(1, len(stack), -1)
            values[CHANGE_DLIB.name] = mean_pairwise_distance(descriptors(stack)[None])[0]
            values[CHANGE_POINTS.name] = mean_pairwise_distance(flat)[0] / np.sqrt(flat.shape[2] / 2)
        return values

    def _measured(self, values: Mapping[int, Mapping[str, float]]) -> dict[str, Measured]:
        rows = {measure.name: self._nowhere() for measure in CHANGES}
        for probe, of_probe in values.items():
            for name, value in of_probe.items():
                rows[name][probe] = value
        return self._known(rows)

    def _nowhere(self) -> Floats:
        return np.full(len(self._truths), np.nan)

    def _known(self, values: Mapping[str, Floats]) -> dict[str, Measured]:
        return {name: measured(row, self._how) for name, row in values.items() if np.isfinite(row).any()}

    # ------------------------------------------------------------ edits
    def edits(self, plan: EditPlan, before: Judgement, after: Judgement) -> list[Edit | NotRun]:
        """Return the change of the reconstruction against the true change, by each reader."""
        readers = self._plan.readers
        if not readers:
            reason = "nothing reads the faces: give face_landmark_weights=FILE, or dlib among the recognisers"
            return [NotRun(f"edit {plan.name}", plan.label, reason)]
        num_shown = SHOWN_EDITS if before.faces.info.kind != "limit" else 0
        return [
            self._edit(plan, reader, before, after, num_shown if reader is readers[0] else 0)
            for reader in readers
        ]

    def _edit(
        self, plan: EditPlan, reader: EditReader, before: Judgement, after: Judgement, num_shown: int
    ) -> Edit | NotRun:
        rows: dict[int, Floats] = {}
        for i, paths in pictures_of_edit(plan, before.faces, after.faces, self._truths).items():
            vectors = [vector for path in paths if (vector := self._see(reader.eye, path)) is not None]
            if len(vectors) == len(paths):
                rows[i] = np.stack(vectors)
        name, probes = f"edit {plan.name}", list(rows)
        if not rows:
            return NotRun(name, plan.label, f"{reader.eye.name} finds a face in too few of the pictures")
        columns = np.stack(list(rows.values()), axis=1)
        old, new, true_old, true_new = (reader.points(column).astype(np.float64) for column in columns)
        judge = "dlib" if "dlib" in after.verdicts else self._plan.judges[0].name
        try:
            return edit(
                before.faces.info.name,
                plan.name,
                plan.label,
                reader.space,
                (old, new),
                (true_old, true_new),
                probes,
                after.verdicts[judge].ranks[probes] == 1,
                before.verdicts[judge].ranks[probes] == 1,
                [self._edit_pictures(plan, i, before, after) for i in probes[:num_shown]],
                how=self._how,
            )
        except NoChangeError as error:
            return NotRun(name, plan.label, str(error))

    def _edit_pictures(self, plan: EditPlan, probe: int, before: Judgement, after: Judgement) -> EditPicture:
        """Return one probe before and after the edit, and the same of the person, copied beside the results."""
        paths = pictures_of_edit(plan, before.faces, after.faces, self._truths)[probe]
        names = {}
        (self._folder / CASES).mkdir(exist_ok=True)
        for role, path in zip(("before", "after", "true_before", "true_after"), paths, strict=True):
            names[role] = f"{CASES}/{plan.name}_{before.faces.info.name}_{probe}_{role}.png"
            write_png(self._folder / names[role], read_grey(path, self._size))
        return EditPicture(probe=probe, caption=f"told: {describe(plan.variants[probe].biometrics)}", **names)

    def _look(self, path: Path) -> Vector | None:
        return None if self._dlib is None else self._see(self._dlib, path)

    def _see(self, eye: Eye, path: Path) -> Vector | None:
        return self._sightings.look(eye, read_grey(path, self._size))


def pictures_of_edit(
    plan: EditPlan, before: Faces, after: Faces, truths: Sequence[Path]
) -> dict[int, tuple[Path, Path, Path, Path]]:
    """Return, of each probe, the faces drawn before and after the edit, and the person's two true faces."""
    return {
        i: (before.pictures[i][0], after.pictures[i][0], truths[i], face_of(variant))
        for i, variant in plan.variants.items()
    }
