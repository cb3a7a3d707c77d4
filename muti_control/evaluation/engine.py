"""One evaluation from the first face to ``metrics.json``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from cldm.record import environment
from data.cases import cases_of
from data.files import picture_sha256
from data.sheet import NOTICE
from muti_control.evaluation.cases import choose_cases
from muti_control.evaluation.judges.ood import OddityError, score_skulls, small_skulls
from muti_control.evaluation.judges.sightings import Sightings
from muti_control.evaluation.judging import Bench, Gallery, all_paths
from muti_control.evaluation.measuring import MEASURES, Measuring, pictures_of_edit
from muti_control.evaluation.methods.faces import Faces, read_grey
from muti_control.evaluation.plan import Plan
from muti_control.evaluation.production import Made, Production
from muti_control.evaluation.protocol.inputs import Inputs
from muti_control.evaluation.protocol.progress import Progress
from muti_control.evaluation.protocol.run_folder import choose_folder, claim, identity_of
from muti_control.evaluation.report.page import write_report
from muti_control.evaluation.results.results import (
    Evaluation,
    NotRun,
    OutOfDistribution,
    Probe,
    Protocol,
    Recogniser,
    Subject,
)
from muti_control.evaluation.results.results_file import write_results
from muti_control.evaluation.results.summary import Resampling, groups_of

LOOK, GALLERY, JUDGE, STRANGE = "looking at the faces", "gallery", "judging", "unlike skulls"


def open_folder(plan: Plan) -> Path:
    """The run's folder, claimed for it. Raises: OutputError."""
    folder = choose_folder(plan.cfg)
    read = {file.path: file.sha256 for file in (*plan.inputs.manifests, *plan.files)}
    config = plan.cfg.model_dump()
    inputs = [
        *(Path(w.path) for w in plan.weights.values()),
        *([] if plan.pix2pix is None else [plan.pix2pix.path]),
        *(path for paths in plan.elsewhere for path in paths),
    ]
    claim(folder, plan.cfg, identity_of(config, read), inputs)
    return folder


def evaluate(plan: Plan, folder: Path) -> Evaluation | None:
    """Make and judge all faces, and write ``metrics.json``; None in processes other than the first.

    Args:
        folder: of ``open_folder``; in the other processes it is told by the first.

    Raises:
        ValueError: a picture, a model or a cache that cannot be used (ImageError, CacheError, ReconstructionError ...).
        ProcessError: another process is gone.
    """
    started = time.monotonic()
    with plan.team as team, Sightings(Path(plan.cfg.cache)) as sightings:
        folder = team.broadcast(folder)
        production = Production(plan, folder)
        with Progress(_stages(plan, production), silent=not team.is_first) as progress:
            made = production.make(progress)
            _look(plan, made, sightings, progress)
            if not team.is_first:
                return None
            return _measure(plan, folder, made, sightings, progress, started)


def _stages(plan: Plan, production: Production) -> dict[str, tuple[int, float]]:
    faces = len(plan.inputs.rows) * len(plan.methods)
    looked = (len(plan.inputs.gallery) + faces) // plan.team.size
    skulls = len(plan.inputs.trained_on) + len(plan.inputs.rows)
    judging = {LOOK: (looked, 0.2), GALLERY: (len(plan.inputs.gallery), 0.01), JUDGE: (faces, 0.02)}
    return production.stages() | judging | {STRANGE: (skulls, 0.01)}


def _everything(made: Made) -> list[Faces]:
    return [
        *made.methods,
        *([made.told] if made.told is not None else []),
        *(faces for _, faces in made.edits),
    ]


