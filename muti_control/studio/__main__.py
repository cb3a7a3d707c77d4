"""The studio: a page on this machine where a skull goes in, and faces, their spread and a report come out.

    python -m muti_control.studio [port=7860] [show=true] [weights=FILE] [keep=false]

It needs `pip install -e ".[studio]"`, works offline, and answers this machine alone: another host=ADDRESS needs a
token=WORD of at least 16 letters, which the address then carries. Uploads and cases lie in results/studio, and are
removed when their session ends, unless keep=true. Ctrl-C ends the studio.
"""

from __future__ import annotations

import secrets
import socket
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from data.program import run_program
from muti_control.studio.config import StudioConfig

WAITING = 64  # drawings in the queue


def _studio(config: StudioConfig) -> int:
    if find_spec("nicegui") is None:
        raise ValueError('the studio needs NiceGUI: python -m pip install -e ".[studio]"')
    port = _free_port(config.host, config.port)
    from muti_control.sampling.request import shipped
    from muti_control.studio.worker import Worker

    if not shipped(config.weights).is_file():
        raise ValueError(
            f"weights: {config.weights} does not exist; leave the setting out for the demo's model"
        )
    folder = Path(config.out)
    left = len(list(folder.glob("*/session-*")))
    folder.mkdir(parents=True, exist_ok=True)
    if left and not config.keep:
        print(
            f"note: {folder} has {left} sessions of before, with what was uploaded; remove them if nobody needs them"
        )
    root = Path(tempfile.mkdtemp(prefix="studio-", dir=folder))
    loading = {"weights": config.weights, "device": config.device, "precision": config.precision}
    worker = Worker(loading, WAITING)
    print("loading the model ...", flush=True)
    try:
        worker.start()
        from muti_control.studio.page import run  # NiceGUI takes a while

        name = f"[{config.host}]" if ":" in config.host else config.host
        address = f"http://{name}:{port}/" + ("" if config.token is None else f"?token={config.token}")
        run(config, port, worker, root, address, secrets.token_hex(32))
    finally:
        worker.close()
        if not any(root.iterdir()):
            root.rmdir()
    return 0


def _free_port(host: str, port: int) -> int:
    """Return the port that will be listened at. Raises: ValueError: it is taken, or the host is not this machine's."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise ValueError(
            f"port: {host}:{port} cannot be used ({error.strerror}); give another port=NUMBER"
        ) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the studio that the command line asks for, and return the exit code."""
    return run_program(
        "muti_control.studio",
        __doc__,
        StudioConfig,
        _studio,
        arguments,
        paths="",
        stopped="the studio has ended",
    )


if __name__ == "__main__":
    sys.exit(main())
