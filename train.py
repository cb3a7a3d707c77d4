"""Train one stage.

    python train.py [CONFIG.yaml] [key=value ...]
    python train.py configs/demo/pipnet_face.yaml data.root=my_data train.batch_size=16

Without CONFIG.yaml it trains the demo's control stage, configs/demo/control.yaml. The same command continues an
interrupted run. Pictures, curves, checkpoints and model.safetensors go to out/name.
"""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

from muti_control.training.config import ExperimentConfig, check_files
from settings.help import help_text, is_asked
from settings.program import Program
from settings.reading import parse_command_line

DEFAULT_CONFIG = Path(__file__).resolve().parent / "configs" / "demo" / "control.yaml"


def main(argv: list[str]) -> int:
    """Return the exit status: 0 for a finished run, 2 for input that cannot be used, and 130 (Ctrl-C), 143 (SIGTERM) or
    138 (SIGUSR1) where a signal stopped the run before its end: it is saved, and the same command continues it."""
    config = next((arg for arg in argv if "=" not in arg and Path(arg).suffix in (".yaml", ".yml")), None)
    arguments = argv if config else [str(DEFAULT_CONFIG), *argv]
    with Program("train.py", "interrupted before the training began") as end:
        if is_asked(argv):
            source = f"as {config or 'configs/demo/control.yaml'} has them"
            print(help_text(__doc__, ExperimentConfig, arguments, source))
        else:
            _train(arguments, end)
    return end.status


def _train(argv: list[str], end: Program) -> None:
    cfg = parse_command_line(ExperimentConfig, argv)
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
