"""Make the faces: every method's pictures of every probe, on disk, before any of them is judged."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cldm.config import SamplingConfig
from cldm.controlled import ControlledLatentDiffusion
from data.cases import Case
from data.manifest import Record
from muti_control.evaluation.methods import controls
from muti_control.evaluation.methods.faces import Faces, skull_features
from muti_control.evaluation.methods.learnt import Drawing, Learnt
from muti_control.evaluation.methods.sampled import Sampler, SamplingRun, through_autoencoder
from muti_control.evaluation.plan import Plan
from muti_control.evaluation.protocol.inputs import face_of
from muti_control.evaluation.protocol.registry import CEILINGS, OF_PIX2PIX, OF_TRAINING, MethodInfo
from muti_control.evaluation.protocol.run_folder import FACES

Drawn = dict[int, tuple[Path, ...]]  # probe -> its faces


@dataclass
class Made:
    """All faces of a run. other_text: the subject's faces with another person's attributes. edits: of each method.

    ridge_choice: the penalty of the ridge and how it was chosen.
    """

    methods: list[Faces] = field(default_factory=list)
    other_text: Faces | None = None
    edits: list[tuple[controls.EditPlan, Faces]] = field(default_factory=list)
    ridge_choice: dict[str, float] = field(default_factory=dict)

    def of(self, name: str) -> Faces | None:
        """Return the faces of a method, or None."""
        return next((faces for faces in self.methods if faces.info.name == name), None)

    @property
    def everything(self) -> list[Faces]:
        """All of them in one list."""
        return [
            *self.methods,
            *([self.other_text] if self.other_text else []),
            *(faces for _, faces in self.edits),
        ]


@contextmanager
def stage(name: str, steps: int, silent: bool) -> Iterator[Callable[[int], Any]]:
    """Show a bar while the stage runs; it yields the function that advances it. Without a terminal nothing is shown."""
    with tqdm(total=steps, desc=name, disable=True if silent else None, dynamic_ncols=True) as bar:
        yield bar.update


def make_faces(plan: Plan, folder: Path) -> Made:
    """Make what a plan asks for in a run's folder; what is there already is kept.

    Each process of the team makes its share of the model's faces; the first one makes all others.
    """
    return _Production(plan, folder).make()


class _Production:
    def __init__(self, plan: Plan, folder: Path) -> None:
        self._plan, self._folder, self._names = plan, folder / FACES, plan.names
        self._edits = controls.find_edits(plan.inputs.probes, plan.inputs.variants, plan.cfg.edited)
        self._made = Made()
        self._by_name: dict[str, Faces] = {}

    def make(self) -> Made:
        plan, first = self._plan, self._plan.team.is_first
        if first and any(name in OF_TRAINING for name in self._names):
            self._learn()
        if first and plan.pix2pix is not None:
            self._translate()
        for name in plan.weights:
            self._sample(name)
        if plan.elsewhere:
            self._keep("folder", dict(enumerate(plan.elsewhere)))
        self._from_the_cohort()
        made = self._made
        made.methods = [self._by_name[name] for name in self._names if name in self._by_name]
        if "permuted" in self._names and made.methods:
            made.methods.append(self._permuted(self._by_name.get(plan.subject.name, made.methods[0])))
        return made

    def _stage(self, name: str, steps: int) -> Any:
        return stage(name, steps, not self._plan.team.is_first)

    def _faces(
        self,
        name: str,
        pictures: Drawn,
        excluded: Mapping[int, int] | None = None,
        seconds: float | None = None,
    ) -> Faces:
        info: MethodInfo = next(info for info in self._plan.methods if info.name == name)
        return Faces(info, pictures, excluded or {}, seconds)

    def _keep(self, name: str, pictures: Drawn, *more: Any) -> None:
        if name in self._names:
            self._by_name[name] = self._faces(name, pictures, *more)

    def _targets(self, folder: str, probes: Sequence[int]) -> dict[int, Path]:
        """Return the file of one face of each probe."""
        cases = self._plan.inputs.probe_cases
        return {i: self._folder / folder / f"{cases[i].name}_0.png" for i in probes}

    def _columns_of_donors(self, probes: Sequence[int]) -> dict[int, int]:
        """Return probe -> gallery column of the person who lends it a skull."""
        columns = self._plan.donors.columns
        return {i: int(columns[i]) for i in probes if columns[i] >= 0}

    # ------------------------------------------------------------ baselines
    def _learn(self) -> None:
        inputs, every = self._plan.inputs, list(range(len(self._plan.inputs.rows)))
        with self._stage("reading the training pairs", len(inputs.train) + len(inputs.valid)) as advance:
            baselines = Learnt(inputs.train, inputs.valid, inputs.size, "ridge" in self._names, advance)
        self._made.ridge_choice = baselines.ridge_choice
        skulls = skull_features(inputs.probe_cases, inputs.size)
        drawing = Drawing(inputs.train, inputs.size)

        def draw(method: str, folder: str, people: Mapping[int, Record]) -> Faces:
            probes = list(people)
            targets = self._targets(folder, probes)
            weights = baselines.weights(method, skulls[probes], list(people.values()))
            for row, path in zip(weights, targets.values(), strict=True):
                if not path.is_file():
                    drawing.add(row, path)
            return self._faces(method, _single(targets))

        self._keep("nearest", _single(dict(enumerate(baselines.nearest(skulls)))))
        for name in ("ridge", "group_mean", "mean_face"):
            if name in self._names:
                self._by_name[name] = draw(name, name, dict(zip(every, inputs.probes, strict=True)))
        for edit in self._edits if "ridge" in self._names else []:
            self._made.edits.append((edit, draw("ridge", f"ridge_{edit.name}", edit.variants)))
        with self._stage("drawing baselines", len(inputs.train)) as advance:
            drawing.draw(advance)

    # ------------------------------------------------------------ Pix2Pix
    def _translate(self) -> None:
        plan, inputs = self._plan, self._plan.inputs
        assert plan.pix2pix is not None
        cases = dict(enumerate(inputs.probe_cases))
        jobs: dict[str, dict[int, Case]] = {}  # method's or edit's name -> what to draw
        if "pix2pix" in self._names:
            jobs["pix2pix"] = cases
            jobs |= {edit.name: _edited(cases, edit) for edit in self._edits}
        if "pix2pix_shuffled" in self._names:
            donors = {i: donor for i, donor in enumerate(plan.donors.records) if donor is not None}
            jobs["pix2pix_shuffled"] = {i: controls.with_skull_of(cases[i], d) for i, d in donors.items()}
        results: dict[str, Faces] = {}
        with self._stage("drawing Pix2Pix's faces", sum(map(len, jobs.values()))) as advance:
            for name, job in jobs.items():
                started = time.monotonic()
                targets = self._targets(name if name in OF_PIX2PIX else f"pix2pix_{name}", list(job))
                pairs = [(case, targets[i]) for i, case in job.items()]
                plan.pix2pix.draw(pairs, plan.cfg.batch_size, plan.device, advance)
                excluded = self._columns_of_donors(list(job)) if name == "pix2pix_shuffled" else {}
                method = name if name in OF_PIX2PIX else "pix2pix"
                results[name] = self._faces(method, _single(targets), excluded, time.monotonic() - started)
        self._by_name |= {name: faces for name, faces in results.items() if name in OF_PIX2PIX}
        self._made.edits += [(edit, results[edit.name]) for edit in self._edits if edit.name in results]

    # ------------------------------------------------------------ models
    def _runs(self, name: str) -> dict[str, SamplingRun]:
        """Return the sampling runs of a model, by what they are for."""
        plan, cfg, sampling = self._plan, self._plan.cfg, self._plan.sampling[name]
        num = len(plan.inputs.rows)
        own = [replace(case, seed_offset=i) for i, case in enumerate(plan.inputs.probe_cases)]
        runs: dict[str, SamplingRun] = {}

        def add(
            purpose: str, cases: Sequence[Case], how: SamplingConfig = sampling, more: bool = False
        ) -> None:
            seeds = [cfg.seed + k * num for k in (range(1, cfg.num_samples) if more else range(1))]
            guided = how.control_end > 0
            if purpose.startswith("shuffled") and plan.guidance[name].names_files:
                guided = False  # files named after the probe hold the probe's points, with any skull
            if cases and seeds:
                runs[purpose] = SamplingRun(self._folder / f"{name}_{purpose}", cases, seeds, how, guided)

        if name in self._names:
            add("own", own)
            if (cfg.guided or name == "model") and name not in plan.pinned:  # guidance may undo an edit
                for edit in self._edits:
                    add(edit.name, list(_edited(dict(enumerate(own)), edit).values()))
        if name != "model":
            return runs
        donors = zip(own, plan.donors.records, strict=True)
        swapped = [controls.with_skull_of(case, donor) for case, donor in donors if donor is not None]
        if "shuffled" in self._names:
            add("shuffled", swapped)
        if "attributes" in self._names:
            add("attributes", own, sampling.with_(control_start=0.0, control_end=0.0))
        if name in self._names:
            covered = {case.name for case in own[: cfg.covered]}
            add("more", own[: cfg.covered], more=True)
            if "shuffled" in self._names:
                add("shuffled_more", [case for case in swapped if case.name in covered], more=True)
            others = controls.other_attributes(plan.inputs.probes, cfg.seed)[: cfg.told]
            add(
                "told",
                [replace(own[i], biometrics=own[j].biometrics) for i, j in enumerate(others) if i != j],
            )
        return runs

    def _sample(self, name: str) -> None:
        plan, runs = self._plan, self._runs(name)
        place = {case.name: i for i, case in enumerate(plan.inputs.probe_cases)}
        sampler = Sampler(plan, name)
        pictures: dict[str, Drawn] = {}
        seconds: dict[str, float] = {}
        steps = -(-sum(run.steps for run in runs.values()) // plan.team.size)
        with self._stage(f"drawing faces ({name})", steps) as advance:
            for purpose, run in runs.items():
                started = time.monotonic()
                sampler.draw(run, advance)
                seconds[purpose] = time.monotonic() - started
                made = zip(run.cases, run.faces, strict=True)
                pictures[purpose] = {place[case.name]: paths for case, paths in made}
        if "autoencoder" in self._names and name == "model":
            self._decode(sampler.model)
        for key, own, more in (
            (name, "own", "more"),
            ("shuffled", "shuffled", "shuffled_more"),
            ("attributes", "attributes", ""),
        ):
            if own in pictures:
                further = pictures.get(more, {})
                pictures_of = {i: paths + further.get(i, ()) for i, paths in pictures[own].items()}
                excluded = self._columns_of_donors(list(pictures_of)) if key == "shuffled" else {}
                self._by_name[key] = self._faces(key, pictures_of, excluded, seconds[own])
        if "told" in pictures:
            self._made.other_text = self._faces(name, pictures["told"])
        for edit in self._edits:
            if edit.name in pictures:
                self._made.edits.append((edit, self._faces(name, pictures[edit.name])))

    def _decode(self, model: ControlledLatentDiffusion) -> None:
        """Pass the true faces, and those after the edits, through the autoencoder: the limit of all its pictures."""
        cases, grain = self._plan.inputs.probe_cases, self._plan.sampling["model"].grain
        truths = {i: case.face_path for i, case in enumerate(cases) if case.face_path is not None}
        jobs: list[tuple[str, controls.EditPlan | None, dict[int, Path]]] = [("autoencoder", None, truths)]
        for plan in self._edits:
            after = {i: face_of(record) for i, record in plan.variants.items()}
            jobs.append((f"autoencoder_{plan.name}", plan, after))
        steps = -(-sum(len(faces) for *_, faces in jobs) // self._plan.team.size)
        with self._stage("autoencoder", steps) as advance:
            for folder, edit, faces in jobs:
                started, targets = time.monotonic(), self._targets(folder, list(faces))
                pairs, cfg = [(faces[i], targets[i]) for i in faces], self._plan.cfg
                through_autoencoder(model, pairs, grain, cfg.batch_size, self._plan.team, advance)
                made = self._faces("autoencoder", _single(targets), seconds=time.monotonic() - started)
                if edit is None:
                    self._by_name["autoencoder"] = made
                else:
                    self._made.edits.append((edit, made))

    # ------------------------------------------------------------ faces of the data
    def _from_the_cohort(self) -> None:
        inputs, probes = self._plan.inputs, dict(enumerate(self._plan.inputs.probes))

        def pictures(whose: Mapping[int, Record], faces: Mapping[str, Record]) -> Drawn:
            present = {i: record for i, record in whose.items() if record.subject in faces}
            return {i: (face_of(faces[record.subject]),) for i, record in present.items()}

        for name in CEILINGS:
            self._keep(name, pictures(probes, inputs.expected[name]))
        columns = self._columns_of_donors(list(probes))
        of_donors = pictures({i: inputs.gallery[c] for i, c in columns.items()}, inputs.expected["ceiling"])
        if of_donors:
            self._keep("ceiling_shuffled", of_donors, {i: columns[i] for i in of_donors})
        self._keep("turned", pictures(probes, inputs.turned))

    def _permuted(self, faces: Faces) -> Faces:
        """Return faces held against another probe's name, whose own face does not count."""
        rows, probes = self._plan.inputs.rows, sorted(faces.pictures)
        order = controls.permuted(len(probes), self._plan.cfg.seed)
        whose = {probes[i]: probes[j] for i, j in enumerate(order)}
        pictures = {i: faces.pictures[j][:1] for i, j in whose.items()}
        return self._faces("permuted", pictures, {i: int(rows[j]) for i, j in whose.items() if i != j})


def _single(paths: Mapping[int, Path]) -> Drawn:
    return {i: (path,) for i, path in paths.items()}


def _edited(cases: Mapping[int, Case], edit: controls.EditPlan) -> dict[int, Case]:
    """Return probe -> its case with the attributes after the edit."""
    return {i: replace(cases[i], biometrics=record.biometrics) for i, record in edit.variants.items()}
