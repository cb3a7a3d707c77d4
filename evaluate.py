"""How good are the faces, and is it the same person?

    python evaluate.py [CONFIG.yaml] [key=value ...]
    python evaluate.py weights=models/demo/iccr_demo.safetensors data.root=cohort
    python evaluate.py faces=my_pictures mapping=whose.csv data.root=my_data
    python evaluate.py configs/evaluate/sweep.yaml weights=models/demo/iccr_demo.safetensors data.root=cohort
    python evaluate.py compare results/A results/B

The faces of a model (weights=FILE) or of another program (faces=FOLDER) are compared with the true faces of people that
no part of the model has seen, beside controls, baselines and the ceiling. The report and its figures go to
results/NAME. The sweep draws the same probes with several SPGD settings, and ends with the one that serves.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from muti_control.evaluation.compare import main as compare
from muti_control.evaluation.protocol.config import EvaluateConfig, SweepConfig
from muti_control.evaluation.request import check_request, with_preset
from muti_control.sampling.request import recommended_in_help
from settings.help import help_text, is_asked
from settings.program import Program

if TYPE_CHECKING:
    from muti_control.evaluation.plan import Plan
    from muti_control.evaluation.results.results import Evaluation


def main(arguments: Sequence[str]) -> int:
    """Run, and return the exit code: 0, or one of :class:`settings.program.Program`."""
    if arguments[:1] == ["compare"]:
        return compare(arguments[1:])
    with Program("evaluate.py", "interrupted") as end:
        if is_asked(arguments):
            preset, line = with_preset(arguments)
            source = f"as {os.path.relpath(preset)} has them"
            print(help_text(__doc__, EvaluateConfig, line, source, recommended_in_help))
        else:
            _run(arguments, end)
    return end.status


def _run(arguments: Sequence[str], end: Program) -> None:
    check_request(arguments)
    import torch  # seconds, which mistakes in settings and paths do not have to wait for

    from muti_control.evaluation.plan import make_plan
    from muti_control.evaluation.protocol.run_folder import release
    from muti_control.evaluation.report.tables import results_as_text
    from muti_control.evaluation.results.results import REPORT
    from muti_control.evaluation.run import evaluate, open_folder

    folder, resumed = Path(), False
    try:
        plan = make_plan(arguments)
        resumed = plan.cfg.resume
        end.quiet = not plan.team.is_first
        if plan.team.is_first:
            folder = end.place = open_folder(plan)
            end.stopped = f"interrupted; what is done is kept in {folder}: resume=true continues"
        evaluation = evaluate(plan, folder)
    except torch.OutOfMemoryError:
        end.quiet = False
        end.fail("out of GPU memory; try batch_size=1 or device=cpu")
        return
    except (ValueError, OSError):
        release(folder, resumed)
        raise
    if evaluation is not None:
        print(f"\n{results_as_text(evaluation)}\n\n{evaluation.notice}\n{folder / REPORT}")
        if plan.cfg.sweep is not None:
            _recommend(plan, plan.cfg.sweep, evaluation, folder)


def _recommend(plan: Plan, settings: SweepConfig, evaluation: Evaluation, folder: Path) -> None:
    from data.files import write_text
    from muti_control.evaluation import sweep
    from muti_control.evaluation.report import figures

    rows = sweep.rows_of(evaluation, settings)
    if (plot := figures.sweep(rows)) is not None:
        write_text(folder / sweep.PLOT, plot)
    line = sweep.advice(rows, plan.cfg, plan.weights["model"].recommended)
    print(f"\n{sweep.table(rows)}\n\n{folder / sweep.PLOT}\n\n{line}")


if __name__ == "__main__":
    code = main(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the rest is tidying up
    sys.exit(code)
