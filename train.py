"""Train one stage: python train.py [CONFIG.yaml] [key=value ...]

Without arguments it trains the demo's control stage. The same command continues an interrupted run.
"""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

from muti_control.training.config import ExperimentConfig, check_files
from settings.program import Program
from settings.reading import parse_command_line, to_yaml

DEFAULT_CONFIG = Path(__file__).resolve().parent / "configs" / "demo" / "control.yaml"


def main(argv: list[str]) -> int:
    """Return the exit status: 0 for a finished run, 2 for input that cannot be used, and 130 (Ctrl-C), 143 (SIGTERM) or
    138 (SIGUSR1) where a signal stopped the run before its end: it is saved, and the same command continues it."""
    with Program("train.py", "interrupted before the training began") as end:
        if any(arg in ("-h", "--help") for arg in argv):
            print(f"{__doc__}\n{ExperimentConfig.__doc__}\nEvery key with its default:\n")
            print(to_yaml(ExperimentConfig))
        else:
            _train(argv, end)
    return end.status


def _train(argv: list[str], end: Program) -> None:
    has_config = any("=" not in arg and Path(arg).suffix in (".yaml", ".yml") for arg in argv)
    cfg = parse_command_line(ExperimentConfig, argv if has_config else [str(DEFAULT_CONFIG), *argv])
    check_files(cfg)
    import torch  # seconds, which mistakes in settings and paths do not have to wait for

    from muti_control.training.run import prepare

    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # its tips would stand between our lines
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # between Lightning and torch
    warnings.filterwarnings("ignore", message=".*broadcast_buffers.*")  # older torch lacks its new name
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # the run measures that
    run = prepare(cfg)
    end.stopped = "interrupted; the same command continues from the last checkpoint"
    end.place = run.cfg.run_dir
    try:
        with run:
            if not run.finished:
                run.trainer.fit(run.stage, ckpt_path=run.resumed, weights_only=True)
            if run.finish() is None:
                end.status = 128 + run.save_last.signal
    except torch.OutOfMemoryError:
        end.fail("out of GPU memory; use a smaller train.batch_size with train.accumulate")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
