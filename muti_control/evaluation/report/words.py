"""Sentences of the report, each computed from the figures; and how numbers are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from muti_control.evaluation.report.markup import MINUS
from muti_control.evaluation.results.columns import (
    Column,
    Difference,
    difference,
    identification_columns,
    picture_columns,
    resampling_of,
)
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
SHUFFLED = "shuffled"  # the control that gets the skull of another person
NEUTRAL = "ceiling_neutral"  # the ceiling in a surface style of nobody's
AUTOENCODER = "autoencoder"  # the limit that the true faces reach


@dataclass(frozen=True)
class Roles:
    """Who plays which part in the sentences; None where the run has nobody for it.

    evaluated: the model or folder in question. judge: the first recogniser. baseline: the best by rank-1, then MRR.
    shuffled: the evaluated model with the skulls of others. ceiling: the best that skull and prompt allow, in the true
    face's surface style; neutral: in a neutral one. limit: the true face in another picture.
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
        judge = evaluation.recognisers[0] if evaluation.recognisers else None

        def judged(*kinds: str) -> list[Method]:
            return [
                m
                for m in evaluation.methods
                if m.kind in kinds and (judge is None or judge.name in m.identification)
            ]

        def strength(method: Method) -> tuple[float, float]:
            if judge is None:
                return (0.0, 0.0)
            found = method.identification[judge.name]
            return found.rank1.value, found.mean_reciprocal_rank.value

        return cls(
            evaluated=next(iter(judged(*EVALUATED)), None),
            judge=judge,
            baseline=max(judged("baseline"), key=strength, default=None),
            shuffled=next((m for m in judged("control") if m.name == SHUFFLED), None),
            ceiling=next((m for m in judged("ceiling") if m.name != NEUTRAL), None),
            neutral=next((m for m in judged("ceiling") if m.name == NEUTRAL), None),
            limit=next((m for m in judged("limit") if m.name == "turned"), None),
        )


def per_cent(value: float) -> str:
    """A share as it is written: 0.046 -> "4.6 %"."""
    return f"{100 * value:.1f} %".replace("-", MINUS)


def with_interval(figure: Figure) -> str:
    """A share with its interval: "4.6 % [2.8, 6.8]"."""
    if figure.low is None or figure.high is None:
        return per_cent(figure.value)
    return f"{per_cent(figure.value)} [{100 * figure.low:.1f}, {100 * figure.high:.1f}]".replace("-", MINUS)


def points(found: Difference, sign: bool = False) -> str:
    """A difference of shares in points: "12.3 points [8.1, 16.4]"."""
    value, low, high = (_signed(100 * v, sign) for v in (found.value, found.low, found.high))
    return f"{value} points [{low}, {high}]"


def _signed(value: float, sign: bool) -> str:
    return (f"{value:+.1f}" if sign else f"{value:.1f}").replace("-", MINUS)


def plural(number: int, one: str, more: str = "") -> str:
    """ "1 skull", "3 skulls"."""
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def listed(words: Sequence[str]) -> str:
    """ "a, b and c"."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1] if words else ""


def the(method: Method) -> str:
    """A method's label within a sentence."""
    if method.kind == "folder":
        return "the evaluated folder"
    return (
        f"the {method.label}"
        if method.label.startswith(("model", "nearest", "mean", "faces"))
        else method.label
    )


def sentence(text: str) -> str:
    """With a capital at its beginning."""
    return text[:1].upper() + text[1:]


# ---------------------------------------------------------------- the first lines
def what_was_evaluated(evaluation: Evaluation) -> str:
    """One sentence: what, on which skulls, against which gallery."""
    subject, protocol = evaluation.subject, evaluation.protocol
    kinds = {"model": "the model", "folder": "the folder of faces", "baselines": "the baselines alone"}
    what = (
        f"{kinds.get(subject.kind, subject.kind)} {subject.name}"
        if subject.kind != "baselines"
        else kinds["baselines"]
    )
    if subject.kind == "model" and subject.files:
        what += f" (sha256 {subject.files[0].sha256[:12]})"
    people = len({probe.subject for probe in evaluation.probes})
    skulls = plural(len(evaluation.probes), "skull")
    of_people = "" if people == len(evaluation.probes) else f" of {people:,} people"
    return (
        f"Evaluated: {what}, on {skulls}{of_people} of the {protocol.split} split, each against the same gallery of "
        f"{protocol.gallery_size:,} faces; {plural(protocol.num_training, 'training subject')}."
    )


