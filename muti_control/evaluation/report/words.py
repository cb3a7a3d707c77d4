"""The sentences of the report. Each is computed from the figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from muti_control.evaluation.results.columns import Difference, gap, identification_column, picture_columns
from muti_control.evaluation.results.results import (
    Coverage,
    Curve,
    Edit,
    Evaluation,
    Figure,
    Method,
    Recogniser,
)

EVALUATED, RIVALS = ("model", "folder"), ("model", "folder", "baseline")
SHUFFLED = "shuffled"  # the control with the skull of another person
NEUTRAL = "ceiling_neutral"  # the ceiling in the mean surface style
AUTOENCODER = "autoencoder"  # the limit that the true faces reach
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Roles:
    """The methods that the sentences speak of; None where the run has no such method.

    evaluated: the model or folder in question. judge: the first recogniser. baseline: the best by rank-1, then MRR.
    shuffled: the evaluated model with the skulls of others. ceiling: the best that skull and prompt allow, in the true
    face's surface style; neutral: in the mean style. limit: the true face in another pose.
    """

    evaluated: Method | None
    judge: Recogniser | None
    baseline: Method | None
    shuffled: Method | None
    ceiling: Method | None
    neutral: Method | None
    limit: Method | None

    @classmethod
    def of(cls, evaluation: Evaluation) -> Roles:
        """Return the roles of a run's methods."""
        judge = evaluation.recognisers[0] if evaluation.recognisers else None
        methods = [m for m in evaluation.methods if judge is None or judge.name in m.identification]

        def strength(method: Method) -> tuple[float, float]:
            if judge is None:
                return 0.0, 0.0
            figures = method.identification[judge.name]
            return figures.rank1.value, figures.mean_reciprocal_rank.value

        def first(kinds: Sequence[str], *names: str) -> Method | None:
            return next((m for m in methods if m.kind in kinds and (not names or m.name in names)), None)

        return cls(
            evaluated=first(EVALUATED),
            judge=judge,
            baseline=max((m for m in methods if m.kind == "baseline"), key=strength, default=None),
            shuffled=first(["control"], SHUFFLED),
            ceiling=next((m for m in methods if m.kind == "ceiling" and m.name != NEUTRAL), None),
            neutral=first(["ceiling"], NEUTRAL),
            limit=first(["limit"], "turned"),
        )


# ---------------------------------------------------------------- numbers and names
def number(value: float, decimals: int = 1, factor: float = 1.0, sign: bool = False) -> str:
    """Return ``value`` times ``factor`` as text, with a true minus sign."""
    return f"{value * factor:{'+' if sign else ''}.{decimals}f}".replace("-", MINUS)


def per_cent(value: float) -> str:
    """Return a share as text: 0.046 -> "4.6 %"."""
    return f"{number(value, 1, 100)} %"


def with_interval(figure: Figure) -> str:
    """Return a share with its interval: "4.6 % [2.8, 6.8]"."""
    if figure.low is None or figure.high is None:
        return per_cent(figure.value)
    return f"{per_cent(figure.value)} [{number(figure.low, 1, 100)}, {number(figure.high, 1, 100)}]"


def points(gap: Difference, sign: bool = False) -> str:
    """Return a difference of shares in points: "12.3 points [8.1, 16.4]"."""
    value, low, high = (number(v, 1, 100, sign) for v in (gap.value, gap.low, gap.high))
    return f"{value} points [{low}, {high}]"


def _of_mrr(gap: Difference) -> str:
    value, low, high = (number(v, 3, sign=True) for v in (gap.value, gap.low, gap.high))
    return f"MRR {value} [{low}, {high}]"


def plural(count: int, one: str) -> str:
    """Return "1 skull" or "3 skulls"."""
    return f"{count:,} {one}{'' if count == 1 else 's'}"


def the(method: Method) -> str:
    """Return a method's label within a sentence."""
    if method.kind == "folder":
        return "the evaluated folder"
    common = method.label.startswith(("model", "nearest", "mean", "faces"))
    return f"the {method.label}" if common else method.label


