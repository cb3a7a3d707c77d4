"""Making the faces: every method's pictures of every probe, on disk, before any of them is judged."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cldm.config import SamplingConfig
from data.biometrics import Biometrics
from data.cases import Case
from data.manifest import Record
from muti_control.evaluation.methods.controls import permuted, told_another, with_skull_of
from muti_control.evaluation.methods.edits import EditPlan, find_edits
from muti_control.evaluation.methods.faces import Faces
from muti_control.evaluation.methods.learnt import Drawing, Learnt, skull_features
from muti_control.evaluation.methods.sampled import Sampler, Wanted, faces_of
from muti_control.evaluation.methods.translated import Task
from muti_control.evaluation.plan import Plan
from muti_control.evaluation.protocol.progress import Progress
from muti_control.evaluation.protocol.registry import CEILINGS, OF_PIX2PIX, OF_TRAINING, MethodInfo
from muti_control.evaluation.protocol.run_folder import FACES
from settings.reading import to_yaml

LEARN, DRAW, TRANSLATE, SAMPLE, DECODE = (
    "reading the training pairs",
    "drawing baselines",
    "drawing Pix2Pix's faces",
    "drawing faces",
    "autoencoder",
)


@dataclass
class Made:
    """All faces of a run. told: the subject's faces with another person's attributes. edits: of each method.

    details: how baselines were chosen.
    """

    methods: list[Faces] = field(default_factory=list)
    told: Faces | None = None
    edits: list[tuple[EditPlan, Faces]] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def of(self, name: str) -> Faces | None:
        """The faces of a method, or None."""
        return next((faces for faces in self.methods if faces.info.name == name), None)


class Production:
    """Makes what a plan asks for in a run's folder; what is there already is kept."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self._plan, self._folder = plan, folder / FACES
        self._edits = find_edits(plan.inputs, plan.cfg.edited)
        self._runs = {name: self._wanted(name) for name in plan.weights}

    def stages(self) -> dict[str, tuple[int, float]]:
        """Name -> number of steps and guessed seconds of one, for the progress bar."""
        plan, size = self._plan, self._plan.team.size
        stages: dict[str, tuple[int, float]] = {}
        if self._learning:
            pairs = len(plan.inputs.train) + len(plan.inputs.valid)
            stages[LEARN], stages[DRAW] = (pairs, 0.02), (len(plan.inputs.train), 0.01)
        if translated := sum(map(len, self._tasks().values())):
            stages[TRANSLATE] = (translated, 0.1)
        for name, runs in self._runs.items():
            steps = sum(wanted.steps for _, wanted in runs)
            stages[f"{SAMPLE} ({name})"] = (-(-steps // size), 0.05)
        if "autoencoder" in plan.names:
            decoded = len(plan.inputs.rows) + sum(len(edit.variants) for edit in self._edits)
            stages[DECODE] = (-(-decoded // size), 0.3)
        return stages

    def make(self, progress: Progress) -> Made:
        """Everything; each process of the team makes its share, and what is not shared is made by the first."""
        made = Made()
        by_name: dict[str, Faces] = {}
        if self._learning and self._plan.team.is_first:
            self._learn(by_name, made, progress)
        if self._plan.pix2pix is not None and self._plan.team.is_first:
            self._translate(by_name, made, progress)
        for name in self._plan.weights:
            self._sample(name, by_name, made, progress)
        if self._plan.elsewhere and "folder" in self._plan.names:
            by_name["folder"] = self._faces("folder", dict(enumerate(self._plan.elsewhere)))
        self._from_the_cohort(by_name)
        made.methods = [by_name[name] for name in self._plan.names if name in by_name]
        if "permuted" in self._plan.names and made.methods:
            made.methods.append(self._permuted(by_name.get(self._plan.subject.name, made.methods[0])))
        return made

    @property
    def _learning(self) -> bool:
        return any(name in OF_TRAINING for name in self._plan.names)

    def _info(self, name: str) -> MethodInfo:
        return next(info for info in self._plan.methods if info.name == name)

    def _faces(
        self,
        name: str,
        pictures: Mapping[int, tuple[Path, ...]],
        excluded: Mapping[int, int] | None = None,
        seconds: float | None = None,
    ) -> Faces:
        return Faces(self._info(name), pictures, excluded or {}, seconds)

    # ------------------------------------------------------------ baselines
    def _learn(self, by_name: dict[str, Faces], made: Made, progress: Progress) -> None:
        inputs, names = self._plan.inputs, self._plan.names
        progress.begin(LEARN)
        learnt = Learnt.of(inputs.train, inputs.valid, inputs.size, "ridge" in names, progress.advance)
        made.details = learnt.details()
        skulls = skull_features(inputs.probe_cases, inputs.size)
        drawing = Drawing(inputs.train, inputs.size)
        if "nearest" in names:
            pictures = {i: (path,) for i, path in enumerate(learnt.nearest(skulls))}
            by_name["nearest"] = self._faces("nearest", pictures)
        for name in ("ridge", "group_mean", "mean_face"):
            if name in names:
                paths = [self._folder / name / f"{case.name}_0.png" for case in inputs.probe_cases]
                self._add(drawing, learnt.weights(name, skulls, inputs.probes), paths)
                by_name[name] = self._faces(name, {i: (path,) for i, path in enumerate(paths)})
        for edit in self._edits if "ridge" in names else []:
            probes = list(edit.variants)
            paths = [
                self._folder / f"ridge_{edit.name}" / f"{inputs.probe_cases[i].name}_0.png" for i in probes
            ]
            told = [edit.variants[i] for i in probes]
            self._add(drawing, learnt.weights("ridge", skulls[probes], told), paths)
            edited = {i: (path,) for i, path in zip(probes, paths, strict=True)}
            made.edits.append((edit, self._faces("ridge", edited)))
        progress.begin(DRAW)
        drawing.draw(progress.advance)

    @staticmethod
    def _add(drawing: Drawing, weights: Any, paths: Sequence[Path]) -> None:
        for row, path in zip(weights, paths, strict=True):
            if not path.is_file():
                drawing.add(row, path)

    # ------------------------------------------------------------ Pix2Pix
    def _tasks(self) -> dict[str, dict[int, Task]]:
        """What Pix2Pix has to draw of each probe, by what it is for: a method's name or an edit's."""
        plan, inputs = self._plan, self._plan.inputs
        wanted: dict[str, dict[int, tuple[Case, Biometrics]]] = {}
        skulls = inputs.probe_cases
        if "pix2pix" in plan.names:
            wanted["pix2pix"] = {i: (skulls[i], record.biometrics) for i, record in enumerate(inputs.probes)}
            for edit in self._edits:
                wanted[edit.name] = {i: (skulls[i], r.biometrics) for i, r in edit.variants.items()}
        if "pix2pix_shuffled" in plan.names:
            wanted["pix2pix_shuffled"] = {
                i: (with_skull_of(skulls[i], donor), inputs.probes[i].biometrics)
                for i, donor in enumerate(plan.donors.records)
                if donor is not None
            }
        found: dict[str, dict[int, Task]] = {}
        for name, of_probe in wanted.items():
            folder = self._folder / (name if name in OF_PIX2PIX else f"pix2pix_{name}")
            targets = {i: folder / f"{inputs.probe_cases[i].name}_0.png" for i in of_probe}
            found[name] = {i: Task(*given, targets[i]) for i, given in of_probe.items()}
        return found

    def _translate(self, by_name: dict[str, Faces], made: Made, progress: Progress) -> None:
        plan = self._plan
        assert plan.pix2pix is not None
        columns = plan.donors.columns
        drawn: dict[str, Faces] = {}
        progress.begin(TRANSLATE)
        for name, tasks in self._tasks().items():
            started = time.monotonic()
            plan.pix2pix.draw(list(tasks.values()), plan.cfg.batch_size, plan.device, progress.advance)
            lent = {i: int(columns[i]) for i in tasks if name == "pix2pix_shuffled" and columns[i] >= 0}
            method = name if name in OF_PIX2PIX else "pix2pix"
            pictures = {i: (task.target,) for i, task in tasks.items()}
            drawn[name] = self._faces(method, pictures, lent, time.monotonic() - started)
        by_name |= {name: faces for name, faces in drawn.items() if name in OF_PIX2PIX}
        made.edits += [(edit, drawn[edit.name]) for edit in self._edits if edit.name in drawn]

    # ------------------------------------------------------------ models
    def _wanted(self, name: str) -> list[tuple[str, Wanted]]:
        """The sampling runs of a model, by what they are for."""
        plan, cfg, sampling = self._plan, self._plan.cfg, self._plan.sampling[name]
        num = len(plan.inputs.rows)
        own = [replace(case, seed_offset=i) for i, case in enumerate(plan.inputs.probe_cases)]
        runs: list[tuple[str, Wanted]] = []

        def want(
            purpose: str, cases: Sequence[Case], how: SamplingConfig = sampling, more: bool = False
        ) -> None:
            seeds = [cfg.seed + k * num for k in (range(1, cfg.samples) if more else range(1))]
            if cases and seeds:
                folder, guided = self._folder / f"{name}_{purpose}", how.control_end > 0
                if purpose.startswith("shuffled") and plan.guidance[name].names_files:
                    guided = False  # files named after the probe hold the probe's points, whoever's the skull
                runs.append((purpose, Wanted(folder, cases, seeds, how, guided=guided)))

        if name in plan.names:
            want("own", own)
        if (
            name in plan.names and (cfg.guided or name == "model") and name not in plan.pinned
        ):  # guidance may undo an edit
            for edit in self._edits:
                want(edit.name, [replace(own[i], biometrics=r.biometrics) for i, r in edit.variants.items()])
        if name != "model":
            return runs
        swapped = [
            with_skull_of(case, donor)
            for case, donor in zip(own, plan.donors.records, strict=True)
            if donor is not None
        ]
        if "shuffled" in plan.names:
            want("shuffled", swapped)
        if "attributes" in plan.names:
            want("attributes", own, sampling.with_(control_start=0.0, control_end=0.0))
        if name in plan.names:
            covered = {case.name for case in own[: cfg.covered]}
            want("more", own[: cfg.covered], more=True)
            if "shuffled" in plan.names:
                want("shuffled_more", [case for case in swapped if case.name in covered], more=True)
            others = told_another(plan.inputs.probes, cfg.seed)[: cfg.told]
            told = [replace(own[i], biometrics=own[j].biometrics) for i, j in enumerate(others) if i != j]
            want("told", told)
        return runs

    def _sample(self, name: str, by_name: dict[str, Faces], made: Made, progress: Progress) -> None:
        plan, cases = self._plan, self._plan.inputs.probe_cases
        place = {case.name: i for i, case in enumerate(cases)}
        sampler = Sampler(
            plan.weights[name],
            plan.device,
            plan.dtype,
            plan.cfg.batch_size,
            to_yaml(plan.cfg),
            plan.team,
            plan.landmarks,
            plan.guidance[name],
            plan.cfg.texture,
            plan.sampling[name].grain,
        )
        pictures: dict[str, dict[int, tuple[Path, ...]]] = {}
        seconds: dict[str, float] = {}
        progress.begin(f"{SAMPLE} ({name})")
        for purpose, wanted in self._runs[name]:
            started = time.monotonic()
            sampler.draw(wanted, progress.advance)
            seconds[purpose] = time.monotonic() - started
            made_of = zip(wanted.cases, faces_of(wanted), strict=True)
            pictures[purpose] = {place[case.name]: paths for case, paths in made_of}
        if "autoencoder" in plan.names and name == "model":
            by_name["autoencoder"] = self._through_autoencoder(sampler, made, progress)
        for key, own, more in (
            (name, "own", "more"),
            ("shuffled", "shuffled", "shuffled_more"),
            ("attributes", "attributes", ""),
        ):
            if own in pictures:
                further = pictures.get(more, {})
                drawn = {i: paths + further.get(i, ()) for i, paths in pictures[own].items()}
                columns = plan.donors.columns if key == "shuffled" else None
                lent = {} if columns is None else {i: int(columns[i]) for i in drawn if columns[i] >= 0}
                by_name[key] = self._faces(key, drawn, lent, seconds[own])
        if "told" in pictures:
            made.told = self._faces(name, pictures["told"])
        for edit in self._edits:
            if edit.name in pictures:
                made.edits.append((edit, self._faces(name, pictures[edit.name])))

    def _through_autoencoder(self, sampler: Sampler, made: Made, progress: Progress) -> Faces:
        """The true faces, and those after the edits: what can be read of an edit off pictures of the model at all."""
        cases = self._plan.inputs.probe_cases
        sources = {i: case.face_path for i, case in enumerate(cases) if case.face_path is not None}
        progress.begin(DECODE)

        def decoded(folder: str, faces: Mapping[int, Path]) -> Faces:
            targets = {i: self._folder / folder / f"{cases[i].name}_0.png" for i in faces}
            started = time.monotonic()
            sampler.through_autoencoder([(faces[i], targets[i]) for i in faces], progress.advance)
            seconds = time.monotonic() - started
            return self._faces("autoencoder", {i: (path,) for i, path in targets.items()}, seconds=seconds)

        for edit in self._edits:
            after = {i: r.face_path for i, r in edit.variants.items() if r.face_path is not None}
            made.edits.append((edit, decoded(f"autoencoder_{edit.name}", after)))
        return decoded("autoencoder", sources)

    # ------------------------------------------------------------ what the data hold
    def _from_the_cohort(self, by_name: dict[str, Faces]) -> None:
        inputs, names = self._plan.inputs, self._plan.names
        probes = dict(enumerate(inputs.probes))
        for name in CEILINGS:
            if name in names:
                by_name[name] = self._faces(name, self._pictures(probes, inputs.expected[name]))
        if "ceiling_shuffled" in names:
            lent = {
                i: inputs.gallery[column]
                for i, column in enumerate(self._plan.donors.columns)
                if column >= 0 and inputs.gallery[column].subject in inputs.expected["ceiling"]
            }
            columns = {i: int(self._plan.donors.columns[i]) for i in lent}
            if lent:
                by_name["ceiling_shuffled"] = self._faces(
                    "ceiling_shuffled", self._pictures(lent, inputs.expected["ceiling"]), columns
                )
        if "turned" in names:
            by_name["turned"] = self._faces("turned", self._pictures(probes, inputs.turned))

    @staticmethod
    def _pictures(whose: Mapping[int, Record], faces: Mapping[str, Record]) -> dict[int, tuple[Path, ...]]:
        found = {i: faces.get(record.subject) for i, record in whose.items()}
        return {i: (r.face_path,) for i, r in found.items() if r is not None and r.face_path is not None}

    def _permuted(self, faces: Faces) -> Faces:
        """Faces held against another probe's name, whose own face does not count."""
        rows = self._plan.inputs.rows
        probes = sorted(faces.pictures)
        other = permuted(len(probes), self._plan.cfg.seed)
        whose = {probes[i]: probes[j] for i, j in enumerate(other)}
        return Faces(
            self._info("permuted"),
            {i: faces.pictures[j][:1] for i, j in whose.items()},
            {i: int(rows[j]) for i, j in whose.items() if i != j},
        )
