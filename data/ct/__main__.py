"""``python -m data.ct IN OUT [key=value ...]``: skull and face of a head CT, or of a folder of patients.

Exit code: 0 everything drawn (flagged scans included), 2 the scan or the command was refused, 3 some of a batch were.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from data.cohort.config import check_packages
from data.ct.config import PACKAGES, CtConfig
from settings.reading import defaults_line, parse_command_line


def main(argv: list[str] | None = None) -> int:
    defaults = defaults_line(CtConfig)
    parser = argparse.ArgumentParser(
        prog="python -m data.ct", description=__doc__, epilog=f"Keys: {defaults}"
    )
    parser.add_argument("scan", type=Path, metavar="IN", help="a DICOM folder or a volume file; with biometrics=, the "
                        "folder that holds one of these for each patient")  # fmt: skip
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the results")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, see below")
    args = parser.parse_args(argv)
    try:
        config = parse_command_line(CtConfig, args.overrides)
        check_packages(PACKAGES, "cohort,ct")
        return (_draw_batch if config.biometrics else _draw_one)(args.scan, args.out, config)
    except (ValueError, OSError) as error:  # ScanError and PeopleError are ValueErrors
        print(f"data.ct: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("data.ct: stopped; the same command goes on", file=sys.stderr)
        return 130


def _draw_one(path: Path, out: Path, config: CtConfig) -> int:
    from data.ct.drawing import FILES, draw_scan  # after check_packages

    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file, expected a folder for the results")
    drawing = draw_scan(path, config)
    out.mkdir(parents=True, exist_ok=True)
    paths = {name: out / name for name in FILES}
    for old in paths.values():
        old.unlink(missing_ok=True)  # an earlier scan's files must not stand beside this one's
    drawing.write(paths)
    for finding in drawing.findings:
        print(f"{finding.severity:6} {finding.name}: {finding.text}")
    if drawing.status == "refused":
        raise ValueError(f"refused; {paths['report.json']} says why")
    print(f"{drawing.status}: {out}")
    return 0


def _draw_batch(patients: Path, out: Path, config: CtConfig) -> int:
    from data.ct.batch import run_batch  # after check_packages

    counts = run_batch(patients, out, config)
    summary = ", ".join(f"{count} {status}" for status, count in counts.items())
    print(f"{summary}: {out / 'summary.csv'}")
    return 3 if counts["refused"] else 0


if __name__ == "__main__":
    sys.exit(main())