def label_of(evaluation: Evaluation, name: str) -> str:
    """Return the label of a method; its name where the run does not know it."""
    method = evaluation.method(name)
    return name if method is None else method.label


def sentence(text: str) -> str:
    """Return the text with a capital letter at its beginning."""
    return text[:1].upper() + text[1:]


# ---------------------------------------------------------------- the first lines
def what_was_evaluated(evaluation: Evaluation) -> str:
    """Return what was evaluated, on which skulls and against which gallery."""
    subject, protocol = evaluation.subject, evaluation.protocol
    what = {
        "model": f"the model {subject.name}",
        "folder": f"the folder of faces {subject.name}",
        "baselines": "the baselines alone",
    }[subject.kind]
    if subject.kind == "model" and subject.files:
        what += f" (sha256 {subject.files[0].sha256[:12]})"
    return (
        f"Evaluated: {what}, on {plural(len(evaluation.probes), 'skull')} of the {protocol.split} split. The gallery "
        f"has {protocol.gallery_size:,} faces. The baselines use {plural(protocol.num_training, 'training subject')}."
    )


def limits(evaluation: Evaluation) -> str:
    """Return what the figures cannot show."""
    roles, lines = Roles.of(evaluation), []
    if evaluation.protocol.cohort:
        lines.append(
            "The people are synthetic: these figures do not show how well real people would be identified."
        )
    if roles.evaluated is not None and roles.judge is not None:
        rank1 = roles.evaluated.identification[roles.judge.name].rank1
        if rank1.low is not None and rank1.high is not None:
            half = 50 * (rank1.high - rank1.low)
            lines.append(f"With {plural(rank1.n, 'skull')}, rank-1 is known to ±{half:.0f} points.")
    if roles.limit is not None and roles.judge is not None:
        rank1 = roles.limit.identification[roles.judge.name].rank1
        lines.append(
            f"The recogniser itself finds {per_cent(rank1.value)} of the true faces in another pose."
        )
    if evaluation.not_run:
        names = [part.label for part in evaluation.not_run]
        few = len(names) <= 3 and not any("," in name for name in names)
        missing = " and ".join(names) if few else f"{len(names)} parts of the protocol (listed below)"
        lines.append(f"Not measured: {missing}.")
    return "Limits: " + (" ".join(lines) or "the run noted none.")


# ---------------------------------------------------------------- findings
def findings(evaluation: Evaluation) -> list[str]:
    """Return the findings as sentences, the most important first."""
    roles = Roles.of(evaluation)
    coverage = [part for part in evaluation.coverage if roles.judge and part.recogniser == roles.judge.name]
    widest = max(coverage, key=lambda part: part.within, default=None)
    strictest = min(coverage, key=lambda part: part.within, default=None)
    sentences = [
        _identity(evaluation, roles),
        _against_baseline(evaluation, roles),
        *_against_models(evaluation, roles),
        _against_shuffled(evaluation, roles),
        _against_ceilings(evaluation, roles),
        widest and _several(widest, widest.curves, "With {} faces of a skull, at least one finds"),
        strictest and _several(strictest, strictest.together, "A search with {} faces together finds"),
        *(_edit(part, evaluation) for part in _edits_of(evaluation.edits, roles.evaluated)),
        _pictures(evaluation),
        unusual_skulls(evaluation),
    ]
    return [text for text in sentences if text]


def _gap(
    evaluation: Evaluation, judge: Recogniser, key: str, first: Method, second: Method
) -> Difference | None:
    return gap(evaluation, identification_column(judge.name, key), first, second)


