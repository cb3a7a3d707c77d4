"""One try: a program runs in a child process and a folder of its own, and is held to what every program promises."""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import resource
import select
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import filter as matching
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parent.parent.parent
OUTSIDE = "secret.raw"  # a pipe beside the folder of a try, which no program has a reason to open
_MEMORY = 3 << 30  # bytes that a try may take beside the libraries
_SECONDS = 60
_LINES = 40  # of a message at most
_UNHANDLED = 15  # seconds after which a program that does not handle SIGTERM gets it all the same

Expectation = Literal["refused", "accepted", "either"]
Stdout = Literal["file", "full", "closed"]


@dataclass
class Try:
    """What a program gets.

    Attributes:
        kind: of the input, for the table.
        program: name of the program, as in ``sandbox.PROGRAMS``.
        arguments: of its command line; paths are relative to the folder.
        files: contents by name; a callable gets the path and makes it, for pipes and links.
        expected: "refused": exit code 2 and nothing written. "accepted": exit code 0.
        codes: exit codes that the program may have.
        may_write: beginnings of the names of files that may be there after a refusal.
        stdout: a file, a full device, or a pipe that nobody reads.
        disk: the size in bytes that no file may pass: a full disk. None: no limit.
        replaced: a folder with an earlier result; after a refusal it must be as before.
        made: patterns of file names that must be there afterwards.
        stop: seconds after which a process of its own gets SIGTERM, counted from when it handles that signal;
            infinite: never.
    """

    kind: str
    program: str
    arguments: Sequence[str]
    files: Mapping[str, bytes | str | Callable[[Path], Any]] = field(default_factory=dict)
    expected: Expectation = "either"
    codes: tuple[int, ...] = (0, 2)
    may_write: tuple[str, ...] = ()
    stdout: Stdout = "file"
    disk: int | None = None
    replaced: str | None = None
    made: tuple[str, ...] = ()
    stop: float | None = None


def run(trial: Try, main: Callable[[list[str]], int | None], folder: Path) -> list[str]:
    """Run one try in ``folder``, which is made and removed. Return what is wrong, each as "class: detail"."""
    shutil.rmtree(folder, ignore_errors=True)
    work = folder / "work"
    work.mkdir(parents=True)
    for name, content in trial.files.items():
        path = work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(path)
        else:
            path.write_bytes(
                content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
            )
    before = _contents(work)
    with _watched(folder / OUTSIDE) as opened:
        code, killed, text = _run_child(trial, main, work)
    wrong = _judge(trial, code, killed, text, before, _contents(work))
    wrong += [f"opened {OUTSIDE}, which is outside of the folder"] if opened else []
    shutil.rmtree(folder, ignore_errors=True)
    return wrong


def _run_child(
    trial: Try, main: Callable[[list[str]], int | None], work: Path
) -> tuple[int, str | None, str]:
    """Return the exit code, what ended the process if it did not end itself, and what it printed."""
    read, write = os.pipe()  # a file would be subject to the limit on the size of files
    pid = os.fork()
    if pid == 0:
        _child(trial, main, work, write)
    os.close(write)
    os.set_blocking(read, False)
    printed, ended, start = bytearray(), False, time.monotonic()
    deadline, handled = start + _SECONDS, trial.stop is None
    stop_at = math.inf if trial.stop is None else start + max(_UNHANDLED, trial.stop)
    while not ended and time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        ended = bool(done)
        while select.select([read], [], [], 0 if ended else 0.02)[0] and (some := os.read(read, 1 << 16)):
            printed += some
        if not (ended or handled) and (handled := _handles_sigterm(pid)):
            stop_at = time.monotonic() + (trial.stop or 0)
        if not ended and time.monotonic() > stop_at:
            if not handled or _handles_sigterm(pid):  # else it has ended, and tidies up
                os.kill(pid, signal.SIGTERM)
            stop_at = math.inf
    if not ended:
        os.killpg(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    os.close(read)
    code = os.waitstatus_to_exitcode(status)
    killed = None if code >= 0 else signal.Signals(-code).name if ended else "time limit"
    return code, killed, printed.decode("utf-8", "replace")


def _handles_sigterm(pid: int) -> bool:
    caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def _child(trial: Try, main: Callable[[list[str]], int | None], work: Path, printed: int) -> None:
    """Run the program and end the process with its exit code."""
    os.setpgid(0, 0)
    os.chdir(work)
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, used + _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    out = printed
    if trial.stdout == "full":
        out = os.open("/dev/full", os.O_WRONLY)
    elif trial.stdout == "closed":
        reader, out = os.pipe()
        os.close(reader)
    os.dup2(out, 1)
    os.dup2(printed, 2)
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), "utf-8")
    sys.stderr = io.TextIOWrapper(
        io.FileIO(2, "w", closefd=False), "utf-8", "backslashreplace", line_buffering=True
    )
    if trial.disk is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (trial.disk, trial.disk))
    code: Any = 1
    try:
        if trial.stop is not None:
            os.environ["PYTHONPATH"] = str(ROOT)
            os.execv(sys.executable, [sys.executable, "-m", trial.program, *trial.arguments])
        code = main(list(trial.arguments)) or 0
        sys.stdout.flush()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 2
    except BaseException:  # what escapes a program is what is looked for
        os.write(2, traceback.format_exc().encode("utf-8", "backslashreplace"))
    finally:
        os._exit(int(code) & 255)


