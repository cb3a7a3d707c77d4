"""Skull pictures to faces.

    python sample.py [CONFIG.yaml] [key=value ...]
    python sample.py skull=my_skull.png sex=female age=43 body_mass=4 num_samples=4 out=results/mine

skull is a picture, a folder of pictures, a head CT, or a list (.csv, .json) that says whose each skull is. Without it,
the shipped test skulls are reconstructed. Each face becomes a PNG. contact_sheet.png shows them all, and record.json
holds what is needed to repeat them. What comes out is an approximation, not an identification.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from data.files import drop_aside
from data.sheet import NOTICE
from muti_control.case.repeat import compare_runs
from muti_control.sampling.config import SampleConfig
from muti_control.sampling.request import check_request, recommended_in_help
from settings.help import help_text, is_asked
from settings.program import Program

if TYPE_CHECKING:
    from muti_control.sampling.job import Job


def main(arguments: Sequence[str]) -> int:
    """Run, and return the exit code: 0, 1 where repeated faces differ, or one of :class:`settings.program.Program`."""
    with Program("sample.py", "interrupted; nothing was written") as end:
        if is_asked(arguments):
            print(
                help_text(__doc__, SampleConfig, arguments, "as these weights use them", recommended_in_help)
            )
        else:
            _run(arguments, end)
    return end.status


def _run(arguments: Sequence[str], end: Program) -> None:
    started = time.monotonic()
    repeat = check_request(arguments).repeat
    import torch  # seconds, which mistakes in settings and paths do not have to wait for

    from muti_control.case import runs
    from muti_control.distributed import ProcessError
    from muti_control.sampling.draw import reconstruct_cases
    from muti_control.sampling.prepare import prepare

    try:
        job = prepare(arguments)
    except torch.OutOfMemoryError:
        end.fail("out of GPU memory while loading the weights; try precision=bf16 or device=cpu")
        return
    first, end.place = job.team.is_first, job.folder.path
    if first:
        print("\n".join(job.introduction()), flush=True)
    else:
        end.name += f": {job.team.name}"
    try:
        with job.team, runs.logged(job), job.all_or_nothing():
            reconstruct_cases(job)
        report = runs.report_of(job) if first else []
    except torch.OutOfMemoryError:
        smaller = f"batch_size={max(1, job.batch_size // 2)}"
        if job.spgd is not None:  # its memory does not depend on the batch
            smaller = f"spgd.at_once=1 spgd.recompute=true, or {smaller}"
        end.fail(f"out of GPU memory; try {smaller}")
        return
    except ProcessError as error:
        end.quiet = not first
        end.fail(f"{error}; {_progress(job)}")
        return
    except KeyboardInterrupt:
        end.quiet, end.stopped = not first, f"interrupted; {_progress(job)}"
        raise
    if first:
        drop_aside(job.folder.path)  # of a run that was killed, if this one continued it
        faces = f"{len(job.draws)} face{'s' * (len(job.draws) != 1)}"
        print(f"{faces} in {time.monotonic() - started:.1f} s: {job.folder.path}")
        print(f"Contact sheet: {job.folder.path / 'contact_sheet.png'}")
        print("\n".join([*(f"Report: {path}" for path in report), NOTICE]))
        if repeat is not None:
            end.status, lines = compare_runs(repeat, job.folder.path)
            print("\n".join(lines))


def _progress(job: Job) -> str:
    """Return where the faces of a stopped run are."""
    if (job.folder.path / "record.json").is_file():
        return f"the faces so far are in {job.folder.path}; resume=true continues"
    return "nothing was written"


if __name__ == "__main__":
    code = main(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the rest is tidying up
    sys.exit(code)
