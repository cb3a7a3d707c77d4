"""The parts of the report after its main table, one function each; each is empty where the run has nothing for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from muti_control.evaluation.report import markup, svg
from muti_control.evaluation.report.markup import Cell, Numbering
from muti_control.evaluation.report.words import (
    Roles,
    plural,
    sentence,
    unusual_skulls,
)
from muti_control.evaluation.results import (
    CASE_KINDS,
    Case,
    Coverage,
    Evaluation,
    Figure,
    Measure,
    Measured,
    Probe,
    Recogniser,
)

_CURVE_SKIPS = ("permuted",)  # the line of guessing stands for it


def styles(evaluation: Evaluation) -> dict[str, str]:
    """Method's name -> CSS classes of its colour and dash, the same in every chart."""
    found, colours = {}, iter(("s0", "s5", "s3"))
    baselines, controls = (
        iter(("s1", "s2", "s3", "s4", "s5")),
        iter(("control", "control second", "control third")),
    )
    for method in evaluation.methods:
        kinds = {"model": colours, "folder": colours, "baseline": baselines, "control": controls}
        found[method.name] = next(kinds[method.kind], "control") if method.kind in kinds else method.kind
    return found


def curves(evaluation: Evaluation, numbers: Numbering) -> str:
    """Cumulative match curves, a panel per recogniser."""
    panels: list[str] = []
    keys: dict[tuple[str, str], None] = {}  # an ordered set
    look, size = styles(evaluation), evaluation.protocol.gallery_size
    for judge in evaluation.recognisers:
        lines = []
        for method in evaluation.methods:
            found = method.identification.get(judge.name)
            if found is None or method.name in _CURVE_SKIPS:
                continue
            band = method.kind in ("model", "folder", "baseline", "ceiling")
            cmc = found.cmc
            low, high = (_hundred(cmc.low), _hundred(cmc.high)) if band else (None, None)
            lines.append(svg.Line(method.label, look[method.name], cmc.x, _hundred(cmc.value), low, high))
            keys[look[method.name], method.label] = None
        if not lines:
            continue
        x = lines[0].x
        lines.append(svg.Line("guessing", "chance", x, [100 * rank / size for rank in x]))
        ranks = [mark for mark in (1, 2, 5, 10, 20, 50, 100, 200, 500) if mark < size * 0.75] + [size]
        chart = svg.line_chart(
            f"Cumulative match curves under {judge.label}",
            lines,
            "rank (logarithmic)",
            "found within rank, %",
            True,
            100,
            ranks,
        )
        panels.append(markup.panel(judge.label, chart))
    if not panels:
        return ""
    caption = (
        "Cumulative match curves: the share of skulls whose true face is among the first so many of the gallery. "
        f"Bands: {100 * evaluation.protocol.confidence:.0f} % intervals over skulls; thin line: guessing."
    )
    legend = markup.legend([*keys, ("chance", "guessing")])
    return markup.figure(numbers.figure(), caption, *panels, legend=legend)


def _hundred(values: tuple[float, ...]) -> list[float]:
    return [100 * value for value in values]


