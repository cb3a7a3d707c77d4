"""``python -m data.check PATH... [key=value ...]``: look for flaws in a data set before a model is trained on it.

PATH is a manifest (JSON lines), or a folder that has manifests in its ``split_data``. Give all lists of a data set
together: only then is a person seen who is in two of them. Exit code 0: nothing found; 1: something found; 2: the data
set cannot be examined.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from data.check.config import CheckConfig, parse_config
from data.check.examine import check_data


def main(argv: list[str] | None = None) -> int:
    defaults = " ".join(f"{field.name}={field.default}" for field in fields(CheckConfig))
    parser = argparse.ArgumentParser(
        prog="python -m data.check", description=__doc__, epilog=f"Keys: {defaults}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("arguments", nargs="+", metavar="PATH or key=value")
    arguments = parser.parse_args(argv).arguments
    keys = {field.name for field in fields(CheckConfig)}
    overrides = [one for one in arguments if "=" in one and not Path(one).exists()]
    paths = [Path(one) for one in arguments if one not in overrides]
    try:
        if not paths:
            raise ValueError("no data set given; give a manifest, or a folder with split_data/train.json")
        unknown = [one for one in overrides if one.partition("=")[0] not in keys]
        if unknown:
            raise ValueError(f"{unknown[0]}: no such key or file; keys: {', '.join(sorted(keys))}")
        found = check_data(paths, parse_config(overrides))
    except (ValueError, OSError) as error:
        print(f"data.check: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("data.check: stopped; nothing was written", file=sys.stderr)
        return 130
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
