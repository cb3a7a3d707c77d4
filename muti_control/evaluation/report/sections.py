"""The parts of the report after its main table, one function each; each is empty where the run has nothing for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from muti_control.evaluation.report import markup, svg
from muti_control.evaluation.report.cells import figure_cell, label_of, measure_cell, measure_head, person
from muti_control.evaluation.report.markup import Cell, Numbering
from muti_control.evaluation.report.words import AUTOENCODER, Roles, plural, sentence, unusual_skulls
from muti_control.evaluation.results.results import Case, Evaluation, Recogniser


def diversity(evaluation: Evaluation, numbers: Numbering) -> str:
    """How far the faces drawn for one skull lie apart."""
    names = [m for m in evaluation.measures if any(m.name in part.measures for part in evaluation.diversity)]
    if not names:
        return ""
    rows = [
        (
            Cell(label_of(evaluation, part.method)),
            [Cell(str(part.draws)), *(measure_cell(part.measures, m) for m in names)],
        )
        for part in evaluation.diversity
    ]
    head = [Cell("Method"), Cell("faces per skull"), *(measure_head(m) for m in names)]
    return markup.table(
        numbers.table(),
        "Diversity: mean over pairs of faces drawn for one skull; 0 if they are all one.",
        head,
        rows,
    )


def cases(evaluation: Evaluation, folder: Path, numbers: Numbering) -> str:
    """Best, median and worst skulls as pictures."""
    if not evaluation.cases:
        return ""
    parts = []
    for kind in ("best", "median", "worst"):
        found = [case for case in evaluation.cases if case.kind == kind]
        if found:
            parts.append(
                f"<h3>{sentence(kind)}</h3>" + "".join(_case(evaluation, case, folder) for case in found)
            )
    first = evaluation.cases[0]
    judge = evaluation.recogniser(first.recogniser)
    under = f" under {judge.label}" if judge else ""
    caption = (
        f"Skulls by the rank of the true face for {label_of(evaluation, first.method)}"
        f"{under}: the best, those in the middle, and the worst; none chosen by hand."
    )
    return markup.plate(numbers.figure(), caption, parts)


def _case(evaluation: Evaluation, case: Case, folder: Path) -> str:
    probe = evaluation.probes[case.probe]
    distance = "" if case.distance is None else f", distance {case.distance:.3f}"
    text = f"{person(probe)}. Rank {case.rank} of {evaluation.protocol.gallery_size:,}{distance}."
    shown = [
        (markup.picture(folder / p.path, f"{p.label} of {probe.name}"), sentence(p.label), p.caption)
        for p in case.pictures
    ]
    return markup.strip(text, shown)


def edits(evaluation: Evaluation, folder: Path, numbers: Numbering) -> str:
    """How the face follows an edit, in figures, a table for each way to measure it, and pictures."""
    if not evaluation.edits:
        return ""
    spaces = dict.fromkeys(part.space for part in evaluation.edits)
    tables = [_edit_table(evaluation, space, numbers) for space in spaces]
    parts = []
    grid = [(edit, shown) for edit in evaluation.edits for shown in edit.pictures]
    for part, shown in grid:
        named = (
            ("before", shown.before), ("after", shown.after),
            ("true person before", shown.true_before), ("true person after", shown.true_after),
        )  # fmt: skip
        pictures = [
            (markup.picture(folder / path, f"{label}: {shown.caption}"), sentence(label), "")
            for label, path in named
            if path is not None
        ]
        text = f"{sentence(part.label)}. {person(evaluation.probes[shown.probe])}. {sentence(shown.caption)}"
        parts.append(markup.strip(text, pictures))
    plate = ""
    if parts:
        about = "Edits: the reconstruction before and after, and the true person's two faces."
        plate = markup.plate(numbers.figure(), about, parts)
    return "".join(tables) + plate


def _edit_table(evaluation: Evaluation, space: str, numbers: Numbering) -> str:
    """The edits that one reader measured."""
    rows = [
        (
            Cell(part.label, label_of(evaluation, part.method)),
            [
                Cell(str(part.projection.n)),
                figure_cell(part.projection, 0, 100),
                figure_cell(part.angle, 0),
                figure_cell(part.true_size, 2),
                figure_cell(part.predicted_size, 2),
                figure_cell(part.kept_before, 1, 100),
                figure_cell(part.kept, 1, 100),
            ],
        )
        for part in evaluation.edits
        if part.space == space
    ]
    head = [
        Cell("Edit"),
        Cell("pairs"),
        Cell("of the true change, %", "100 is right"),
        Cell("angle to it, degrees", "0 is right"),
        Cell("true change"),
        Cell("change made"),
        Cell("own face first, %", "before"),
        Cell("own face first, %", "after"),
    ]
    caption = (
        "Edits against true variants of the same people, whose skull is the same: the component of the change made "
        "along the true change, the angle between the two, and whether identity is kept. "
        f"Measured in {space}."
    )
    if any(part.space == space and part.method == AUTOENCODER for part in evaluation.edits):
        caption += " True faces through the autoencoder make all of it: what they lack of 100 % is lost in measuring."
    return markup.table(numbers.table(), caption, head, rows)


def sensitivity(evaluation: Evaluation, numbers: Numbering) -> str:
    """What each condition changes in the face."""
    names = [
        m for m in evaluation.measures if any(m.name in part.measures for part in evaluation.sensitivity)
    ]
    if not names:
        return ""
    rows = [
        (
            Cell(sentence(part.condition)),
            [Cell(part.change, style="words"), *(measure_cell(part.measures, m) for m in names)],
        )
        for part in evaluation.sensitivity
    ]
    caption = "Sensitivity: how much the face changes when one condition does, all else (the noise too) being equal."
    return markup.table(
        numbers.table(),
        caption,
        [Cell("Condition"), Cell("changed to", style="words"), *(measure_head(m) for m in names)],
        rows,
    )


def out_of_distribution(evaluation: Evaluation, numbers: Numbering) -> str:
    """The scores of the skulls beside those of known ones, and which are flagged."""
    ood = evaluation.ood
    scores = [(probe.ood, i) for i, probe in enumerate(evaluation.probes) if probe.ood is not None]
    if ood is None or not scores:
        return ""
    edges = np.array(ood.edges)
    clipped = np.clip([score for score, _ in scores], edges[0], edges[-1])
    shares = np.histogram(clipped, edges)[0] / len(scores)
    chart = svg.histogram(
        "Scores of unlikeness",
        edges.tolist(),
        ood.reference,
        shares.tolist(),
        ood.threshold,
        "score",
        "flagged",
    )
    caption = (
        f"How unlike the training skulls each skull is: {ood.score}. Filled: "
        f"{plural(ood.num_reference, 'known skull')}; outline: the {plural(len(scores), 'skull')} of this run (the "
        f"last bin holds all beyond). Flagged above {ood.threshold:.3g}: {ood.rule}."
    )
    legend = markup.legend([("s0", "skulls of this run")])
    figure = markup.figure(numbers.figure(), caption, chart, legend=legend)
    return (
        markup.paragraph(unusual_skulls(evaluation))
        + figure
        + _flagged(evaluation, scores, ood.threshold, numbers)
    )


def _flagged(
    evaluation: Evaluation, scores: list[tuple[float, int]], threshold: float, numbers: Numbering
) -> str:
    flagged = sorted((pair for pair in scores if pair[0] > threshold), reverse=True)
    if not flagged:
        return ""
    roles = Roles.of(evaluation)
    method, judge = roles.evaluated or roles.baseline, roles.judge
    rows = []
    for score, i in flagged[:12]:
        rank = None if method is None or judge is None else method.identification[judge.name].ranks[i]
        rows.append(
            (
                Cell(person(evaluation.probes[i])),
                [Cell(f"{score:.2f}"), Cell("\N{EN DASH}" if rank is None else str(rank))],
            )
        )
    more = f" The {len(rows)} highest of {len(flagged)}." if len(flagged) > len(rows) else ""
    return markup.table(
        numbers.table(),
        f"Flagged skulls: a reconstruction from them should be trusted less.{more}",
        [Cell("Skull"), Cell("score"), Cell("rank")],
        rows,
    )


def not_run(evaluation: Evaluation, numbers: Numbering) -> str:
    """What the protocol asks for and the run has not."""
    rows = [(Cell(part.label), [Cell(part.reason, style="words")]) for part in evaluation.not_run]
    if not rows:
        return ""
    return markup.table(
        numbers.table(),
        "Not measured in this run.",
        [Cell("Method or measure"), Cell("Reason", style="words")],
        rows,
    )


def methods(evaluation: Evaluation) -> str:
    """What each method's face is."""
    rows = []
    for method in evaluation.methods:
        time = "" if method.seconds is None else f" Its faces took {_duration(method.seconds)}."
        rows.append((sentence(method.label), method.note + time))
    return markup.definitions(rows)


