"""Train one stage: python train.py [CONFIG.yaml] [key=value ...]

Without arguments it trains the demo's control stage. The same command continues an interrupted run.
"""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

from settings.reading import parse_command_line

DEFAULT_CONFIG = Path(__file__).resolve().parent / "configs" / "demo" / "control.yaml"


def main(argv: list[str]) -> int:
    """Return the exit status: 0 for a finished run, 2 for input that cannot be used, and 130 (Ctrl-C), 143 (SIGTERM) or
    138 (SIGUSR1) where a signal stopped the run before its end: it is saved, and the same command continues it."""
    if any(arg in ("-h", "--help") for arg in argv):
        from muti_control.training.config import ExperimentConfig
        from settings.reading import to_yaml

        print(f"{__doc__}\n{ExperimentConfig.__doc__}")
        print("Every key with its default:\n")
        print(to_yaml(ExperimentConfig))
        return 0
    has_config = any("=" not in arg and Path(arg).suffix in (".yaml", ".yml") for arg in argv)

    import torch

    from data.images import ImageError
    from ldm.checkpoint import CheckpointError
    from muti_control.training.config import ExperimentConfig
    from muti_control.training.run import prepare

    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # its tips would stand between our lines
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # between Lightning and torch
    warnings.filterwarnings("ignore", message=".*broadcast_buffers.*")  # older torch lacks its new name
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # the run measures that
    try:
        arguments = argv if has_config else [str(DEFAULT_CONFIG), *argv]
        run = prepare(parse_command_line(ExperimentConfig, arguments))
    except (ValueError, OSError) as error:  # each says what is wrong and how to mend it
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train.py: interrupted before the training began", file=sys.stderr)
        return 130
    try:
        run.start()
        if not run.finished:
            run.trainer.fit(run.stage, ckpt_path=run.resumed, weights_only=True)
        return 0 if run.finish() is not None else 128 + run.save_last.signal
    except (ImageError, CheckpointError, FloatingPointError, OSError) as error:
        # A picture that cannot be read, files that differ, weights that are not finite, a full disk.
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError:
        print(
            "train.py: out of GPU memory; use a smaller train.batch_size with train.accumulate",
            file=sys.stderr,
        )
        return 2
    except (KeyboardInterrupt, SystemExit):  # Lightning turns the first into the second
        print("train.py: interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