def _judge(
    trial: Try, code: int, killed: str | None, text: str, before: Mapping[str, str], after: Mapping[str, str]
) -> list[str]:
    last = " ".join(text.strip().splitlines()[-1:])[:200]
    if killed == "SIGINT" and trial.stop is not None:  # CPython's end, if the signal came during an import
        killed, code = None, 143
    if killed is not None:
        return [f"killed by {killed}: {last}"]
    wrong = []
    if "Traceback (most recent call last)" in text:
        wrong.append(f"traceback: {last}")
    codes = (
        *trial.codes,
        *([141] if trial.stdout == "closed" else []),
        *([143] if trial.stop is not None else []),
    )
    if code not in codes and not wrong:
        wrong.append(f"exit code {code}: {last}")
    if trial.expected == "refused" and code == 0:
        wrong.append(f"accepted in silence: {last}")
    if trial.expected == "accepted" and code == 2:
        wrong.append(f"refused, but sound: {last}")
    if code in (2, 143) and not text.strip():
        wrong.append(f"ended without a word: exit code {code}")
    if code == 2 and len(text.splitlines()) > _LINES:
        wrong.append(f"a message of {len(text.splitlines())} lines")
    changed = [name for name, digest in before.items() if after.get(name) != digest]
    if trial.replaced is not None and code != 0:
        earlier = [name for name in changed if name.startswith(trial.replaced)]
        is_log = [
            name.endswith(".jsonl") and after.get(name, "").startswith(before[name]) for name in earlier
        ]
        lost = [name for name, grown in zip(earlier, is_log, strict=True) if not grown]
        added = [name for name in after if name.startswith(trial.replaced) and name not in before]
        if lost or added:
            wrong.append(f"an earlier result is lost or mixed: {(lost or added)[0]}")
    inputs = [name for name in changed if trial.replaced is None or not name.startswith(trial.replaced)]
    if inputs:
        wrong.append(f"an input was changed: {inputs[0]}")
    new = [name for name in after if name not in before]
    wrong += [f"not made: {pattern}: {last}" for pattern in trial.made if not matching(new, pattern)]
    left = [
        name for name in new if name.endswith(".tmp") or (code == 2 and not name.startswith(trial.may_write))
    ]
    if left and trial.replaced is None:
        wrong.append(f"left behind: {left[0]}")
    return wrong


@contextmanager
def _watched(pipe: Path) -> Iterator[list[bool]]:
    """Make a pipe; the list that is yielded holds True once somebody opened it to read."""
    os.mkfifo(pipe)
    opened: list[bool] = []
    ended = threading.Event()

    def wait() -> None:
        writer = os.open(pipe, os.O_WRONLY)  # returns when somebody reads
        if not ended.is_set():
            opened.append(True)
        os.close(writer)

    watcher = threading.Thread(target=wait, daemon=True)
    watcher.start()
    try:
        yield opened
    finally:
        ended.set()
        os.close(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK))
        watcher.join(1)


def _contents(folder: Path) -> dict[str, str]:
    """Return the hash of every file by its name; of a log, which may grow, the content."""
    result = {}
    for path in sorted(folder.rglob("*")):
        name = os.fsencode(path.relative_to(folder)).decode("utf-8", "backslashreplace")
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            result[name] = "no file"
        elif path.is_file():
            content = path.read_bytes()
            is_log = path.suffix == ".jsonl"
            result[name] = content.hex() if is_log else hashlib.sha256(content).hexdigest()
    return result