def limits(evaluation: Evaluation) -> str:
    """What the figures cannot carry, in one line."""
    roles, found = Roles.of(evaluation), []
    if evaluation.protocol.cohort:
        found.append("the people are synthetic, so nothing here says how well real people would be found")
    if roles.evaluated is not None and roles.judge is not None:
        rank1 = roles.evaluated.identification[roles.judge.name].rank1
        if rank1.low is not None and rank1.high is not None:
            found.append(
                f"with {plural(rank1.n, 'skull')} rank-1 is known to ±{50 * (rank1.high - rank1.low):.0f} points"
            )
    if roles.limit is not None and roles.judge is not None:
        rank1 = roles.limit.identification[roles.judge.name].rank1
        found.append(f"the recogniser itself finds a true face in another pose in {per_cent(rank1.value)}")
    if evaluation.not_run:
        names = [part.label for part in evaluation.not_run]
        few = len(names) <= 3 and not any("," in name for name in names)
        found.append(
            f"not measured: {listed(names) if few else f'{len(names)} parts of the protocol, listed below'}"
        )
    text = "; ".join(found)
    return sentence(f"limits: {text}.") if text else "Limits: none were noted by the run."


# ---------------------------------------------------------------- findings
def findings(evaluation: Evaluation) -> list[str]:
    """What was found, the most important first."""
    roles = Roles.of(evaluation)
    found = [
        _identity(evaluation, roles),
        _against_baseline(evaluation, roles),
        *_against_models(evaluation, roles),
        _against_shuffled(evaluation, roles),
        _against_ceiling(evaluation, roles),
        *(_coverage(part, evaluation) for part in _widest(evaluation.coverage, roles.judge)),
        *(_together(part, evaluation) for part in _strictest(evaluation.coverage, roles.judge)),
        *(_edit(part, evaluation) for part in _edits_of(evaluation.edits, roles.evaluated)),
        _pictures(evaluation),
        unusual_skulls(evaluation),
    ]
    return [text for text in found if text]


def _rank1(evaluation: Evaluation, judge: Recogniser) -> Column:
    return identification_columns(judge.name)[0]


def _mrr(evaluation: Evaluation, judge: Recogniser) -> Column:
    columns = identification_columns(judge.name)
    return next(column for column in columns if column.key == "mean_reciprocal_rank")


def _identity(evaluation: Evaluation, roles: Roles) -> str:
    method = roles.evaluated or roles.baseline
    if method is None or roles.judge is None:
        return ""
    found, size = method.identification[roles.judge.name], evaluation.protocol.gallery_size
    chance = f"guessing would find {per_cent(1 / size)} and {per_cent(min(10 / size, 1))}"
    above = found.rank1.low is not None and found.rank1.low > 1 / size
    verdict = "" if above else " The first is not certainly better than guessing."
    return (
        f"{sentence(the(method))}: the true face is the most similar of {size:,} for {with_interval(found.rank1)} of "
        f"the skulls, and among the ten most similar for {with_interval(found.rank10)} ({roles.judge.label}); "
        f"{chance}.{verdict}"
    )


def _against_baseline(evaluation: Evaluation, roles: Roles) -> str:
    if roles.evaluated is None or roles.baseline is None or roles.judge is None:
        return ""
    column = _rank1(evaluation, roles.judge)
    gap = difference(column.values(roles.evaluated), column.values(roles.baseline), resampling_of(evaluation))
    if gap is None:
        return ""
    best = f"the best baseline, {roles.baseline.label}"
    if not gap.certain:
        gained = points(gap, sign=True)
        decided = _by_mrr(evaluation, roles.judge, roles.evaluated, roles.baseline)
        if decided:
            return f"{decided} (rank-1 alone leaves it open: {gained})."
        return (
            f"{sentence(the(roles.evaluated))} and {best}, cannot be told apart by rank-1 or MRR: {gained}."
        )
    if gap.value > 0:
        return f"{sentence(the(roles.evaluated))} beats {best}, by {points(gap)} of rank-1."
    lost = Difference(-gap.value, -gap.high, -gap.low, gap.p, gap.n)
    beaten = f"{roles.baseline.label} beats {the(roles.evaluated)}"
    return f"{_winner(roles.baseline)} wins: {beaten} by {points(lost)} of rank-1."


