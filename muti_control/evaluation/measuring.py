"""From faces on disk to ranks and the figures of ``metrics.json``: one face in memory at a time.

Of a face only its vectors and ranks are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.biometrics import describe
from data.images import write_png
from muti_control.evaluation.judges.photo_networks import LPIPS
from muti_control.evaluation.judges.picture_measures import KID, PSNR, SSIM, Pictures, kid, psnr, ssim
from muti_control.evaluation.judges.recognisers import EditReader, Eye, Judge, Vector, descriptors, points
from muti_control.evaluation.judges.sightings import Sightings
from muti_control.evaluation.methods.controls import EditPlan
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
from muti_control.evaluation.results.statistics import mean_pairwise_distance, ranks_of_truth
from muti_control.evaluation.results.summary import (
    NoChangeError,
    coverage,
    edit,
    groups_of,
    identification,
    measured,
)

Floats = NDArray[np.floating]
_NOWHERE = 1e9  # distance to a gallery face in which the recogniser finds no face
SHOWN_EDITS = 3  # probes of each edit that the report shows
WITHIN = (1, 10)  # ranks that count as a hit in coverage
CHANGE = Measure(
    "change", "change of the picture", "grey levels of 255", "", 2, "Mean absolute difference of pixels."
)
CHANGE_DLIB = Measure("change_dlib", "change for dlib", "", "", 3, "Distance of the two descriptors.")
CHANGE_POINTS = Measure(
    "change_points", "change of dlib's 68 points", "px", "", 2, "Root mean square over points, not aligned."
)
NME = Measure(
    "nme", "NME by dlib", "% of the eyes' distance", "lower", 2,
    "Mean distance of dlib's 68 points from those of the true face, as they lie in the picture, over the distance of "
    "the outer corners of its eyes.",
)  # fmt: skip
KID_DLIB = Measure(
    "kid_dlib", "KID of dlib descriptors", "x 1000", "lower", 2,
    "KID between the set of faces and the set of true faces, of dlib's descriptors: blind to what dlib is blind to.",
)  # fmt: skip
MEASURES = (PSNR, SSIM, LPIPS, NME, KID, KID_DLIB, CHANGE, CHANGE_DLIB, CHANGE_POINTS)
EYE_CORNERS = (36, 45)  # of dlib's points


@dataclass(frozen=True)
class Gallery:
    """What each eye sees in the gallery's faces: its name -> vectors (G, D), and whether it finds a face (G,)."""

    vectors: Mapping[str, Floats]
    has_face: Mapping[str, NDArray[np.bool_]]

    @classmethod
    def of(cls, paths: Sequence[Path], size: int, eyes: Sequence[Eye], sightings: Sightings) -> Gallery:
        """Look at every gallery face. Raises: ImageError, CacheError; ValueError: an eye finds no face in any."""
        rows: dict[str, list[Vector | None]] = {eye.name: [] for eye in eyes}
        for path in paths:
            for name, vector in sightings.look_at_all(eyes, read_grey(path, size)).items():
                rows[name].append(vector)
        vectors, has_face = {}, {}
        for name, every in rows.items():
            usable = [vector for vector in every if vector is not None]
            if not usable:
                raise ValueError(
                    f"{name} finds no face in any of the {len(paths)} true faces: are these frontal faces, upright?"
                )
            has_face[name] = np.array([vector is not None for vector in every])
            vectors[name] = np.stack([usable[0] if vector is None else vector for vector in every])
        return cls(vectors, has_face)

    @property
    def size(self) -> int:
        """Number of faces."""
        return len(next(iter(self.has_face.values())))

    def distances(self, judge: Judge, vector: Vector) -> Floats:
        """Return the distances (G,) from one face to all of the gallery."""
        row = judge.compare(vector[None], self.vectors[judge.eye.name])[0].astype(np.float64)
        row[~self.has_face[judge.eye.name]] = _NOWHERE
        return row


