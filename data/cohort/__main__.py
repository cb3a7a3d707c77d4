"""``python -m data.cohort OUT [key=value ...]``: make a synthetic cohort, or finish one that was stopped.

OUT is a new folder, or one that an earlier run with the same keys began.
"""

from __future__ import annotations

import sys
from pathlib import Path

from data.cohort.config import CohortConfig, check_packages
from data.program import run_program


def main(argv: list[str] | None = None) -> int:
    """Return the exit status: 0, 2 after one message on stderr, 130 after Ctrl-C."""
    stopped = "stopped; the same command goes on"
    return run_program("data.cohort", __doc__, CohortConfig, _make, argv, paths="OUT", stopped=stopped)


def _make(config: CohortConfig, out: Path) -> None:
    check_packages()
    from data.cohort.generate import generate  # after check_packages: it imports these packages

    generate(out, config)


if __name__ == "__main__":
    sys.exit(main())
