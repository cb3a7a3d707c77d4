"""What stands for the drawing of a scan in the processes of a batch; it imports nothing that takes time."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any


def draw(out: Path, config: Any, job: tuple[str, Path]) -> None:
    """Kill the process at a scan called killer, hang at one called sleeper; write that any other one is refused."""
    if "sleeper" in job[1].name:
        time.sleep(60)
    if "killer" in job[1].name:
        os.kill(os.getpid(), signal.SIGKILL)
    finding = {"name": "unreadable", "severity": "refuse", "text": "read"}
    report = {"status": "refused", "findings": [finding]}
    (out / "reports" / f"{job[0]}.json").write_text(json.dumps(report))
