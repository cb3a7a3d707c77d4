"""The input check of a run: skulls are looked at, prepared where that helps, and left out where they are none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from data.cases import Case
from data.images import png_of, read_image, to_uint8
from muti_control.case.calibration import COMMAND, Calibration
from muti_control.case.check import LEVELS
from muti_control.case.prepare import checked_skull

_NUM_LINES = 20


class NoSkullError(ValueError):
    """No picture of the run shows a skull; the message has the reasons."""


def check_cases(
    cases: Sequence[Case],
    size: int,
    calibration: Calibration | None,
    prepare: Callable[[Case], bool],
    force: bool,
) -> tuple[list[Case], dict[str, dict[str, Any]]]:
    """Return the cases to draw, with prepared pictures, and the check of every case by name, as the record has it.

    size: side of the model's pictures, px. prepare: whether a picture may change. force: draw what is no skull, too.

    Raises:
        NoSkullError: nothing is left to draw.
    """
    drawn, checks = [], {}
    for case in cases:
        if case.skull_path is None:
            drawn.append(case)
            continue
        picture, _ = read_image(case.source, size)
        result = checked_skull(picture, calibration, case.attributes, prepare(case))
        stopped = result.check.level == "stop" and not force
        checks[case.name] = {**result.record(), "drawn": not stopped}
        if stopped:
            continue
        if result.done:
            mm = None if case.mm_per_px is None else case.mm_per_px * result.scale
            case = replace(case, prepared=png_of(to_uint8(result.picture)), mm_per_px=mm)
        drawn.append(case)
    if cases and not drawn:
        head = "nothing is drawn; give a picture of a skull, or force=true draws it"
        raise NoSkullError("\n  ".join([head, *check_lines(checks)]))
    return drawn, checks


def check_lines(checks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the traffic light of each skull with its reasons, a line each; sound ones of many are only counted."""
    light = {"ok": "green", "warning": "yellow", "stop": "red"}
    lines, sound = [], 0
    for name, check in checks.items():
        reasons = [finding["text"] for finding in check["findings"]]
        if check["prepared"]:
            reasons = [f"prepared ({', '.join(check['prepared'])})", *reasons]
        if not check["drawn"]:
            reasons.append("not drawn")
        if reasons or len(checks) == 1:
            lines.append(f"{name}: {light[check['level']]}: {'; '.join(reasons) or 'nothing to doubt'}")
        else:
            sound += 1
    more = (
        [f"... and {len(lines) - _NUM_LINES} more; all are in record.json"] if len(lines) > _NUM_LINES else []
    )
    return [*lines[:_NUM_LINES], *more, *([f"{sound} skulls: green: nothing to doubt"] if sound else [])]


def worst(checks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the level of the worst skull, and all findings with their skull's name, for the record."""
    findings = [{"skull": name, **finding} for name, check in checks.items() for finding in check["findings"]]
    levels = [check["level"] for check in checks.values()]
    return {"level": max(levels, key=LEVELS.index, default="ok"), "findings": findings}


def uncalibrated(calibration: Calibration | None, weights: str) -> str | None:
    """Return the note for weights whose skulls cannot be compared with those of their training."""
    if calibration is not None and "mean" in calibration.arrays:
        return None
    return (
        "these weights have no calibration: of a skull only background and cut edges are checked, nothing is "
        f"straightened; {COMMAND.format(weights=weights)} makes one"
    )


def doubts(check: Mapping[str, Any] | None) -> str:
    """Return what a caption adds on a skull: what was done to it, and the names of the findings that are left."""
    if check is None:
        return ""
    names = dict.fromkeys(finding["name"].replace("_", " ") for finding in check["findings"])
    return ("; prepared" if check["prepared"] else "") + (f"; check: {', '.join(names)}" if names else "")
