"""``python -m data.ct IN OUT [key=value ...]``: skull and face of a head CT, or of a folder of patients.

IN is a DICOM folder or a volume file; with biometrics=, the folder that holds one of these for each patient. OUT is
the folder for the results.

Exit code: 0 everything drawn (flagged scans included), 2 the scan or the command was refused, 3 some of a batch were.
"""

from __future__ import annotations

import sys
from pathlib import Path

from data.cohort.config import check_packages
from data.ct.config import PACKAGES, CtConfig
from data.files import check_output, replacing_result
from data.program import run_program


def main(argv: list[str] | None = None) -> int:
    """Return the exit status: see the head of this file; 130 after Ctrl-C."""
    stopped = "stopped; the same command goes on"
    return run_program("data.ct", __doc__, CtConfig, _draw, argv, paths="IN OUT", stopped=stopped)


def _draw(config: CtConfig, scan: Path, out: Path) -> int:
    check_packages(PACKAGES, "cohort,ct")
    return (_draw_batch if config.biometrics else _draw_one)(scan, out, config)


def _draw_one(path: Path, out: Path, config: CtConfig) -> int:
    from data.ct.drawing import FILES, bytes_of, draw_scan  # after check_packages

    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file, expected a folder for the results")
    check_output(out, bytes_of(config))
    drawing = draw_scan(path, config)
    paths = {name: out / name for name in FILES}
    with replacing_result(out, FILES, FILES, "report.json"):  # no file of an earlier scan beside this one's
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