@dataclass
class Verdict:
    """One judge on one method: per probe (P,), NaN or 0 where it has no face. nearest: gallery column, -1 for none.

    draws: probe -> rank of every face drawn of it. together: probe -> rank by the mean distance of its first k faces,
    k = 1, 2, ...
    """

    ranks: NDArray[np.int64]
    own: Floats
    others: Floats
    nearest: NDArray[np.int64]
    missed: set[int] = field(default_factory=set)
    draws: dict[int, list[int]] = field(default_factory=dict)
    together: dict[int, list[int]] = field(default_factory=dict)
    _sums: dict[int, Floats] = field(default_factory=dict)

    @classmethod
    def empty(cls, num: int) -> Verdict:
        """Return a verdict on ``num`` probes without a face."""
        nowhere = np.full(num, np.nan)
        return cls(np.zeros(num, np.int64), nowhere, nowhere.copy(), np.full(num, -1))

    def enter(self, probe: int, distances: Floats | None, truth: int, excluded: int, size: int) -> None:
        """Enter the next face of a probe: its distances (G,), or None where the judge finds no face in it."""
        first = probe not in self.draws
        missed = distances is None or distances[truth] >= _NOWHERE
        self.draws.setdefault(probe, []).append(_rank(distances, truth, excluded, size))
        # the sum orders the gallery as the mean does; a face without distances adds nothing
        if distances is not None:
            self._sums[probe] = self._sums.get(probe, 0.0) + distances
        self.together.setdefault(probe, []).append(_rank(self._sums.get(probe), truth, excluded, size))
        if not first:
            return
        self.ranks[probe] = self.draws[probe][0]
        if missed:
            self.missed.add(probe)
        if distances is not None:
            counted = distances < _NOWHERE
            counted[[truth, excluded] if excluded >= 0 else [truth]] = False
            self.own[probe] = np.nan if missed else distances[truth]
            self.others[probe] = distances[counted].mean() if counted.any() else np.nan
            self.nearest[probe] = int(np.argmin(distances))


def _rank(distances: Floats | None, truth: int, excluded: int, size: int) -> int:
    """Return the rank of the true face; the last where no face is seen in the picture or in the true face."""
    if distances is None or distances[truth] >= _NOWHERE:
        return size
    return int(ranks_of_truth(distances[None], np.array([truth]), np.array([excluded]))[0])


@dataclass
class Judgement:
    """The judgement of one method's faces.

    vectors: probe -> dlib's vector of each of its faces. likeness: probe -> its first face's value of each measure.
    """

    faces: Faces
    verdicts: Mapping[str, Verdict]
    vectors: dict[int, list[Vector | None]] = field(default_factory=dict)
    likeness: dict[int, dict[str, float]] = field(default_factory=dict)


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
        num = len(self._truths)
        result = Judgement(faces, {judge.name: Verdict.empty(num) for judge in self._plan.judges})
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
                    result.likeness[probe] = self._compare(probe, picture, views.get("dlib"))
            advance(1)
        return result

    def _compare(self, probe: int, picture: Pictures, vector: Vector | None) -> dict[str, float]:
        """Return the likeness of a probe's first face to the true face. vector: dlib's of the first face."""
        truth = read_grey(self._truths[probe], self._size)
        values = {PSNR.name: psnr(picture, truth), SSIM.name: ssim(picture, truth)}
        if self._plan.lpips is not None:
            values[LPIPS.name] = self._plan.lpips.distance(picture, truth)
        true = None if self._dlib is None else self._see(self._dlib, self._truths[probe])
        if vector is not None and true is not None:
            own, target = (points(v[None])[0].astype(np.float64) for v in (vector, true))
            eyes = np.linalg.norm(target[EYE_CORNERS[0]] - target[EYE_CORNERS[1]])
            values[NME.name] = 100 * np.linalg.norm(own - target, axis=1).mean() / eyes
        return values

    def method(self, judgement: Judgement) -> Method:
        """Return the entry of a method in the results."""
        info, pictures = judgement.faces.info, {}
        if info.name != "permuted":
            pictures = self._measured(judgement.likeness) | self._kid(judgement)
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
        faces, result = judgement.faces.pictures, {}
        for measure, eye in ((KID, self._plan.backbone), (KID_DLIB, self._dlib)):
            if eye is None:
                continue
            pairs = [(self._see(eye, faces[i][0]), self._see(eye, self._truths[i])) for i in faces]
            both = [np.stack((own, true)) for own, true in pairs if own is not None and true is not None]
            if len(both) > 1:
                drawn, real = np.stack(both, axis=1)  # (N, D) each
                if measure is KID_DLIB:
                    drawn, real = descriptors(drawn), descriptors(real)
                result[measure.name] = Measured(Figure(1000 * kid(drawn, real), None, None, len(both)))
        return result

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
        rows = {measure.name: np.full(len(self._truths), np.nan) for measure in MEASURES}
        for probe, of_probe in values.items():
            for name, value in of_probe.items():
                rows[name][probe] = value
        return {name: measured(row, self._how) for name, row in rows.items() if np.isfinite(row).any()}

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
        caption = f"told: {describe(plan.variants[probe].biometrics, with_level=True)}"
        return EditPicture(probe=probe, caption=caption, **names)

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
