"""Which scale of guidance serves a model: faces of validation skulls at several, judged by networks that guide nothing.

    python -m muti_control.sweep weights=models/demo/iccr_demo.safetensors data.root=cohort
    python -m muti_control.sweep weights=FILE data.root=FOLDER scales=[0.005,0.01,0.02,0.05] modes=[plain,spgd] num=48

Any setting of evaluate.py may be added, such as guidance.gradient=denoiser or sampling.steps=30. sweep.png and the
whole report of evaluate.py go to results/sweep (name=... for another); the last line is what to paste.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cldm.spgd import MODES
from data.images import write_png
from ldm.config import ConfigError
from muti_control.charts import Panel, Series, draw_panels
from muti_control.evaluation.engine import evaluate, open_folder
from muti_control.evaluation.plan import ROOT, prepare
from muti_control.evaluation.results import Evaluation, Method
from muti_control.evaluation.run_folder import release

SCALES = (0.003, 0.01, 0.03, 0.1)
TRIED = ("plain", "spgd")
PLOT = "sweep.png"
DEFAULTS = ("split=valid", "num=32", "samples=1", "edited=0", "told=0", "bootstrap=1000", "name=sweep")
MAY_LOSE = 0.25  # a scale whose realism is that share worse than unguided is not recommended
PROGRAM = [sys.executable, str(ROOT / "evaluate.py")]  # what further processes run


@dataclass(frozen=True)
class Row:
    """One mode at one scale; figures are None where they were not measured. missed: faces that are none to dlib."""

    mode: str
    scale: float
    rank1: float
    identity: float | None
    nme: float | None
    realism: float | None
    missed: int


def arguments_of(arguments: Sequence[str]) -> tuple[list[str], dict[str, tuple[str, float]]]:
    """The command line of evaluate.py for one of the sweep, and (mode, scale) by the name of the model it makes.

    Raises:
        ConfigError: scales or modes that are none, or no weights.
    """
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    scales, modes = (_list(given.pop(key, None), key) for key in ("scales", "modes"))
    rest = [argument for argument in arguments if argument.split("=", 1)[0] not in ("scales", "modes")]
    if "weights" not in given:
        raise ConfigError("weights: not given; weights=FILE names the model whose guidance is tried")
    for key in ("models", "guided", "methods"):
        if key in given:
            raise ConfigError(f"{key}: the sweep sets this itself; leave it out")
    tried: dict[str, tuple[str, float]] = {}
    for mode in modes or TRIED:
        if mode not in MODES[1:]:
            raise ConfigError(f"modes: got {mode!r}, expected some of {', '.join(MODES[1:])}")
        for scale in map(_scale, scales or SCALES):
            tried[f"{mode}-{scale:g}".replace(".", "p").replace("+", "")] = mode, scale
    models = {name: given["weights"] for name in tried}
    guided: dict[str, Any] = {name: {"mode": mode, "scale": scale} for name, (mode, scale) in tried.items()}
    guided["model"] = {"mode": "off"}
    files = [argument for argument in rest if "=" not in argument]
    settings = [argument for argument in rest if "=" in argument]
    return [
        *files,
        *DEFAULTS,
        *settings,
        f"models={json.dumps(models)}",
        f"guided={json.dumps(guided)}",
        f"methods={json.dumps(['model', *tried])}",
    ], tried


def _scale(given: Any) -> float:
    try:
        value = float(given)  # YAML takes 1e-3 for a word
    except (TypeError, ValueError):
        value = math.nan
    if not 0 < value < math.inf:
        raise ConfigError(f"scales: got {given!r}, expected positive numbers")
    return value


def _list(text: str | None, key: str) -> list[Any]:
    if text is None:
        return []
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}: {text!r} cannot be read as a list") from error
    return value if isinstance(value, list) else [value]


def rows_of(evaluation: Evaluation, tried: dict[str, tuple[str, float]]) -> list[Row]:
    """Unguided first, then in the order tried."""
    by_name = {method.name: method for method in evaluation.methods}
    named = {"model": ("off", 0.0), **tried}
    return [_row(by_name[name], *how) for name, how in named.items() if name in by_name]


def _row(method: Method, mode: str, scale: float) -> Row:
    judge = "dlib" if "dlib" in method.identification else next(iter(method.identification))
    found = method.identification[judge]
    figures = {name: measured.figure.value for name, measured in method.pictures.items()}
    return Row(
        mode,
        scale,
        found.rank1.value,
        None if found.distance is None else found.distance.value,
        figures.get("nme"),
        figures.get("kid", figures.get("kid_dlib")),
        found.missed,
    )


def best_of(rows: Sequence[Row]) -> Row | None:
    """The guided row nearest to the true faces, if it is nearer than unguided; rows that lose faces or realism, or are
    worse in NME, do not count. None: unguided is best.
    """
    free = rows[0]
    good = [
        row
        for row in rows[1:]
        if row.missed <= free.missed
        and _key(row.identity) < _key(free.identity)
        and _key(row.nme) <= _key(free.nme)
        and (row.realism is None or free.realism is None or row.realism <= _worst(free.realism))
    ]
    return min(good, key=lambda row: _key(row.identity), default=None)


def _worst(realism: float) -> float:
    return realism + MAY_LOSE * abs(realism)


def _key(value: float | None) -> float:
    return math.inf if value is None else value


def table(rows: Sequence[Row]) -> str:
    """One line a row."""
    head = ["guidance", "scale", "rank-1 %", "distance to own", "NME %", "KID x 1000", "no face"]
    lines = [head]
    for row in rows:
        numbers = [row.identity, row.nme, row.realism]
        cells = ["" if n is None else f"{n:.{d}f}" for n, d in zip(numbers, (4, 2, 2), strict=True)]
        scale = "" if row.mode == "off" else f"{row.scale:g}"
        lines.append([row.mode, scale, f"{100 * row.rank1:.1f}", *cells, str(row.missed)])
    widths = [max(len(line[k]) for line in lines) for k in range(len(head))]
    return "\n".join("  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in lines)


def plot(rows: Sequence[Row], path: Path, title: str) -> None:
    """Identity, NME and realism against the scale, a line a mode."""
    panels = []
    for name, key in (
        ("identity: distance to the true face", "identity"),
        ("NME by dlib, %", "nme"),
        ("realism: KID x 1000", "realism"),
    ):
        series = []
        for mode in dict.fromkeys(row.mode for row in rows[1:]):
            own = sorted((row.scale, getattr(row, key)) for row in rows if row.mode == mode)
            known = [(scale, value) for scale, value in own if value is not None]
            series.append(Series(mode, [scale for scale, _ in known], [value for _, value in known]))
        if getattr(rows[0], key) is not None:
            series.append(Series("unguided", [], [getattr(rows[0], key)], flat=True))
            panels.append(Panel(f"{name} (lower is better)", "guidance.scale", series, log_x=True))
    if panels:
        write_png(path, draw_panels(panels, title=title))


def advice(rows: Sequence[Row], arguments: Sequence[str]) -> str:
    """The line to paste, or that there is none."""
    best = best_of(rows)
    if best is None:
        return (
            "No scale tried brings the faces nearer to the true ones without losing faces, NME or realism: "
            "leave guidance off (guidance.mode=off), or try smaller scales."
        )
    more = [
        a
        for a in arguments
        if a.startswith("guidance.") and a.split("=")[0] not in ("guidance.mode", "guidance.scale")
    ]
    line = " ".join([f"guidance.mode={best.mode}", f"guidance.scale={best.scale:g}", *more])
    return f"Best: {best.mode} at scale {best.scale:g}. Add to sample.py or evaluate.py:\n{line}"


def main(arguments: Sequence[str]) -> int:
    """Run, and return the exit code: 0, 2 for what the user can mend, 130 when interrupted."""
    if not arguments or any(argument in ("-h", "--help", "help") for argument in arguments):
        print(__doc__)
        return 0
    folder = Path()
    try:
        command, tried = arguments_of(arguments)
        plan = prepare(command, PROGRAM)
        folder = open_folder(plan)
        evaluation = evaluate(plan, folder)
        assert evaluation is not None  # this is the first process
        rows = rows_of(evaluation, tried)
        plot(rows, folder / PLOT, f"{len(evaluation.probes)} skulls of the split {evaluation.protocol.split}")
    except (ValueError, OSError) as error:
        release(folder)
        print(f"sweep: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"sweep: interrupted; resume=true goes on in {folder}", file=sys.stderr)
        return 130
    print(f"\n{table(rows)}\n\n{folder / PLOT}\n\n{advice(rows, arguments)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