def _winner(baseline: Method) -> str:
    return "The linear baseline" if "ridge" in baseline.name else "The baseline"


def _by_mrr(evaluation: Evaluation, judge: Recogniser, evaluated: Method, baseline: Method) -> str:
    """Who wins by all ranks together, where rank-1 leaves it open; empty where that does too."""
    column = _mrr(evaluation, judge)
    gap = difference(column.values(evaluated), column.values(baseline), resampling_of(evaluation))
    if gap is None or not gap.certain:
        return ""
    by = f"MRR {_three(gap.value)} [{_three(gap.low)}, {_three(gap.high)}]"
    if gap.value > 0:
        return f"{sentence(the(evaluated))} beats the best baseline, {baseline.label}, by all ranks together: {by}"
    return f"{_winner(baseline)} wins: {baseline.label} beats {the(evaluated)} by all ranks together: {by}"


def _against_models(evaluation: Evaluation, roles: Roles) -> list[str]:
    """One sentence for each further model of the run."""
    if roles.evaluated is None or roles.judge is None:
        return []
    column, how, found = _rank1(evaluation, roles.judge), resampling_of(evaluation), []
    for method in evaluation.methods:
        if method.kind in EVALUATED and method.name != roles.evaluated.name:
            gap = difference(column.values(roles.evaluated), column.values(method), how)
            if gap is not None:
                verdict = "" if gap.certain else ", which is not certain"
                first = sentence(the(roles.evaluated))
                found.append(f"{first} beside {the(method)}: rank-1 {points(gap, sign=True)}{verdict}.")
    return found


def _against_shuffled(evaluation: Evaluation, roles: Roles) -> str:
    if roles.evaluated is None or roles.shuffled is None or roles.judge is None:
        return ""
    how = resampling_of(evaluation)
    column = _mrr(evaluation, roles.judge)
    gap = difference(column.values(roles.evaluated), column.values(roles.shuffled), how)
    if gap is None:
        return ""
    rank1 = roles.shuffled.identification[roles.judge.name].rank1
    change = f"MRR changes by {_three(gap.value)} [{_three(gap.low)}, {_three(gap.high)}]"
    if gap.low > 0:
        return (
            "It uses the skull: given that of another person of the same sex, age level and body mass, it finds the "
            f"true face for {with_interval(rank1)} ({change} with the right skull)."
        )
    return (
        "No sign that it uses the skull: that of another person of the same sex, age level and body mass does as well "
        f"({change} with the right skull)."
    )


def _three(value: float) -> str:
    return f"{value:+.3f}".replace("-", MINUS)


def _against_ceiling(evaluation: Evaluation, roles: Roles) -> str:
    """How much of each ceiling the method in question reaches."""
    method = roles.evaluated or roles.baseline
    ceilings = (
        (roles.ceiling, "The ceiling is {}: the true bone under the soft tissue to be expected, in the style of the "
         "true face's surface."),
        (roles.neutral, "With a neutral surface, since neither skull nor attributes tell the true one's style, the "
         "ceiling is {}."),
    )  # fmt: skip
    told = []
    for ceiling, words in ceilings:
        if method is None or ceiling is None or roles.judge is None:
            continue
        column = _rank1(evaluation, roles.judge)
        own, best = column.values(method), column.values(ceiling)
        if own is None or best is None:
            continue
        both = np.isfinite(own) & np.isfinite(best)
        if both.any() and best[both].mean():
            share = 100 * own[both].mean() / best[both].mean()
            height = with_interval(ceiling.identification[roles.judge.name].rank1)
            told.append(f"{words.format(height)} {sentence(the(method))} reaches {share:.0f} % of it.")
    return " ".join(told)


def _widest(parts: Sequence[Coverage], judge: Recogniser | None) -> list[Coverage]:
    """The first recogniser's part with the most generous definition of a hit."""
    found = [part for part in parts if judge is not None and part.recogniser == judge.name]
    return [max(found, key=lambda part: part.within)] if found else []


def _strictest(parts: Sequence[Coverage], judge: Recogniser | None) -> list[Coverage]:
    """The first recogniser's part with the least generous definition of a hit."""
    found = [part for part in parts if judge is not None and part.recogniser == judge.name]
    return [min(found, key=lambda part: part.within)] if found else []


