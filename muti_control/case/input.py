"""What ``prepare=auto`` does with the skull of a case before it is drawn: check, mend, check again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from muti_control.case.calibration import Calibration
from muti_control.case.check import Person, SkullCheck, check_skull
from muti_control.case.measure import Array
from muti_control.case.prepare import prepare_skull

FIT_LOST = 0.01


@dataclass(frozen=True)
class CheckedSkull:
    """A skull that may be drawn.

    Attributes:
        picture: (H, W, 3) in [0, 1]; the one that was read, the same object, where nothing was done.
        check: of this picture. before: of the one that was read. done: what was done to it, a few words each.
    """

    picture: Array
    check: SkullCheck
    before: SkullCheck
    done: tuple[str, ...] = ()

    @property
    def scale(self) -> float:
        """Length in the picture that was read, of a px of this one, px."""
        resized = self.done and self.before.measures is not None and "scale" in self.before.away
        return self.before.measures.scale if resized and self.before.measures else 1.0

    def record(self) -> dict[str, Any]:
        """Return the check for a record, JSON: level and findings, what was done, and the findings before that."""
        before = self.before.record()["findings"] if self.done else []
        return {**self.check.record(), "prepared": list(self.done), "findings_before": before}


def checked_skull(
    picture: Array, calibration: Calibration | None, person: Person | None = None, prepare: bool = True
) -> CheckedSkull:
    """Check a skull picture, (H, H, 3) float32 in [0, 1], and prepare it where the check says so.

    What makes it less like a skull is not kept.
    """
    before = check_skull(picture, calibration, person)
    prepared, done = prepare_skull(picture, before) if prepare else (picture, [])
    if prepared is picture:
        return CheckedSkull(picture, before, before)
    after = check_skull(prepared, calibration, person)
    assert before.measures is not None
    worse = (
        after.level == "stop" or after.measures is None or after.measures.fit < before.measures.fit - FIT_LOST
    )
    if worse:
        return CheckedSkull(picture, before, before)
    return CheckedSkull(prepared, after, before, tuple(done))