def _look(plan: Plan, made: Made, sightings: Sightings, progress: Progress) -> None:
    """Have every picture seen by the recognisers that take long; each process sees its share."""
    truths = [record.face_path for record in plan.inputs.gallery if record.face_path is not None]
    edited = [record.face_path for edit, _ in made.edits for record in edit.variants.values()]
    paths = [*truths, *all_paths(_everything(made)), *(path for path in edited if path is not None)]
    eyes = [eye for eye in {judge.eye.name: judge.eye for judge in plan.judges}.values() if eye.cached]
    eyes += [plan.backbone] if plan.backbone is not None else []
    progress.begin(LOOK)
    for path in plan.team.share(plan.team.broadcast(paths if eyes else [])):
        sightings.look_at_all(eyes, read_grey(path, plan.inputs.size))
        plan.team.check()
        progress.advance()
    readers = [reader.eye for reader in plan.readers]
    for path in plan.team.share(plan.team.broadcast(_of_edits(plan, made) if readers else [])):
        sightings.look_at_all(readers, read_grey(path, plan.inputs.size))
        plan.team.check()
    plan.team.wait_for_all()


def _of_edits(plan: Plan, made: Made) -> list[Path]:
    """Every picture that an edit is measured on, each once."""
    truths = _truths(plan.inputs)
    found = [
        path
        for edit, faces in made.edits
        if (before := made.of(faces.info.name)) is not None
        for paths in pictures_of_edit(edit, before, faces, truths).values()
        for path in paths
    ]
    return list(dict.fromkeys(found))


def _truths(inputs: Inputs) -> list[Path]:
    """The probes' true faces."""
    return [record.face_path for record in inputs.probes if record.face_path is not None]


def _measure(
    plan: Plan, folder: Path, made: Made, sightings: Sightings, progress: Progress, started: float
) -> Evaluation:
    inputs, how = plan.inputs, Resampling(plan.cfg.bootstrap, plan.cfg.seed)
    eyes = list({judge.eye.name: judge.eye for judge in plan.judges}.values())
    truths = [record.face_path for record in inputs.gallery if record.face_path is not None]
    progress.begin(GALLERY)
    gallery = Gallery.of(truths, inputs.size, eyes, sightings, progress.advance)
    bench = Bench(plan.judges, gallery, inputs.rows, inputs.size, sightings)
    groups = [groups_of(record.biometrics) for record in inputs.probes]
    measuring = Measuring(
        bench, groups, _truths(inputs), how, folder, plan.backbone, plan.lpips, plan.readers
    )
    progress.begin(JUDGE)
    judged = {faces.info.name: measuring.judge(faces, progress.advance) for faces in made.methods}
    own, swapped = judged[plan.subject.name], judged.get("shuffled")
    sensitivity = []
    if swapped is not None:
        sensitivity.append(measuring.sensitivity(own, swapped, "skull", "another person's of the same group"))
    if "attributes" in judged:
        sensitivity.append(
            measuring.sensitivity(own, judged["attributes"], "skull", "none: control switched off")
        )
    if made.told is not None:
        told = measuring.judge(made.told, progress.advance)
        sensitivity.append(measuring.sensitivity(own, told, "text", "another person's attributes"))
    edits = [
        found
        for edit, faces in made.edits
        for found in measuring.edits(edit, judged[faces.info.name], measuring.judge(faces, progress.advance))
    ]
    diversity = measuring.diversity(own)
    progress.begin(STRANGE)
    scores, strangeness, unscored = _strangeness(inputs, plan.cfg.seed, progress)
    evaluation = Evaluation(
        title=f"Evaluation of {plan.cfg.run_name}",
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        command=plan.command,
        seconds=time.monotonic() - started,
        notice=NOTICE,
        environment=environment(plan.device, plan.dtype) | {"processes": plan.team.size},
        subject=_subject(plan),
        protocol=_protocol(plan, made, gallery.size, how),
        probes=tuple(_probes(inputs, groups, scores)),
        recognisers=tuple(_recognisers(plan)),
        measures=MEASURES,
        methods=tuple(measuring.method(one) for one in judged.values()),
        not_run=(*plan.not_run, *unscored, *(edit for edit in edits if isinstance(edit, NotRun))),
        coverage=tuple(measuring.coverage(own, swapped)),
        diversity=() if diversity is None else (diversity,),
        edits=tuple(edit for edit in edits if not isinstance(edit, NotRun)),
        sensitivity=tuple(sensitivity),
        ood=strangeness,
        cases=tuple(choose_cases(folder, inputs, judged, plan.subject.name, plan.judges[0].name)),
    )
    write_results(folder, evaluation)
    write_report(folder)
    return evaluation


