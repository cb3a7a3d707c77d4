"""``python -m data.check PATH... [key=value ...]``: look for flaws in a data set before a model is trained on it.

PATH is a manifest (JSON lines), or a folder that has manifests in its ``split_data``. Give all lists of a data set
together: only then is a person seen who is in two of them. Exit code 0: nothing found; 1: something found; 2: the data
set cannot be examined.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from data.check.config import CheckConfig
from data.check.examine import check_data
from settings.reading import defaults_line, parse_command_line


def main(argv: list[str] | None = None) -> int:
    defaults = defaults_line(CheckConfig)
    parser = argparse.ArgumentParser(
        prog="python -m data.check", description=__doc__, epilog=f"Keys: {defaults}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("arguments", nargs="+", metavar="PATH or key=value")
    arguments = parser.parse_args(argv).arguments
    overrides = [one for one in arguments if "=" in one and not Path(one).exists()]
    paths = [Path(one) for one in arguments if one not in overrides]
    try:
        if not paths:
            raise ValueError("no data set given; give a manifest, or a folder with split_data/train.json")
        found = check_data(paths, parse_command_line(CheckConfig, overrides))
    except (ValueError, OSError) as error:
        print(f"data.check: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("data.check: stopped; nothing was written", file=sys.stderr)
        return 130
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
