"""One evaluation from the first face to ``metrics.json``: make the faces, judge them, write the results."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import numpy as np

from data.cases import cases_of, read_skull
from data.files import drop_aside, picture_sha256
from data.images import to_uint8, write_png
from data.sheet import NOTICE
from muti_control.evaluation.judges.ood import SIDE, OddityError, score_skulls
from muti_control.evaluation.judges.sightings import Sightings
from muti_control.evaluation.measuring import MEASURES, Gallery, Judgement, Measuring, pictures_of_edit
from muti_control.evaluation.methods.faces import read_grey, skull_features
from muti_control.evaluation.plan import Plan
from muti_control.evaluation.production import Made, make_faces, stage
from muti_control.evaluation.protocol.inputs import Inputs, face_of
from muti_control.evaluation.protocol.run_folder import CASES, choose_folder, claim, identity_of
from muti_control.evaluation.report.page import write_report
from muti_control.evaluation.results.results import (
    CasePicture,
    Evaluation,
    NotRun,
    OutOfDistribution,
    Probe,
    Protocol,
    Recogniser,
    ShownCase,
    Subject,
)
from muti_control.evaluation.results.results_file import write_results
from muti_control.evaluation.results.summary import groups_of
from muti_control.record import environment

SHOWN_CASES = 3  # of each kind: best, median, worst
SHOWN_BESIDE = ("ridge", "ceiling")  # methods shown beside the judged one


def open_folder(plan: Plan) -> Path:
    """Return the run's folder, claimed for it. Raises: OutputError."""
    folder = choose_folder(plan.cfg)
    read = {file.path: file.sha256 for file in (*plan.inputs.manifests, *plan.files)}
    inputs = [weights.path for weights in plan.weights.values()]
    inputs += [] if plan.pix2pix is None else [plan.pix2pix.path]
    inputs += [path for paths in plan.elsewhere for path in paths]
    claim(folder, plan.cfg, identity_of(plan.cfg.model_dump(), read), inputs)
    return folder


def evaluate(plan: Plan, folder: Path) -> Evaluation | None:
    """Make and judge all faces, and write ``metrics.json`` and the report.

    Args:
        folder: of ``open_folder``; the first process sends it to the others.

    Returns:
        The results; None in processes other than the first.

    Raises:
        ValueError: a picture, a model or a cache that cannot be used (ImageError, CacheError, ReconstructionError ...).
        ProcessError: another process is gone.
    """
    started = time.monotonic()
    with plan.team as team, Sightings(Path(plan.cfg.cache)) as sightings:
        folder = team.broadcast(folder)
        made = make_faces(plan, folder)
        _look(plan, made, sightings)
        if not team.is_first:
            return None
        evaluation = _measure(plan, folder, made, sightings, started)
        write_results(folder, evaluation)
        write_report(folder)
        drop_aside(folder)
        return evaluation


def _look(plan: Plan, made: Made, sightings: Sightings) -> None:
    """Store what the slow recognisers see in every picture; each process takes its share."""
    team, size = plan.team, plan.inputs.size
    truths = [face_of(record) for record in plan.inputs.probes]
    edited = [face_of(record) for edit, _ in made.edits for record in edit.variants.values()]
    pictures = [path for faces in made.everything for paths in faces.pictures.values() for path in paths]
    of_edits = [
        path
        for edit, faces in made.edits
        if (before := made.of(faces.info.name)) is not None
        for paths in pictures_of_edit(edit, before, faces, truths).values()
        for path in paths
    ]
    eyes = [eye for eye in (*plan.eyes, *([plan.backbone] if plan.backbone else [])) if eye.cached]
    readers = [reader.eye for reader in plan.readers]
    everyone = [face_of(record) for record in plan.inputs.gallery]
    for watchers, paths in ((eyes, [*everyone, *pictures, *edited]), (readers, of_edits)):
        mine = team.share(team.broadcast(list(dict.fromkeys(paths)) if watchers else []))
        with stage("looking at the faces", len(mine), not team.is_first) as advance:
            for path in mine:
                sightings.look_at_all(watchers, read_grey(path, size))
                team.check()
                advance(1)
    team.wait_for_all()


