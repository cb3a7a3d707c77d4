"""Which SPGD setting serves a model? Several draw the same probes, and networks that guide nothing judge them.

    python evaluate.py configs/evaluate/sweep.yaml weights=FILE data.root=FOLDER 'sweep.scales=[0.01,0.02]'

A setting is recommended if it brings the same probes nearer to their true faces by more than chance does, for as many
settings as were tried.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev
from typing import Any

from cldm.config import SamplingConfig
from muti_control.evaluation.protocol.config import EvaluateConfig, SweepConfig
from muti_control.evaluation.report.tables import as_text
from muti_control.evaluation.results.results import Evaluation, Method
from muti_control.sampling.config import SpgdConfig
from settings.base import Settings
from settings.messages import ConfigError

PLOT = "sweep.svg"
MAY_LOSE = 0.25  # a setting is refused if its realism is worse than unguided by more than this share ...
KID_FLOOR = 0.1  # ... or by this (x 1000) where the KID of few pictures is near 0
CONFIDENCE = 0.95  # of all comparisons with unguided together


@dataclass(frozen=True)
class Row:
    """The figures of one mode at one scale; None where not measured.

    missed: faces in which the judge finds no face. gains: for each probe judged in both, its distance to the true face
    minus that of its unguided face; negative is nearer.
    """

    mode: str
    scale: float
    rank1: float
    identity: float | None
    nme: float | None
    realism: float | None
    missed: int
    gains: tuple[float, ...] = ()


def settings_of(sweep: SweepConfig) -> dict[str, tuple[str, float]]:
    """Return (mode, scale) by the name of the model that is drawn with them."""
    pairs = [(mode, scale) for mode in sweep.modes for scale in sweep.scales]
    return {f"{mode}-{scale:g}".replace(".", "p").replace("+", ""): (mode, scale) for mode, scale in pairs}


def expand(cfg: EvaluateConfig) -> EvaluateConfig:
    """Return the evaluation that a sweep stands for: one model for each setting, and the unguided one.

    Raises:
        ConfigError: no weights, or settings that the sweep makes itself.
    """
    if cfg.sweep is None:
        return cfg
    if cfg.weights is None:
        raise ConfigError("weights: not given; weights=FILE names the model whose guidance is tried")
    for key in ("models", "guided", "methods"):
        if getattr(cfg, key):
            raise ConfigError(f"{key}: the sweep sets this itself; leave it out")
    tried = settings_of(cfg.sweep)
    guided: dict[str, Any] = {name: {"mode": mode, "scale": scale} for name, (mode, scale) in tried.items()}
    return cfg.with_(
        models=dict.fromkeys(tried, cfg.weights),
        guided={"model": {"mode": "off"}, **guided},
        methods=["model", *tried],
    )


def rows_of(evaluation: Evaluation, sweep: SweepConfig) -> list[Row]:
    """Return the unguided row, then the others in the order tried."""
    methods = {method.name: method for method in evaluation.methods}
    every = {"model": ("off", 0.0), **settings_of(sweep)}
    return [_row(methods[name], methods["model"], *how) for name, how in every.items() if name in methods]


def _row(method: Method, free: Method, mode: str, scale: float) -> Row:
    judge = "dlib" if "dlib" in method.identification else next(iter(method.identification))
    own, unguided = method.identification[judge], free.identification[judge]
    pairs = zip(own.distances or (), unguided.distances or (), strict=True)
    figures = {name: measured.figure.value for name, measured in method.pictures.items()}
    return Row(
        mode,
        scale,
        own.rank1.value,
        None if own.distance is None else own.distance.value,
        figures.get("nme"),
        figures.get("kid", figures.get("kid_dlib")),
        own.missed,
        tuple(a - b for a, b in pairs if a is not None and b is not None),
    )


def best_of(rows: Sequence[Row]) -> Row | None:
    """Return the row that brings its probes nearest to their true faces, None if unguided is best.

    A row does not count if chance explains its gain, or if it loses faces, NME or realism.
    """
    free, *guided = rows

    def loses_nothing(row: Row) -> bool:
        worse_nme = (math.inf if row.nme is None else row.nme) > (math.inf if free.nme is None else free.nme)
        unreal = False
        if row.realism is not None and free.realism is not None:
            unreal = row.realism > free.realism + max(MAY_LOSE * abs(free.realism), KID_FLOOR)
        return row.missed <= free.missed and not worse_nme and not unreal

    good = [row for row in guided if loses_nothing(row) and _is_nearer(row.gains, len(guided))]
    return min(good, key=lambda row: fmean(row.gains), default=None)


def _is_nearer(gains: Sequence[float], num_tried: int) -> bool:
    """Return whether the interval of the mean gain, widened for ``num_tried`` comparisons (Bonferroni), is below 0."""
    if len(gains) < 2:
        return False
    z = NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / 2 / num_tried)
    return fmean(gains) + z * stdev(gains) / math.sqrt(len(gains)) < 0


def table(rows: Sequence[Row]) -> str:
    """Return one line of text for each row."""
    lines = [["guidance", "scale", "rank-1 %", "distance to own", "NME %", "KID x 1000", "no face"]]
    for row in rows:
        numbers = zip((row.identity, row.nme, row.realism), (4, 2, 2), strict=True)
        cells = ["" if number is None else f"{number:.{decimals}f}" for number, decimals in numbers]
        scale = "" if row.mode == "off" else f"{row.scale:g}"
        lines.append([row.mode, scale, f"{100 * row.rank1:.1f}", *cells, str(row.missed)])
    return as_text(lines, right=range(7))


def advice(rows: Sequence[Row], cfg: EvaluateConfig, recommended: Mapping[str, Any]) -> str:
    """Return the line to paste, or that guidance is better left off.

    Args:
        cfg: of the sweep. recommended: what the weights recommend of sampling, which every program follows unasked.
    """
    best = best_of(rows)
    tried = f"{max((len(row.gains) for row in rows), default=0)} probes, {len(rows) - 1} settings tried"
    if best is None:
        return (
            f"{tried}: none brings the faces nearer to the true ones by more than chance does, without losing faces, "
            "NME or realism. Leave guidance off (spgd.mode=off), or try smaller scales or more probes (num=...)."
        )
    own = {"spgd.mode": best.mode, "spgd.scale": f"{best.scale:g}"}
    settings = own | _changed("spgd.", cfg.spgd, SpgdConfig()) | own
    settings |= _changed("sampling.", cfg.sampling, SamplingConfig.of(**recommended))
    common = ("landmarks", "landmark_weights", "texture")
    settings |= {key: value for key, value in _changed("", cfg, EvaluateConfig()).items() if key in common}
    program = "evaluate.py" if cfg.landmarks == "known" else "sample.py or evaluate.py"
    line = shlex.join(f"{key}={value}" for key, value in settings.items())
    return f"Best: {best.mode} at scale {best.scale:g} ({tried}). Add to {program}:\n{line}"


def _changed(prefix: str, settings: Settings, usual: Settings) -> dict[str, str]:
    """Return the settings that differ from the usual ones, as text."""
    own, others = settings.model_dump(), usual.model_dump()
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in own.items()}
    return {f"{prefix}{key}": texts[key] for key in own if own[key] != others[key]}
