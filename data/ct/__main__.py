"""``python -m data.ct IN OUT [key=value ...]``: skull and face of a head CT, or of a folder of patients.

Exit code: 0 everything drawn (flagged scans included), 2 the scan or the command was refused, 3 some of a batch were.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from data.ct.config import CtConfig, check_packages
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
        check_packages()
    except ValueError as error:
        return _say(error)
    try:
        return _batch(args.scan, args.out, config) if config.biometrics else _one(args.scan, args.out, config)
    except (ValueError, OSError) as error:  # ScanError and PeopleError are ValueErrors
        return _say(error)
    except KeyboardInterrupt:
        print("data.ct: stopped; the same command goes on", file=sys.stderr)
        return 130


def _say(error: Exception) -> int:
    print(f"data.ct: {error}", file=sys.stderr)
    return 2


def _one(path: Path, out: Path, config: CtConfig) -> int:
    from data.ct.drawing import (
        CaseFiles,
        make_case,
        write_case,
    )  # after check_packages: these import what it looks for

    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file, expected a folder for the results")
    case = make_case(path, config)
    out.mkdir(parents=True, exist_ok=True)
    for name in ("skull.png", "face.png", "skull.ply", "face.ply", "report.json"):
        (out / name).unlink(missing_ok=True)  # of an earlier scan: they are not to stand beside this one's
    bone, skin = (out / "skull.ply", out / "face.ply") if config.meshes else (None, None)
    write_case(case, CaseFiles(out / "skull.png", out / "face.png", bone, skin, out / "report.json"))
    for finding in case.findings:
        print(f"{finding.severity:6} {finding.name}: {finding.text}")
    if case.status == "refused":
        print(f"data.ct: refused; {out / 'report.json'} says why", file=sys.stderr)
        return 2
    print(f"{case.status}: {out}")
    return 0


def _batch(patients: Path, out: Path, config: CtConfig) -> int:
    from data.ct.batch import run_batch

    counts = run_batch(patients, out, config)
    told = ", ".join(f"{count} {status}" for status, count in counts.items())
    print(f"{told}: {out / 'summary.csv'}")
    return 3 if counts["refused"] else 0


if __name__ == "__main__":
    sys.exit(main())
