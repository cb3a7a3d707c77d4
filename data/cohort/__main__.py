"""``python -m data.cohort OUT [key=value ...]``: make a synthetic cohort, or finish one that was stopped."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from data.cohort.config import CohortConfig, parse_config
from data.cohort.generate import generate
from data.cohort.pair import FramingError


def main(argv: list[str] | None = None) -> int:
    defaults = " ".join(f"{field.name}={field.default}" for field in fields(CohortConfig))
    parser = argparse.ArgumentParser(
        prog="python -m data.cohort", description=__doc__, epilog=f"Keys: {defaults}"
    )
    parser.add_argument(
        "out", type=Path, help="folder to make, or one that an earlier run with the same keys began"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, see below")
    args = parser.parse_args(argv)
    try:
        generate(args.out, parse_config(args.overrides))
    except (ValueError, FileNotFoundError, FramingError) as error:
        print(f"data.cohort: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"data.cohort: stopped; the same command goes on in {args.out}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