def _subject(plan: Plan) -> Subject:
    kind = plan.subject.kind if plan.subject.kind in ("model", "folder") else "baselines"
    details = {"steps of training": plan.weights["model"].step} if "model" in plan.weights else {}
    if "model" in plan.weights:
        side = plan.weights["model"].image_size
        details["resolution"] = f"{side} px, compared at {plan.inputs.size} px"
    return Subject(kind, plan.cfg.run_name, tuple(plan.files), details)


def _protocol(plan: Plan, made: Made, gallery_size: int, how: Resampling) -> Protocol:
    cfg, inputs = plan.cfg, plan.inputs
    config = cfg.model_dump()
    remarks = list(inputs.remarks)
    counts = plan.donors.counts()
    if "shuffled" in plan.names:
        remarks.append(
            f"Skulls of others: {counts['held_out']} of held-out people of the same group, {counts['train']} of "
            f"training people of the same group, {counts['outside']} of the same sex and age level only, "
            f"{counts['nobody']} of nobody (left out)."
        )
    if made.details:
        remarks.append(f"PCA + ridge, chosen on the validation split: {made.details['ridge']}.")
    return Protocol(
        preset=plan.preset,
        split=cfg.split,
        manifests=tuple(inputs.manifests),
        num_training=len(inputs.train),
        gallery_size=gallery_size,
        gallery_subjects=tuple(record.subject for record in inputs.gallery),
        confidence=how.confidence,
        bootstrap=how.draws,
        seed=cfg.seed,
        sampling=dict(config["sampling"]) if plan.weights else {},
        config=config,
        cohort=inputs.cohort,
        remarks=tuple(remarks),
    )


def _strangeness(
    inputs: Inputs, seed: int, progress: Progress
) -> tuple[list[float | None], OutOfDistribution | None, list[NotRun]]:
    """How unlike the training skulls each probe's skull is."""
    try:
        if not inputs.trained_on:
            raise OddityError(f"{inputs.root} has no training list; data.trained_on=MANIFEST names another")
        train = small_skulls(cases_of(inputs.trained_on), inputs.size, progress.advance)
        probes = small_skulls(inputs.probe_cases, inputs.size, progress.advance)
        scores, found = score_skulls(probes, train, [record.subject for record in inputs.trained_on], seed)
    except OddityError as error:
        missing = NotRun("ood", "out-of-distribution score", str(error))
        return [None] * len(inputs.rows), None, [missing]
    return [float(score) for score in scores], found, []


def _probes(inputs: Inputs, groups: Sequence[dict[str, str]], scores: Sequence[float | None]) -> list[Probe]:
    probes = []
    for record, case, group, score in zip(inputs.probes, inputs.probe_cases, groups, scores, strict=True):
        b = record.biometrics
        assert record.face_path is not None
        skull, truth = picture_sha256(record.skull_path), picture_sha256(record.face_path)
        probes.append(
            Probe(
                case.name,
                record.subject,
                skull,
                truth,
                b.sex,
                float(b.age),
                b.ethnicity,
                b.body_mass,
                group,
                None if score is None else float(score),
            )
        )
    return probes


def _recognisers(plan: Plan) -> list[Recogniser]:
    content = sha256()
    for record in plan.inputs.gallery:
        assert record.face_path is not None
        content.update(f"{record.subject} {picture_sha256(record.face_path)}\n".encode())
    return [
        Recogniser(j.name, j.label, j.distance, j.note, j.identity, content.hexdigest()) for j in plan.judges
    ]
