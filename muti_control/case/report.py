"""Write the report of a finished run into its folder: report.pdf and report.html, with the same contents.

    python -m muti_control.case.report FOLDER [case_number=7/2026] [examiner="A. Name"] [notes=TEXT] [zip=true]

It is made of the files of the folder alone: the same folder gives the same report. What the examiner said in sample.py
or in the report before need not be said again. zip=true writes FOLDER.zip beside the folder, without local.json.
"""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from data.files import replacing, replacing_result
from data.program import run_program
from muti_control.case.contents import REPORT_WRITTEN, Heading, contents
from muti_control.case.log import append, files_of, read_log
from muti_control.case.pages import check_installed, html_page, pdf_pages
from muti_control.case.verify import verify
from muti_control.record import LOG, RECORD, read_record, write_record
from settings.base import Settings

Format = Literal["pdf", "html"]


class ReportConfig(Settings):
    """What is printed in the report."""

    case_number: str = ""
    """Printed as it is."""
    examiner: str = ""
    """Printed as it is."""
    notes: str = ""
    """Printed as they are."""
    format: Format = "pdf"
    """pdf writes a page (HTML) too, html the page alone."""
    zip: bool = False
    """Also write a zip file of the whole case."""


def write_report(folder: Path, heading: Heading, format: Format = "pdf") -> list[Path]:
    """Write the report of a finished run, and say so in its log; a report that is there and the same stays.

    Args:
        heading: what is empty in it is as in the report before, or as the run's settings say.

    Returns:
        The files.

    Raises:
        ValueError: no finished run, or a library is missing. OSError: a file cannot be read or written; the report
            before and the log are as they were.
    """
    check_installed(format == "pdf")
    if not (folder / RECORD).is_file():
        raise ValueError(f"{folder}: has no {RECORD}; give the folder of a run of sample.py")
    if not (folder / LOG).exists():
        write_record(folder, read_record(folder))  # records of before hold paths
        append(folder, "log begun: the folder had none", wrote=files_of(folder))
    log = read_log(folder)
    record = read_record(folder)
    said = {name: record["config"].get(name, "") for name in vars(heading)}
    for entry in log.entries:
        said |= entry["details"]["heading"] if entry["action"] == REPORT_WRITTEN else {}
    heading = Heading(**{name: own or str(said[name] or "") for name, own in vars(heading).items()})
    public = read_record(folder, local_paths=False)
    report = contents(folder, public, verify(folder), heading)
    pages = {"report.html": html_page(report)}
    if format == "pdf":
        pages["report.pdf"] = pdf_pages(report)
    written = [folder / name for name in pages]
    if any(not path.is_file() or path.read_bytes() != pages[path.name] for path in written):
        with replacing_result(folder, list(pages), list(pages), "report.html"):
            for path in written:
                with replacing(path) as temporary:
                    temporary.write_bytes(pages[path.name])
            append(folder, REPORT_WRITTEN, {"heading": vars(heading)}, pages)
    return written


def write_zip(folder: Path) -> Path:
    """Write FOLDER.zip beside a case folder: the same files give the same bytes; ``local.json`` is left out.

    Raises:
        ValueError: the folder is not as its log says. OSError: the file cannot be written.
    """
    _check_as_logged(folder)
    path = folder.resolve().with_name(f"{folder.resolve().name}.zip")
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name in [*files_of(folder), LOG]:
            entry = zipfile.ZipInfo(f"{path.stem}/{name}", (1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, (folder / name).read_bytes())
    return path


def _check_as_logged(folder: Path) -> None:
    differences = verify(folder).differences
    if differences:
        raise ValueError(
            f"{folder}: is not as its log says, so it is not zipped: {'; '.join(differences[:5])}"
        )


def _report(config: ReportConfig, folder: Path) -> int:
    heading = Heading(config.case_number, config.examiner, config.notes)
    if config.zip and (folder / LOG).exists():
        _check_as_logged(folder)  # before the report is written
    for path in write_report(folder, heading, config.format):
        print(path)
    if config.zip:
        print(write_zip(folder))
    print(f"head of the log: {read_log(folder).head}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report that the command line asks for, and return the exit code."""
    return run_program("muti_control.case.report", __doc__, ReportConfig, _report, arguments, paths="FOLDER")


if __name__ == "__main__":
    sys.exit(main())
