"""Which scale of guidance serves a model: faces of validation skulls at several, judged by networks that guide nothing.

    python -m muti_control.evaluation.sweep weights=models/demo/iccr_demo.safetensors data.root=cohort
    python -m muti_control.evaluation.sweep weights=FILE data.root=FOLDER scales=[0.005,0.01,0.02,0.05] modes=[plain,spgd] num=48

Any setting of evaluate.py may be added, such as spgd.gradient=denoiser or sampling.steps=30, or a file of them.
sweep.png and the whole report of evaluate.py go to results/sweep (name=... for another); the last line is what to
paste. A setting is recommended where it brings the same probes nearer to their true faces by more than chance does,
for as many settings as were tried.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, fmean, stdev
from typing import Any, get_args

import yaml

from cldm.config import SpgdMode
from data.images import write_png
from muti_control.evaluation.engine import evaluate, open_folder
from muti_control.evaluation.plan import DEFAULT, prepare
from muti_control.evaluation.protocol.run_folder import release
from muti_control.evaluation.results.results import Evaluation, Method
from muti_control.sampling.charts import Panel, Series, draw_panels
from settings.messages import ConfigError

MODES = get_args(SpgdMode)[1:]
SCALES = (0.003, 0.01, 0.03, 0.1)
TRIED = ("plain", "spgd")
PLOT = "sweep.png"
DEFAULTS = ("split=valid", "num=32", "samples=1", "edited=0", "told=0", "bootstrap=1000", "name=sweep")
MAY_LOSE = 0.25  # a scale whose realism is that share worse than unguided is not recommended
KID_FLOOR = 0.1  # x 1000; a KID of few pictures may be near 0 or below, where a share of it is nothing
CONFIDENCE = 0.95  # of all comparisons with unguided together
_KEPT = ("sampling.", "spgd.")  # what the line to paste takes over from the sweep's settings ...
_KEPT_WHOLE = ("landmarks", "landmark_weights", "texture")


@dataclass(frozen=True)
class Row:
    """One mode at one scale; figures are None where they were not measured.

    missed: faces in which the judge found none. gains: of every probe judged in both, the distance to its own true
    face less that of its unguided face; below 0 is nearer.
    """

    mode: str
    scale: float
    rank1: float
    identity: float | None
    nme: float | None
    realism: float | None
    missed: int
    gains: tuple[float, ...] = ()


def arguments_of(arguments: Sequence[str]) -> tuple[list[str], dict[str, tuple[str, float]]]:
    """The command line of evaluate.py for one of the sweep, and (mode, scale) by the name of the model it makes.

    Raises:
        ConfigError: scales or modes that are none, no weights, or a file that cannot be read.
    """
    told = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    in_file = _of_file(arguments)
    given = {**in_file, **told}
    scales, modes = (_list(given.pop(key, None), key) for key in ("scales", "modes"))
    rest = [argument for argument in arguments if argument.split("=", 1)[0] not in ("scales", "modes")]
    if "weights" not in given:
        raise ConfigError("weights: not given; weights=FILE names the model whose guidance is tried")
    for key in ("models", "guided", "methods"):
        if key in given:
            raise ConfigError(f"{key}: the sweep sets this itself; leave it out")
    tried: dict[str, tuple[str, float]] = {}
    for mode in modes or TRIED:
        if mode not in MODES:
            raise ConfigError(f"modes: got {mode!r}, expected some of {', '.join(MODES)}")
        for scale in map(_scale, scales or SCALES):
            tried[f"{mode}-{scale:g}".replace(".", "p").replace("+", "")] = mode, scale
    models = {name: str(given["weights"]) for name in tried}
    guided: dict[str, Any] = {name: {"mode": mode, "scale": scale} for name, (mode, scale) in tried.items()}
    guided["model"] = {"mode": "off"}
    files = [argument for argument in rest if "=" not in argument]
    settings = [argument for argument in rest if "=" in argument]
    return [
        *files,
        *(setting for setting in DEFAULTS if setting.split("=")[0] not in in_file),
        *settings,
        f"models={json.dumps(models)}",
        f"guided={json.dumps(guided)}",
        f"methods={json.dumps(['model', *tried])}",
    ], tried


def _of_file(arguments: Sequence[str]) -> dict[str, Any]:
    """The settings of the YAML file among the arguments, {} where there is none. Raises: ConfigError."""
    file = next((a for a in arguments if "=" not in a and a.endswith((".yaml", ".yml"))), None)
    if file is None:
        return {}
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: holds a {type(content).__name__}, expected settings (key: value)")
    for key in ("scales", "modes"):
        if key in content:
            raise ConfigError(f"{file}: {key} belongs on the command line, as in {key}=[...]")
    return {str(key): value for key, value in content.items()}


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
    free = by_name["model"]
    return [_row(by_name[name], free, *how) for name, how in named.items() if name in by_name]


def _row(method: Method, free: Method, mode: str, scale: float) -> Row:
    judge = "dlib" if "dlib" in method.identification else next(iter(method.identification))
    found, unguided = method.identification[judge], free.identification[judge]
    pairs = zip(found.distances or (), unguided.distances or (), strict=True)
    figures = {name: measured.figure.value for name, measured in method.pictures.items()}
    return Row(
        mode,
        scale,
        found.rank1.value,
        None if found.distance is None else found.distance.value,
        figures.get("nme"),
        figures.get("kid", figures.get("kid_dlib")),
        found.missed,
        tuple(own - other for own, other in pairs if own is not None and other is not None),
    )


def best_of(rows: Sequence[Row]) -> Row | None:
    """The guided row that brings its probes nearest to their true faces, of those for which chance is no explanation;
    rows that lose faces or realism, or are worse in NME, do not count. None: unguided is best.
    """
    free = rows[0]
    good = [
        row
        for row in rows[1:]
        if row.missed <= free.missed
        and _is_nearer(row.gains, len(rows) - 1)
        and _key(row.nme) <= _key(free.nme)
        and (row.realism is None or free.realism is None or row.realism <= _worst(free.realism))
    ]
    return min(good, key=lambda row: fmean(row.gains), default=None)


def _is_nearer(gains: Sequence[float], num_tried: int) -> bool:
    """Whether the interval of the mean gain, widened for ``num_tried`` comparisons (Bonferroni), lies below 0."""
    if len(gains) < 2:
        return False
    z = NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / 2 / num_tried)
    return fmean(gains) + z * stdev(gains) / math.sqrt(len(gains)) < 0


def _worst(realism: float) -> float:
    return realism + max(MAY_LOSE * abs(realism), KID_FLOOR)


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
            panels.append(Panel(f"{name} (lower is better)", "spgd.scale", series, log_x=True))
    if panels:
        write_png(path, draw_panels(panels, title=title))


def advice(rows: Sequence[Row], arguments: Sequence[str]) -> str:
    """The line to paste, or that there is none. Raises: ConfigError: a file among the arguments that is none."""
    best, tried = best_of(rows), len(rows) - 1
    probes = max((len(row.gains) for row in rows), default=0)
    of = f"{probes} probes, {tried} settings tried"
    if best is None:
        return (
            f"{of}: none brings the faces nearer to the true ones by more than chance does, without losing faces, NME "
            "or realism: leave guidance off (spgd.mode=off), or try smaller scales or more probes (num=...)."
        )
    own = {"spgd.mode": best.mode, "spgd.scale": f"{best.scale:g}"}
    settings = own | _kept(arguments) | own
    line = shlex.join(f"{key}={value}" for key, value in settings.items())
    program = "evaluate.py" if settings.get("landmarks") == "known" else "sample.py or evaluate.py"
    return f"Best: {best.mode} at scale {best.scale:g} ({of}). Add to {program}:\n{line}"


def _kept(arguments: Sequence[str]) -> dict[str, str]:
    """The settings behind the figures that a later run needs too: of the file, evaluate.py's own where none is given,
    and of the command line."""
    file = _of_file(arguments) or _of_file([str(DEFAULT)])
    settings = {key: _text(value) for key, value in _flat(file).items()}
    settings |= dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    return {key: value for key, value in settings.items() if key.startswith(_KEPT) or key in _KEPT_WHOLE}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def main(arguments: Sequence[str]) -> int:
    """Run, and return the exit code: 0, 2 for what the user can mend, 130 when interrupted."""
    if not arguments or any(argument in ("-h", "--help", "help") for argument in arguments):
        print(__doc__)
        return 0
    folder = Path()
    try:
        command, tried = arguments_of(arguments)
        plan = prepare(command)
        folder = open_folder(plan) if plan.team.is_first else folder
        evaluation = evaluate(plan, folder)
        if evaluation is None:  # not the first process
            return 0
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
