"""How good are the faces, and is it the same person?

    python evaluate.py [CONFIG.yaml] [key=value ...]
    python evaluate.py weights=models/demo/iccr_demo.safetensors data.root=cohort
    python evaluate.py faces=my_pictures mapping=whose.csv data.root=my_data
    python evaluate.py compare results/A results/B

Faces of a model (weights=FILE) or of another program (faces=FOLDER) are held against the true faces of people that no
part of the model has seen, beside controls, baselines and the ceiling. The report and its figures go to results/NAME.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from muti_control.evaluation.compare import main as compare
from muti_control.evaluation.engine import evaluate, open_folder
from muti_control.evaluation.plan import prepare
from muti_control.evaluation.protocol.config import EvaluateConfig
from muti_control.evaluation.protocol.run_folder import release
from muti_control.evaluation.results.results import REPORT
from muti_control.evaluation.terminal import table
from settings.reading import to_yaml


def main(arguments: Sequence[str]) -> int:
    """Run, and return the exit code: 0, 2 for what the user can mend, 130 when interrupted."""
    if any(argument in ("-h", "--help", "help") for argument in arguments):
        print(f"{__doc__}\n{EvaluateConfig.__doc__}")
        print(f"Defaults, before configs/evaluate/quick.yaml or your YAML:\n\n{to_yaml(EvaluateConfig)}")
        return 0
    if arguments[:1] == ["compare"]:
        return compare(arguments[1:])
    folder, first = Path(), True
    try:
        plan = prepare(arguments)
        first = plan.team.is_first
        folder = open_folder(plan) if first else folder
        evaluation = evaluate(plan, folder)
    except torch.OutOfMemoryError:
        return _told("out of GPU memory; try batch_size=1 or device=cpu", 2)
    except (ValueError, OSError) as error:
        release(folder)
        return _told(str(error), 2) if first else 2
    except KeyboardInterrupt:
        kept = f"; what is done is kept in {folder}: resume=true continues" if folder.name else ""
        return _told(f"interrupted{kept}", 130) if first else 130
    if evaluation is not None:
        print(f"\n{table(evaluation)}\n\n{evaluation.notice}\n{folder / REPORT}")
    return 0


def _told(message: str, code: int) -> int:
    print(f"evaluate.py: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop is heard like Ctrl-C
    code = main(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the rest is tidying up
    sys.exit(code)