def coverage(evaluation: Evaluation, numbers: Numbering) -> str:
    """Best of k faces, beside the same with the skulls of others; and how far the draws lie apart."""
    panels: list[str] = []
    keys: dict[tuple[str, str], None] = {}
    look = styles(evaluation)
    for part in evaluation.coverage:
        judge = evaluation.recogniser(part.recogniser)
        lines = [
            svg.Line(
                _label(evaluation, n), look[n], c.x, _hundred(c.value), _hundred(c.low), _hundred(c.high)
            )
            for n, c in part.curves.items()
        ]
        keys |= {(look[n], _label(evaluation, n)): None for n in part.curves}
        at = range(1, part.draws + 1)
        share = min(part.within / evaluation.protocol.gallery_size, 1)
        lines.append(svg.Line("guessing", "chance", list(at), [100 * (1 - (1 - share) ** k) for k in at]))
        top = svg.nice_top(max(max(line.high or line.y) for line in lines))
        step = max(1, part.draws // 8)
        marks = sorted({1, *range(step, part.draws + 1, step), part.draws})
        title = f"within rank {part.within}" if part.within > 1 else "rank 1"
        title = f"{judge.label if judge else part.recogniser}, {title}"
        chart = svg.line_chart(
            f"Best of k: {title}", lines, "faces drawn per skull, k", "at least one hit, %", False, top, marks
        )
        panels.append(markup.panel(title, chart))
    figure = ""
    if panels:
        caption = (
            "Is the true face within the best of k? A hit is a drawn face with the true face within the given rank; "
            "the curve is the chance of at least one hit among k faces, beside that of faces drawn for the skull of "
            f"another person. On {_probes_of(evaluation.coverage)}."
        )
        figure = markup.figure(
            numbers.figure(), caption, *panels, legend=markup.legend([*keys, ("chance", "guessing")])
        )
    return figure + _diversity(evaluation, numbers)


def _probes_of(parts: tuple[Coverage, ...]) -> str:
    counts = sorted({len(part.probes) for part in parts})
    return " and ".join(plural(count, "skull") for count in counts)


def _label(evaluation: Evaluation, name: str) -> str:
    method = evaluation.method(name)
    return name if method is None else method.label


def _diversity(evaluation: Evaluation, numbers: Numbering) -> str:
    names = [m for m in evaluation.measures if any(m.name in part.measures for part in evaluation.diversity)]
    if not names:
        return ""
    rows = [
        (
            Cell(_label(evaluation, part.method)),
            [Cell(str(part.draws)), *(_measure_cell(part.measures, m) for m in names)],
        )
        for part in evaluation.diversity
    ]
    head = [Cell("Method"), Cell("faces per skull"), *(_measure_head(m) for m in names)]
    return markup.table(
        numbers.table(),
        "Diversity: mean over pairs of faces drawn for one skull; 0 if they are all one.",
        head,
        rows,
    )


def _measure_head(measure: Measure) -> Cell:
    return Cell(measure.label + (f", {measure.unit}" if measure.unit else ""))


def _measure_cell(measures: Mapping[str, Measured], measure: Measure) -> Cell:
    measured = measures.get(measure.name)
    return (
        Cell("\N{EN DASH}", style="faint")
        if measured is None
        else _figure_cell(measured.figure, measure.decimals)
    )


def _figure_cell(figure: Figure | None, decimals: int, factor: float = 1.0, unit: str = "") -> Cell:
    if figure is None:
        return Cell("\N{EN DASH}", style="faint")

    def text(value: float) -> str:
        return f"{value * factor:.{decimals}f}".replace("-", markup.MINUS)

    small = "" if figure.low is None or figure.high is None else f"[{text(figure.low)}, {text(figure.high)}]"
    return Cell(text(figure.value) + unit, small)


def groups(evaluation: Evaluation, numbers: Numbering) -> str:
    """Bars per group with intervals and n."""
    roles, look = Roles.of(evaluation), styles(evaluation)
    chosen = [m for m in (roles.evaluated, roles.baseline, roles.ceiling) if m is not None]
    if roles.judge is None or not chosen:
        return ""
    judge = roles.judge
    first = chosen[0].identification[judge.name]
    key, name = ("rank1", "rank-1") if first.rank1.value >= 0.1 else ("rank5", "rank-5")
    attributes = dict.fromkeys(group.attribute for group in first.groups)
    tops = [getattr(g, key).high or 0 for m in chosen for g in m.identification[judge.name].groups]
    top = svg.nice_top(100 * max(tops, default=1))
    panels = []
    for attribute in attributes:
        rows = []
        for group in (g for g in first.groups if g.attribute == attribute):
            bars = []
            for method in chosen:
                same = [
                    g for g in method.identification[judge.name].groups
                    if (g.attribute, g.group) == (attribute, group.group)
                ]  # fmt: skip
                bars += [_bar(getattr(g, key), look[method.name]) for g in same]
            rows.append((f"{group.group} (n = {group.rank1.n})", bars))
        chart = svg.bar_chart(f"{name} by {attribute}", rows, top, f"{name}, %")
        panels.append(markup.panel(f"By {attribute}", chart))
    if not panels:
        return ""
    caption = (
        f"{sentence(name)} ({judge.label}) by group, with {100 * evaluation.protocol.confidence:.0f} % intervals; "
        "n: skulls. Groups were compared without correction for their number: read differences with care."
    )
    legend = markup.legend([(look[m.name], m.label) for m in chosen], "bar")
    return markup.figure(numbers.figure(), caption, *panels, legend=legend, packed=True)


def _bar(figure: Figure, style: str) -> svg.Bar:
    low, high = (None if bound is None else 100 * bound for bound in (figure.low, figure.high))
    return svg.Bar(style, 100 * figure.value, low, high)


def cases(evaluation: Evaluation, folder: Path, numbers: Numbering) -> str:
    """Best, median and worst skulls as pictures."""
    if not evaluation.cases:
        return ""
    parts = []
    for kind in CASE_KINDS:
        found = [case for case in evaluation.cases if case.kind == kind]
        if found:
            parts.append(
                f"<h3>{sentence(kind)}</h3>" + "".join(_case(evaluation, case, folder) for case in found)
            )
    first = evaluation.cases[0]
    judge = evaluation.recogniser(first.recogniser)
    under = f" under {judge.label}" if judge else ""
    caption = (
        f"Skulls by the rank of the true face for {_label(evaluation, first.method)}"
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


def person(probe: Probe) -> str:
    """A probe in words."""
    body = probe.groups.get("body mass", f"body mass level {probe.body_mass}")
    return f"{probe.name}: {probe.ethnicity} {probe.sex}, {probe.age:.0f} years, {body}"


def edits(evaluation: Evaluation, folder: Path, numbers: Numbering) -> str:
    """How the face follows an edit, in figures and pictures."""
    if not evaluation.edits:
        return ""
    rows = [
        (
            Cell(part.label, _label(evaluation, part.method)),
            [
                Cell(str(part.projection.n)),
                _figure_cell(part.projection, 0, 100),
                _figure_cell(part.angle, 0),
                _figure_cell(part.true_size, 2),
                _figure_cell(part.predicted_size, 2),
                _figure_cell(part.kept_before, 1, 100),
                _figure_cell(part.kept, 1, 100),
            ],
        )
        for part in evaluation.edits
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
    spaces = dict.fromkeys(part.space for part in evaluation.edits)
    caption = (
        "Edits against true variants of the same people, whose skull is the same: the component of the change made "
        "along the true change, the angle between the two, and whether identity is kept. "
        f"Measured in {'; '.join(spaces)}."
    )
    grid = [(part, shown) for part in evaluation.edits for shown in part.pictures]
    parts = []
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
    return markup.table(numbers.table(), caption, head, rows) + plate


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
            [Cell(part.change, style="words"), *(_measure_cell(part.measures, m) for m in names)],
        )
        for part in evaluation.sensitivity
    ]
    caption = "Sensitivity: how much the face changes when one condition does, all else (the noise too) being equal."
    return markup.table(
        numbers.table(),
        caption,
        [Cell("Condition"), Cell("changed to", style="words"), *(_measure_head(m) for m in names)],
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