def protocol(evaluation: Evaluation) -> str:
    """How it was measured, with what, and how to repeat it."""
    p, environment = evaluation.protocol, evaluation.environment
    files = [*evaluation.subject.files, *p.manifests]
    people = len(set(p.gallery_subjects))
    intervals = (
        f"percentile bootstrap over skulls, {p.bootstrap:,} draws, {100 * p.confidence:.0f} %, gallery fixed; "
        "exact for shares of 0 and 1"
    )
    identities = {judge.name: judge.identity for judge in evaluation.recognisers}
    rows = [
        ("Preset", p.preset),
        ("Skulls", f"{len(evaluation.probes):,} of the split {p.split!r}"),
        ("Gallery", f"{p.gallery_size:,} faces of {people:,} people, the same for every skull and method"),
        ("Rank", "the place of the true face by distance to the reconstruction; ties count against it"),
        ("Intervals", intervals),
        ("Recognisers", "; ".join(_judge(judge) for judge in evaluation.recognisers)),
        ("Training subjects", f"{p.num_training:,}"),
        ("Seed", str(p.seed)),
        ("Sampling", _inline(p.sampling)),
        ("Cohort", _inline(p.cohort)),
        ("Subject", _inline(evaluation.subject.details)),
        ("Remarks", " ".join(p.remarks)),
        ("Date", evaluation.date),
        ("Time taken", _duration(evaluation.seconds)),
    ]  # fmt: skip
    hashes = [(Path(file.path).name, f"sha256 {file.sha256}") for file in files]
    return (
        markup.definitions(rows)
        + "<h3>Files</h3>" + markup.definitions(hashes)
        + "<h3>To repeat it</h3><pre>" + markup.escape(evaluation.command) + "</pre>"
        + "<h3>Environment</h3>" + markup.definitions([(k, _inline(v)) for k, v in environment.items()])
        + markup.folded("Every setting", _json(p.config))
        + markup.folded("Recognisers: versions and settings", _json(identities))
    )  # fmt: skip


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _judge(judge: Recogniser) -> str:
    return f"{judge.label} ({judge.distance})"


def _inline(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_inline(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(_inline(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
