"""``python -m data.check PATH... [key=value ...]``: look for flaws in a data set before a model is trained on it.

PATH is a manifest (JSON lines), or a folder that has manifests in its ``split_data``. Give all lists of a data set
together: only then are people found who are in two of them. Exit code 0: no findings; 1: findings; 2: the data set
cannot be examined.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data.check.config import CheckConfig
from data.check.dataset import DataSet, find_lists, read_lists
from data.check.duplicates import check_duplicates
from data.check.flaws import CHECKS, Flaw
from data.check.landmarks import check_landmarks
from data.check.lists import check_lists
from data.check.measure import measure
from data.check.pairs import MIN_PAIRS, check_pairs
from data.check.pictures import check_pictures
from data.check.report import choose, draw_sheet, table, write_listing
from data.check.statistics import MIN_PICTURES
from data.images import write_png
from data.program import run_program

_PICTURE = frozenset(("unreadable", "blank", "inverted", "same_picture", "swapped", "wrong_kind", "rotated"))
_DOUBLE = frozenset(("shared_picture", "near_duplicate", "subject_in_two_lists"))
_PLACE = frozenset(("cut_off", "size"))
# A finding is left out where its line has one of these, which is the reason for it.
REASONS = {
    "odd_one": _PICTURE,
    "grey_levels": _PICTURE | {"odd_one"},
    "framing": _PICTURE | _PLACE | {"bone_outside", "misaligned"},
    "rotated": _PLACE,
    "wrong_kind": frozenset(("same_picture", "rotated")),
    "bone_outside": _PICTURE | _PLACE | _DOUBLE,
    "misaligned": _PICTURE | _PLACE | _DOUBLE,
    "mismatch": _PICTURE | _PLACE | _DOUBLE,
    "mirrored": _PICTURE | _PLACE | _DOUBLE,
}
# Lines with these teach nothing about how a face follows from its skull.
_SPOILT = _PICTURE | _PLACE | {"odd_one", "framing", "grey_levels"}


def check_data(paths: Sequence[Path], config: CheckConfig, progress: bool = True) -> list[Flaw]:
    """Examine a data set, print the table and write the report.

    Returns:
        The findings, those of ignored checks left out.

    Raises:
        CheckError: it cannot be examined.
        OSError: the report cannot be written.
    """
    lists = find_lists(paths)
    data = read_lists(lists, config)
    out = Path(config.out) if config.out else None
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # fails now, not after minutes
    measure(data, config.workers, progress)
    findings = examine_data(data, config)
    notes = list(_notes(data))
    counts = Counter(line.list_name for line in data.lines)
    sizes = ", ".join(f"{name} {counts[name]}" for name in lists)
    print(f"{len(data.lines)} lines ({sizes}), {len(data.pictures)} pictures")
    print(table(findings) if findings else f"nothing found by {len(CHECKS) - len(config.ignored)} checks")
    for note in notes:
        print(f"note: {note}")
    if out is not None:
        write_report(
            out, findings, {"lists": dict(counts), "pictures": len(data.pictures), "notes": notes}, config
        )
    return findings


def examine_data(data: DataSet, config: CheckConfig) -> list[Flaw]:
    """Return all findings of a data set that was measured, by check and then in the order of the lists."""
    findings = [*check_lists(data), *check_pictures(data, config.tolerance), *check_duplicates(data)]
    spoilt = frozenset((one.list_name, one.line) for one in findings if one.check in _SPOILT)
    findings += [*check_pairs(data, config.tolerance, spoilt), *check_landmarks(data)]
    checks_of: dict[tuple[str, int], set[str]] = defaultdict(set)
    for one in findings:
        checks_of[one.list_name, one.line].add(one.check)

    def explained(one: Flaw) -> bool:
        return bool(one.line and REASONS.get(one.check, frozenset()) & checks_of[one.list_name, one.line])

    names = list(CHECKS)
    rest = [one for one in findings if one.check not in config.ignored and not explained(one)]
    return sorted(rest, key=lambda one: names.index(one.check))


def _notes(data: DataSet) -> Iterator[str]:
    """Yield what could not be judged, so that silence is not taken for health."""
    pairs = sum(1 for _ in data.good_pairs())
    if pairs < MIN_PICTURES:
        yield f"{pairs} pairs are too few (under {MIN_PICTURES}) to tell drift of grey levels, framing or alignment"
    elif pairs < MIN_PAIRS:
        yield f"{pairs} pairs are too few (under {MIN_PAIRS}) to tell a face of another person or a mirrored skull"
    if not any(line.landmarks for line in data.lines):
        yield "no landmarks in these lists"


def write_report(out: Path, findings: Sequence[Flaw], summary: dict[str, Any], config: CheckConfig) -> None:
    write_listing(out, findings, summary)
    examples = choose(findings, config.sheet_cases)
    if examples:
        write_png(out / "sheet.png", draw_sheet(examples))
    else:
        (out / "sheet.png").unlink(missing_ok=True)  # of an earlier run
    names = "findings.csv, findings.json" + (
        " and sheet.png (it shows the people's pictures)" if examples else ""
    )
    print(f"{names} are in {out}")


def main(argv: list[str] | None = None) -> int:
    """Return the exit status: 0, 1 for findings, 2 after one message on stderr, 130 after Ctrl-C."""

    def work(config: CheckConfig, *paths: Path) -> int:
        return 1 if check_data(paths, config) else 0

    return run_program("data.check", __doc__, CheckConfig, work, argv, paths="PATH...")


if __name__ == "__main__":
    sys.exit(main())
