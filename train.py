"""Train one stage: python train.py [CONFIG.yaml] [key=value ...]

Without arguments it trains the demo's control stage. The same command continues an interrupted run.
"""

from __future__ import annotations

import sys
from pathlib import Path

DEFAULT_CONFIG = Path(__file__).resolve().parent / "configs" / "demo" / "control.yaml"


def main(argv: list[str]) -> int:
    """Exit status: 0 done, 2 for input that cannot be used, 130 after a second Ctrl-C."""
    if any(arg in ("-h", "--help") for arg in argv):
        print(__doc__)
        return 0
    has_config = bool(argv) and "=" not in argv[0]
    path = Path(argv[0]) if has_config else DEFAULT_CONFIG

    from muti_control.config import load_experiment
    from muti_control.run import run

    try:
        run(load_experiment(path, argv[1:] if has_config else argv))
    except (
        ValueError
    ) as error:  # ConfigError, ManifestError, ImageError, CheckpointError: each says what to mend
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "train.py: interrupted; the last checkpoint is kept, the same command continues", file=sys.stderr
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
