"""The report's charts: match curves, best of k, and bars by group, each with its legend and caption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from muti_control.evaluation.report import markup, svg
from muti_control.evaluation.report.cells import label_of
from muti_control.evaluation.report.markup import Numbering
from muti_control.evaluation.report.words import NEUTRAL, Roles, plural, sentence
from muti_control.evaluation.results.results import Coverage, Curve, Evaluation, Figure

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
        if method.name == NEUTRAL:
            found[method.name] = "ceiling neutral"
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
    """Best of k faces and k faces together, beside the same with the skulls of others."""
    best = (
        "Is the true face within the best of k? A hit is a drawn face with the true face within the given rank; "
        "the curve is the chance of at least one hit among k faces, beside that of faces drawn for the skull of "
        f"another person. On {_probes_of(evaluation.coverage)}."
    )
    joint = (
        "Do k faces find more together? The gallery is ordered by the mean distance to the first k faces drawn, which "
        "takes no knowledge of the truth, beside the same with the skull of another person."
    )
    parts = [(part, part.curves) for part in evaluation.coverage]
    together = [(part, part.together) for part in evaluation.coverage if part.together]
    return _of_k(evaluation, numbers, parts, "Best of k", "at least one hit, %", best) + _of_k(
        evaluation, numbers, together, "k together", "found, %", joint
    )


def _of_k(
    evaluation: Evaluation,
    numbers: Numbering,
    parts: Sequence[tuple[Coverage, Mapping[str, Curve]]],
    name: str,
    axis: str,
    caption: str,
) -> str:
    """A figure of curves over the number of faces, a panel for each recogniser and rank."""
    panels: list[str] = []
    keys: dict[tuple[str, str], None] = {}
    look = styles(evaluation)
    for part, curves in parts:
        judge = evaluation.recogniser(part.recogniser)
        lines = [
            svg.Line(
                label_of(evaluation, n), look[n], c.x, _hundred(c.value), _hundred(c.low), _hundred(c.high)
            )
            for n, c in curves.items()
        ]
        keys |= {(look[n], label_of(evaluation, n)): None for n in curves}
        at = range(1, part.draws + 1)
        share = min(part.within / evaluation.protocol.gallery_size, 1)
        guesses = [1 - (1 - share) ** k if curves is part.curves else share for k in at]
        lines.append(svg.Line("guessing", "chance", list(at), [100 * guess for guess in guesses]))
        top = svg.nice_top(max(max(line.high or line.y) for line in lines))
        step = max(1, part.draws // 8)
        marks = sorted({1, *range(step, part.draws + 1, step), part.draws})
        title = f"within rank {part.within}" if part.within > 1 else "rank 1"
        title = f"{judge.label if judge else part.recogniser}, {title}"
        chart = svg.line_chart(f"{name}: {title}", lines, "faces drawn per skull, k", axis, False, top, marks)
        panels.append(markup.panel(title, chart))
    if not panels:
        return ""
    legend = markup.legend([*keys, ("chance", "guessing")])
    return markup.figure(numbers.figure(), caption, *panels, legend=legend)


def _probes_of(parts: tuple[Coverage, ...]) -> str:
    counts = sorted({len(part.probes) for part in parts})
    return " and ".join(plural(count, "skull") for count in counts)


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