def _identity(evaluation: Evaluation, roles: Roles) -> str:
    method = roles.evaluated or roles.baseline
    if method is None or roles.judge is None:
        return ""
    figures, size = method.identification[roles.judge.name], evaluation.protocol.gallery_size
    above = figures.rank1.low is not None and figures.rank1.low > 1 / size
    doubt = "" if above else " The first figure is not certainly better than guessing."
    return (
        f"{sentence(the(method))} ranks the true face first among {size:,} for {with_interval(figures.rank1)} of the "
        f"skulls, and among the first ten for {with_interval(figures.rank10)} ({roles.judge.label}). Guessing gives "
        f"{per_cent(1 / size)} and {per_cent(min(10 / size, 1))}.{doubt}"
    )


def _against_baseline(evaluation: Evaluation, roles: Roles) -> str:
    model, baseline, judge = roles.evaluated, roles.baseline, roles.judge
    if model is None or baseline is None or judge is None:
        return ""
    rank1 = _gap(evaluation, judge, "rank1", model, baseline)
    mrr = _gap(evaluation, judge, "mean_reciprocal_rank", model, baseline)
    if rank1 is None or mrr is None:
        return ""
    best = f"the best baseline, {baseline.label}"
    if not rank1.certain and not mrr.certain:
        return (
            f"Neither rank-1 nor MRR separates {the(model)} from {best}: rank-1 {points(rank1, sign=True)}, "
            f"{_of_mrr(mrr)}."
        )
    gap = rank1 if rank1.certain else mrr
    by = f"rank-1 {points(rank1, sign=True)}"
    if not rank1.certain:
        by = f"{_of_mrr(mrr)}; rank-1 alone does not decide: {points(rank1, sign=True)}"
    if gap.value > 0:
        return f"{sentence(the(model))} is better than {best}: {by}."
    kind = "linear baseline" if "ridge" in baseline.name else "baseline"
    return f"The {kind} wins: {baseline.label} is better than {the(model)}. {sentence(the(model))} minus it: {by}."


def _against_models(evaluation: Evaluation, roles: Roles) -> list[str]:
    """Return one sentence for each further model of the run."""
    sentences = []
    for method in evaluation.methods:
        if method.kind not in EVALUATED or roles.evaluated is None or roles.judge is None:
            continue
        gap = _gap(evaluation, roles.judge, "rank1", roles.evaluated, method)
        if method.name != roles.evaluated.name and gap is not None:
            doubt = "" if gap.certain else ", which is not certain"
            first = sentence(the(roles.evaluated))
            sentences.append(f"{first} minus {the(method)}: rank-1 {points(gap, sign=True)}{doubt}.")
    return sentences


def _against_shuffled(evaluation: Evaluation, roles: Roles) -> str:
    if roles.evaluated is None or roles.shuffled is None or roles.judge is None:
        return ""
    gap = _gap(evaluation, roles.judge, "mean_reciprocal_rank", roles.evaluated, roles.shuffled)
    if gap is None:
        return ""
    rank1 = with_interval(roles.shuffled.identification[roles.judge.name].rank1)
    other = "the skull of another person of the same sex, age level and body mass"
    if gap.low > 0:
        return f"It uses the skull. With {other}, rank-1 is {rank1}; the right skull gains {_of_mrr(gap)}."
    return f"No sign that it uses the skull: {other} serves as well (the right skull gains {_of_mrr(gap)})."


def _against_ceilings(evaluation: Evaluation, roles: Roles) -> str:
    """Return how much of each ceiling the method in question reaches."""
    method, judge = roles.evaluated or roles.baseline, roles.judge
    sentences = []
    for ceiling, what in (
        (roles.ceiling, "The ceiling is the true bone under average soft tissue, in the true surface style"),
        (
            roles.neutral,
            "The ceiling in a neutral surface style, as neither skull nor attributes tell the style",
        ),
    ):
        if method is None or ceiling is None or judge is None:
            continue
        own, best = (identification_column(judge.name, "rank1").values(m) for m in (method, ceiling))
        if own is None or best is None:
            continue
        both = np.isfinite(own) & np.isfinite(best)
        if both.any() and best[both].mean():
            share = 100 * own[both].mean() / best[both].mean()
            height = with_interval(ceiling.identification[judge.name].rank1)
            sentences.append(f"{what}: rank-1 {height}. {sentence(the(method))} reaches {share:.0f} % of it.")
    return " ".join(sentences)


