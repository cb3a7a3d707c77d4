"""The figures of the report as SVG, drawn by matplotlib. Equal results give equal files."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any

import numpy as np

from muti_control.evaluation.report.words import NEUTRAL, Roles, label_of
from muti_control.evaluation.results.results import Coverage, Curve, Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from muti_control.evaluation.sweep import Row

    Panel = tuple[str, Callable[[Axes], None]]

_LOOK: dict[str, Any] = {  # of text and axes; the salt and a missing date make the file reproducible
    "svg.hashsalt": "iccr-diff",
    "svg.fonttype": "path",
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.edgecolor": "#5d6066",
    "grid.color": "#e3e4e1",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
}
_EVALUATED = ("#1f5fb4", "#b3304a", "#a0479a")
_BASELINES = ("#c8620a", "#2c8a57", "#a0479a", "#8a6d1c", "#b3304a")
_GREY, _BLACK, _WARN = "#8d9096", "#1c1d1f", "#a63d12"
_GUESSING: dict[str, Any] = {"color": _GREY, "linewidth": 0.9, "label": "guessing"}


def styles(evaluation: Evaluation) -> dict[str, dict[str, Any]]:
    """Return the line style of each method by its name, the same in every figure."""
    evaluated = iter([{"color": colour, "linewidth": 2.4} for colour in _EVALUATED])
    dashes = [{"color": _GREY, "linestyle": dash, "linewidth": 1.4} for dash in ("--", ":", "-.")]
    looks: dict[str, Iterator[dict[str, Any]]] = {
        "model": evaluated,
        "folder": evaluated,
        "baseline": iter([{"color": colour, "linewidth": 1.5} for colour in _BASELINES]),
        "control": iter(dashes),
        "ceiling": repeat({"color": _BLACK, "linestyle": (0, (9, 4)), "linewidth": 1.4}),
        "limit": repeat({"color": _BLACK, "linestyle": ":", "linewidth": 1.4}),
    }
    result = {method.name: next(looks[method.kind], dashes[0]) for method in evaluation.methods}
    if NEUTRAL in result:
        result[NEUTRAL] = result[NEUTRAL] | {"linestyle": (0, (4, 3))}
    return result


def match_curves(evaluation: Evaluation) -> str | None:
    """Return the share of skulls found within each rank, one panel for each recogniser."""
    look, size, roles = styles(evaluation), evaluation.protocol.gallery_size, Roles.of(evaluation)
    banded = [method.name for method in (roles.evaluated, roles.baseline) if method is not None]

    def draw(recogniser: str, axes: Axes) -> None:
        for method in evaluation.methods:
            if recogniser in method.identification and method.name != "permuted":  # guessing: see below
                curve = method.identification[recogniser].cmc
                _line(axes, curve, method.label, look[method.name], method.name in banded)
        every = np.arange(1, size + 1)
        axes.plot(every, 100 * every / size, **_GUESSING)
        axes.set_xscale("log")
        marks = [rank for rank in (1, 2, 5, 10, 20, 50, 100, 200, 500) if rank < 0.75 * size] + [size]
        axes.set_xticks(marks, [str(mark) for mark in marks], minor=False)
        axes.set_xticks([], minor=True)
        axes.set(xlim=(1, size), ylim=(0, 102), xlabel="rank (logarithmic)", ylabel="found within rank, %")

    names = {name for method in evaluation.methods for name in method.identification}
    return _svg(
        [(judge.label, partial(draw, judge.name)) for judge in evaluation.recognisers if judge.name in names]
    )


def coverage(evaluation: Evaluation, together: bool) -> str | None:
    """Return the chance to find the true face with k faces of one skull: the best of them, or all together."""
    look, size = styles(evaluation), evaluation.protocol.gallery_size

    def draw(part: Coverage, axes: Axes) -> None:
        for name, curve in (part.together if together else part.curves).items():
            _line(axes, curve, label_of(evaluation, name), look[name], True)
        k, share = np.arange(1, part.draws + 1), min(part.within / size, 1)
        guesses = np.full(len(k), share) if together else 1 - (1 - share) ** k
        axes.plot(k, 100 * guesses, **_GUESSING)
        axes.set_xticks(sorted({1, *range(max(1, part.draws // 8), part.draws + 1, max(1, part.draws // 8))}))
        axes.set(xlabel="faces per skull, k", ylabel="found, %" if together else "at least one hit, %")
        axes.set_ylim(0, 102)

    panels = []
    for part in evaluation.coverage:
        judge = evaluation.recogniser(part.recogniser)
        if part.together or not together:
            title = f"{judge.label if judge else part.recogniser}, within rank {part.within}"
            panels.append((title, partial(draw, part)))
    return _svg(panels)


def groups(evaluation: Evaluation, key: str, name: str) -> str | None:
    """Return bars with intervals of ``key`` (rank1 or rank5) by group of people, one panel for each attribute."""
    roles, look = Roles.of(evaluation), styles(evaluation)
    methods = [m for m in (roles.evaluated, roles.baseline, roles.ceiling) if m is not None]
    if roles.judge is None or not methods:
        return None
    judge = roles.judge.name
    first = methods[0].identification[judge].groups
    attributes = list(dict.fromkeys(group.attribute for group in first))
    most = max((sum(group.attribute == a for group in first) for a in attributes), default=0)
    thick = 0.8 / len(methods)

    def draw(attribute: str, axes: Axes) -> None:
        labels = [f"{g.group} (n = {g.rank1.n})" for g in first if g.attribute == attribute]
        places = {g.group: i for i, g in enumerate(g for g in first if g.attribute == attribute)}
        for k, method in enumerate(methods):
            for group in method.identification[judge].groups:
                if group.attribute != attribute or group.group not in places:
                    continue
                figure = getattr(group, key)
                y = places[group.group] - 0.4 + (k + 0.5) * thick
                own = {
                    "color": look[method.name]["color"],
                    "alpha": 0.45 if method.kind == "ceiling" else 1,
                }
                axes.barh(y, 100 * figure.value, 0.9 * thick, label=method.label, **own)
                if figure.low is not None:
                    axes.plot([100 * figure.low, 100 * figure.high], [y, y], color=_BLACK, linewidth=0.9)
        axes.set_yticks(range(len(labels)), labels)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.set(xlim=(0, 102), ylim=(most - 0.4, -0.6), xlabel=f"{name}, %")

    return _svg(
        [(f"By {attribute}", partial(draw, attribute)) for attribute in attributes], 0.7 + 0.42 * most
    )


def unusual_skulls(evaluation: Evaluation) -> str | None:
    """Return the histogram of the scores of unlikeness beside those of known skulls."""
    ood = evaluation.ood
    scores = [probe.ood for probe in evaluation.probes if probe.ood is not None]
    if ood is None or not scores:
        return None
    edges, threshold = np.array(ood.edges), ood.threshold
    shares = np.histogram(np.clip(scores, edges[0], edges[-1]), edges)[0] / len(scores)

    def draw(axes: Axes) -> None:
        axes.stairs(100 * np.array(ood.reference), edges, fill=True, color="#c9cbce", label="known skulls")
        axes.stairs(100 * shares, edges, color=_EVALUATED[0], linewidth=1.8, label="skulls of this run")
        axes.axvline(threshold, color=_WARN, linestyle="--", linewidth=1.2, label="flagged above")
        axes.set(xlabel="score of unlikeness", ylabel="% of skulls", xlim=(edges[0], edges[-1]))

    return _svg([("", draw)])


def sweep(rows: Sequence[Row]) -> str | None:
    """Return identity, NME and realism over the scale, a line for each mode. rows: of a sweep, unguided first."""
    free, *guided = rows

    def draw(key: str, axes: Axes) -> None:
        for mode, colour in zip(dict.fromkeys(row.mode for row in guided), _BASELINES, strict=False):
            points = sorted((row.scale, getattr(row, key)) for row in guided if row.mode == mode)
            axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3, label=mode)
        axes.axhline(getattr(free, key), color=_BLACK, linestyle="--", linewidth=1.2, label="unguided")
        axes.set(xscale="log", xlabel="spgd.scale")

    titles = {"identity": "Distance to the true face", "nme": "NME by dlib, %", "realism": "KID x 1000"}
    keys = [key for key in titles if all(getattr(row, key) is not None for row in rows)]
    return _svg([(f"{titles[key]} (lower is better)", partial(draw, key)) for key in keys])


def _line(axes: Axes, curve: Curve, label: str, look: dict[str, Any], band: bool) -> None:
    low, value, high = (100 * np.array(row) for row in (curve.low, curve.value, curve.high))
    axes.plot(curve.x, value, label=label, **look)
    if band:
        axes.fill_between(curve.x, low, high, color=look["color"], alpha=0.13, linewidth=0)


def _svg(panels: Sequence[Panel], height: float = 2.9) -> str | None:
    """Return panels, three in a row, with one legend below them; None without panels. height: of a row, in inches."""
    if not panels:
        return None
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    across = min(3, len(panels))
    rows = -(-len(panels) // across)
    with rc_context(_LOOK):  # type: ignore[arg-type]  # its keys are literals
        figure = Figure(
            (3.6 * max(across, 1.5), height * rows + 0.6),
            layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1),
        )
        every = figure.subplots(rows, across, squeeze=False).flat
        for axes, (title, draw) in zip(every, panels, strict=False):
            draw(axes)
            axes.set_title(title)
        for axes in list(figure.axes)[len(panels) :]:
            axes.remove()
        figure.legend(*_entries(figure.axes), loc="outside lower center", ncols=min(4, 2 * across))
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _entries(panels: Iterable[Axes]) -> tuple[list[Any], list[str]]:
    """Return the legend's handles and labels, each label once."""
    entries: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    return list(entries.values()), list(entries)