def _edits_of(parts: Sequence[Edit], evaluated: Method | None) -> list[Edit]:
    """The evaluated method's edits, or the first one's where none is evaluated, by the first reader; the tables have
    all.
    """
    name = evaluated.name if evaluated is not None else parts[0].method if parts else ""
    own = [part for part in parts if part.method == name]
    return [part for part in own if part.space == own[0].space]


def _coverage(part: Coverage, evaluation: Evaluation) -> str:
    name = next((n for n in part.curves if n != SHUFFLED), None)
    method = None if name is None else evaluation.method(name)
    judge = evaluation.recogniser(part.recogniser)
    if name is None or method is None or judge is None:
        return ""
    curve = part.curves[name]
    within = "the most similar" if part.within == 1 else f"among the {part.within} most similar"
    text = (
        f"Of {part.draws} faces drawn for a skull, at least one has the true face {within} for "
        f"{_last(curve)} of {plural(len(part.probes), 'skull')} ({judge.label}; one face: {per_cent(curve.value[0])})"
    )
    control = part.curves.get(SHUFFLED)
    return text + (f"; with the skull of another person {_last(control)}." if control is not None else ".")


def _together(part: Coverage, evaluation: Evaluation) -> str:
    name = next((n for n in part.together if n != SHUFFLED), None)
    judge = evaluation.recogniser(part.recogniser)
    if name is None or judge is None:
        return ""
    curve, control = part.together[name], part.together.get(SHUFFLED)
    within = "the most similar" if part.within == 1 else f"among the {part.within} most similar"
    text = (
        f"Searched for with {part.draws} faces together, the true face is {within} for {_last(curve)} of "
        f"{plural(len(part.probes), 'skull')} ({judge.label}; with the first face alone: {per_cent(curve.value[0])})"
    )
    return text + (f"; with the skull of another person {_last(control)}." if control is not None else ".")


def _last(curve: Curve) -> str:
    return with_interval(Figure(curve.value[-1], curve.low[-1], curve.high[-1], 0))


def _edit(part: Edit, evaluation: Evaluation) -> str:
    method = evaluation.method(part.method)
    name = part.method if method is None else the(method)
    angle = "" if part.angle is None else f", at {part.angle.value:.0f}° to it (90° is unrelated)"
    kept = ""
    if part.kept is not None and part.kept_before is not None:
        after, before = per_cent(part.kept.value), per_cent(part.kept_before.value)
        kept = f"; the own face is the most similar for {after} after the edit, {before} before"
    made = f"{name} makes {with_interval(part.projection)} of the true change{angle}"
    same = (e for e in evaluation.edits if (e.name, e.space) == (part.name, part.space))
    if (limit := next((e for e in same if e.method == AUTOENCODER != part.method), None)) is not None:
        made += f" (read off the true faces through the autoencoder: {per_cent(limit.projection.value)})"
    return f"Edit, {part.label} ({plural(part.projection.n, 'pair')}): {made}{kept}."


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
    written = column.written(value) + unit
    return f"As a picture, {the(best)} is the closest to the true face by {column.label}: {written}."


def unusual_skulls(evaluation: Evaluation) -> str:
    """How many skulls are flagged, and how they fare."""
    if evaluation.ood is None:
        return ""
    threshold = evaluation.ood.threshold
    scores = np.array([np.nan if probe.ood is None else probe.ood for probe in evaluation.probes])
    flagged, num = scores > threshold, int(np.isfinite(scores).sum())
    number, verb = plural(int(flagged.sum()), "skull"), "is" if flagged.sum() == 1 else "are"
    text = f"{number} of {num:,} {verb} unlike the training skulls (score above {threshold:.3g})"
    roles = Roles.of(evaluation)
    if roles.evaluated is None or roles.judge is None or flagged.sum() < 5:
        return text + "."
    ranks = np.array(
        [np.nan if r is None else r for r in roles.evaluated.identification[roles.judge.name].ranks]
    )
    medians = [np.nanmedian(ranks[mask]) for mask in (flagged, ~flagged) if np.isfinite(ranks[mask]).any()]
    return text + (
        f": median rank {medians[0]:.0f}, of the others {medians[1]:.0f}." if len(medians) == 2 else "."
    )


def interval_text(column: Column, figure: Figure) -> str:
    """The interval as it stands below a value in a table."""
    if figure.low is None or figure.high is None:
        return ""
    return f"[{column.written(figure.low)}, {column.written(figure.high)}]"