def _measure(plan: Plan, folder: Path, made: Made, sightings: Sightings, started: float) -> Evaluation:
    inputs, own_name = plan.inputs, plan.subject.name
    truths = [face_of(record) for record in inputs.gallery]
    gallery = Gallery.of(truths, inputs.size, plan.eyes, sightings)
    measuring = Measuring(plan, folder, gallery, sightings)
    with stage("judging", sum(len(faces.pictures) for faces in made.everything), False) as advance:
        judgements = {faces.info.name: measuring.judge(faces, advance) for faces in made.methods}
        other_text = None if made.other_text is None else measuring.judge(made.other_text, advance)
        edits = [
            result
            for edit, faces in made.edits
            for result in measuring.edits(edit, judgements[faces.info.name], measuring.judge(faces, advance))
        ]
    own, swapped = judgements[own_name], judgements.get("shuffled")
    others = (
        (swapped, "skull", "another person's of the same group"),
        (judgements.get("attributes"), "skull", "none: control switched off"),
        (other_text, "text", "another person's attributes"),
    )
    diversity = measuring.diversity(own)
    scores, strangeness, unscored = _strangeness(inputs, plan.cfg.seed)
    return Evaluation(
        title=f"Evaluation of {plan.cfg.run_name}",
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        command=plan.command,
        seconds=time.monotonic() - started,
        notice=NOTICE,
        environment=environment(plan.device, plan.dtype) | {"processes": plan.team.size},
        subject=_subject(plan),
        protocol=_protocol(plan, made, gallery.size),
        probes=tuple(_probes(inputs, scores)),
        recognisers=tuple(_recognisers(plan)),
        measures=MEASURES,
        methods=tuple(measuring.method(one) for one in judgements.values()),
        not_run=(*plan.not_run, *unscored, *(edit for edit in edits if isinstance(edit, NotRun))),
        coverage=tuple(measuring.coverage(own, swapped)),
        diversity=() if diversity is None else (diversity,),
        edits=tuple(edit for edit in edits if not isinstance(edit, NotRun)),
        sensitivity=tuple(measuring.sensitivity(own, other, *what) for other, *what in others if other),
        ood=strangeness,
        cases=tuple(_choose_cases(plan, folder, judgements[own_name], judgements)),
    )


def _subject(plan: Plan) -> Subject:
    details = {}
    if (weights := plan.weights.get("model")) is not None:
        details["steps of training"] = weights.step
        details["resolution"] = f"{weights.image_size} px, compared at {plan.inputs.size} px"
    kind = plan.subject.kind
    return Subject(
        kind if kind in ("model", "folder") else "baselines", plan.cfg.run_name, tuple(plan.files), details
    )


def _protocol(plan: Plan, made: Made, gallery_size: int) -> Protocol:
    cfg, inputs = plan.cfg, plan.inputs
    remarks = list(inputs.remarks)
    if "shuffled" in plan.names:
        counts = plan.donors.counts()
        remarks.append(
            f"Skulls of others: {counts['held_out']} of held-out people of the same group, {counts['train']} of "
            f"training people of the same group, {counts['outside']} of the same sex and age level only, "
            f"{counts['nobody']} of nobody (left out)."
        )
    if made.ridge_choice:
        remarks.append(f"PCA + ridge, chosen on the validation split: {made.ridge_choice}.")
    config = cfg.model_dump()
    return Protocol(
        preset=plan.preset,
        split=cfg.split,
        manifests=tuple(inputs.manifests),
        num_training=len(inputs.train),
        gallery_size=gallery_size,
        gallery_subjects=tuple(record.subject for record in inputs.gallery),
        confidence=plan.resampling.confidence,
        bootstrap=cfg.bootstrap,
        seed=cfg.seed,
        sampling=config["sampling"] if plan.weights else {},
        config=config,
        cohort=inputs.cohort,
        remarks=tuple(remarks),
    )


