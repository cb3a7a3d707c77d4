"""``python -m data.cohort OUT [key=value ...]``: make a synthetic cohort, or finish one that was stopped."""

from __future__ import annotations

import sys
from pathlib import Path

from data.cohort.config import ArgumentParser, CohortConfig, check_packages
from settings.reading import defaults_line, parse_command_line


def main(argv: list[str] | None = None) -> int:
    defaults = defaults_line(CohortConfig)
    parser = ArgumentParser(prog="python -m data.cohort", description=__doc__, epilog=f"Keys: {defaults}")
    parser.add_argument(
        "out", type=Path, help="folder to make, or one that an earlier run with the same keys began"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, see below")
    try:
        args = parser.parse_args(argv)
        config = parse_command_line(CohortConfig, args.overrides)
        check_packages()
        from data.cohort.generate import generate  # after check_packages: it imports these packages

        generate(args.out, config)
    except (ValueError, OSError) as error:
        print(f"data.cohort: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"data.cohort: stopped; the same command goes on in {args.out}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