def _several(part: Coverage, curves: Mapping[str, Curve], beginning: str) -> str:
    """Return what several faces of one skull find, beside one face and the skull of another person."""
    own = next((curve for name, curve in curves.items() if name != SHUFFLED), None)
    if own is None:
        return ""

    def last(curve: Curve) -> str:
        return with_interval(Figure(curve.value[-1], curve.low[-1], curve.high[-1], len(part.probes)))

    other = f"; skull of another person: {last(curves[SHUFFLED])}" if SHUFFLED in curves else ""
    place = "at rank 1" if part.within == 1 else f"within rank {part.within}"
    return (
        f"{beginning.format(part.draws)} the true face {place} for {last(own)} of "
        f"{plural(len(part.probes), 'skull')} (one face: {per_cent(own.value[0])}{other})."
    )


def _edits_of(parts: Sequence[Edit], evaluated: Method | None) -> list[Edit]:
    """Return the edits of the evaluated method, or of the first one, as its first reader measured them."""
    name = evaluated.name if evaluated is not None else parts[0].method if parts else ""
    own = [part for part in parts if part.method == name]
    return [part for part in own if part.space == own[0].space]


def _edit(part: Edit, evaluation: Evaluation) -> str:
    method = evaluation.method(part.method)
    name = part.method if method is None else the(method)
    text = f"Edit, {part.label} ({plural(part.projection.n, 'pair')}): {name} makes {with_interval(part.projection)} "
    text += "of the true change"
    if part.angle is not None:
        text += f", at {part.angle.value:.0f}° to it (90° is unrelated)"
    same = (edit for edit in evaluation.edits if (edit.name, edit.space) == (part.name, part.space))
    if (
        limit := next((edit for edit in same if edit.method == AUTOENCODER != part.method), None)
    ) is not None:
        text += f"; true faces through the autoencoder make {per_cent(limit.projection.value)}"
    if part.kept is not None and part.kept_before is not None:
        after, before = per_cent(part.kept.value), per_cent(part.kept_before.value)
        text += f". The person's own face is first for {before} before the edit and {after} after it"
    return text + "."


def _pictures(evaluation: Evaluation) -> str:
    column = next((c for c in picture_columns(evaluation) if c.better), None)
    if column is None:
        return ""
    rivals = [
        (m, f.value) for m in evaluation.methods if m.kind in RIVALS and (f := column.figure(m)) is not None
    ]
    if not rivals:
        return ""
    best, value = (max if column.better == "higher" else min)(rivals, key=lambda rival: rival[1])
    unit = f" {column.unit}" if column.unit else ""
    return f"By {column.label}, {the(best)} is closest to the true face: {column.written(value)}{unit}."


def unusual_skulls(evaluation: Evaluation) -> str:
    """Return how many skulls are flagged, and how they rank."""
    if evaluation.ood is None:
        return ""
    scores = np.array([np.nan if probe.ood is None else probe.ood for probe in evaluation.probes])
    flagged, num = scores > evaluation.ood.threshold, int(np.isfinite(scores).sum())
    verb = "is" if flagged.sum() == 1 else "are"
    text = f"{int(flagged.sum()):,} of {plural(num, 'skull')} {verb} unlike the training skulls"
    text += f" (score above {evaluation.ood.threshold:.3g})"
    roles = Roles.of(evaluation)
    if roles.evaluated is not None and roles.judge is not None and flagged.sum() >= 5:
        values: Any = identification_column(roles.judge.name, "mean_rank").values(roles.evaluated)
        medians = [
            np.nanmedian(values[mask]) for mask in (flagged, ~flagged) if np.isfinite(values[mask]).any()
        ]
        if len(medians) == 2:
            text += f". Their median rank is {medians[0]:.0f}; that of the others is {medians[1]:.0f}"
    return text + "."