def _strangeness(
    inputs: Inputs, seed: int
) -> tuple[Sequence[float | None], OutOfDistribution | None, list[NotRun]]:
    """Return how unlike the training skulls each probe's skull is."""
    try:
        if not inputs.trained_on:
            raise OddityError(f"{inputs.root} has no training list; data.trained_on=MANIFEST names another")
        train = skull_features(cases_of(inputs.trained_on), inputs.size, SIDE)
        probes = skull_features(inputs.probe_cases, inputs.size, SIDE)
        subjects = [record.subject for record in inputs.trained_on]
        scores, distribution = score_skulls(probes, train, subjects, seed)
    except OddityError as error:
        missing = NotRun("ood", "out-of-distribution score", str(error))
        return [None] * len(inputs.rows), None, [missing]
    return [float(score) for score in scores], distribution, []


def _probes(inputs: Inputs, scores: Sequence[float | None]) -> list[Probe]:
    return [
        Probe(
            name=case.name,
            subject=record.subject,
            skull_sha256=picture_sha256(record.skull_path),
            truth_sha256=picture_sha256(face_of(record)),
            sex=record.biometrics.sex,
            age=float(record.biometrics.age),
            ethnicity=record.biometrics.ethnicity,
            body_mass=record.biometrics.body_mass,
            groups=groups_of(record.biometrics),
            ood=score,
        )
        for record, case, score in zip(inputs.probes, inputs.probe_cases, scores, strict=True)
    ]


def _recognisers(plan: Plan) -> list[Recogniser]:
    content = sha256()
    for record in plan.inputs.gallery:
        content.update(f"{record.subject} {picture_sha256(face_of(record))}\n".encode())
    return [
        Recogniser(j.name, j.label, j.distance, j.note, j.identity, content.hexdigest()) for j in plan.judges
    ]


def _choose_cases(
    plan: Plan, folder: Path, own: Judgement, judgements: dict[str, Judgement]
) -> list[ShownCase]:
    """Return the best, median and worst probes by rank, then by distance; write their pictures."""
    recogniser = plan.judges[0].name
    verdict = own.verdicts[recogniser]
    ranked = np.flatnonzero(verdict.ranks > 0)
    order = ranked[
        np.lexsort((np.nan_to_num(verdict.own[ranked], nan=np.inf), verdict.ranks[ranked]))
    ].tolist()
    middle = max(0, (len(order) - SHOWN_CASES) // 2)
    selection: dict[str, list[int]] = {
        "best": order[:SHOWN_CASES],
        "worst": order[-SHOWN_CASES:][::-1],
        "median": order[middle : middle + SHOWN_CASES],
    }
    kinds = {i: kind for kind in ("median", "worst", "best") for i in selection[kind]}  # the best counts most
    cases = []
    (folder / CASES).mkdir(exist_ok=True)
    for kind in ("best", "median", "worst"):
        for i in selection[kind]:
            if kinds[i] == kind:
                pictures = _case_pictures(plan.inputs, folder, own, judgements, i, int(verdict.nearest[i]))
                distance = None if np.isnan(verdict.own[i]) else float(verdict.own[i])
                case = (kind, i, own.faces.info.name, recogniser, int(verdict.ranks[i]), distance, pictures)
                cases.append(ShownCase(*case))
    return cases


def _case_pictures(
    inputs: Inputs, folder: Path, own: Judgement, judgements: dict[str, Judgement], probe: int, nearest: int
) -> tuple[CasePicture, ...]:
    case, row = inputs.probe_cases[probe], int(inputs.rows[probe])
    pictures = [("skull", "skull", to_uint8(read_skull(case, inputs.size).mean(axis=2)))]

    def show(role: str, label: str, path: Path) -> None:
        pictures.append((role, label, read_grey(path, inputs.size)))

    show("reconstruction", own.faces.info.label, own.faces.pictures[probe][0])
    show("truth", "true face", face_of(inputs.gallery[row]))
    if nearest >= 0 and nearest != row:
        show("nearest", "nearest in the gallery", face_of(inputs.gallery[nearest]))
    for name in SHOWN_BESIDE:
        if name in judgements and name != own.faces.info.name and probe in judgements[name].faces.pictures:
            show(name, judgements[name].faces.info.label, judgements[name].faces.pictures[probe][0])
    for role, _, picture in pictures:
        write_png(folder / CASES / f"{case.name}_{role}.png", picture)
    return tuple(CasePicture(role, label, f"{CASES}/{case.name}_{role}.png") for role, label, _ in pictures)
