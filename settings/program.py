"""How every program ends: one message, the exit code, signals, and a standard output that closed or filled up."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, Self, TextIO


class Program:
    """A context in which a program does its work; errors end it with one message on stderr and an exit code.

    2: ValueError, OSError, RecursionError, or no memory. 130: Ctrl-C. 143: SIGTERM, as schedulers send it. The work
    goes on when standard output cannot be written any more: a result is then whole, and the code is 141 where the
    reader went away (``| head``), 2 for a full disk. Other errors are faults of the program: they pass.

    Attributes:
        status: the exit code. stopped: the message after a signal; change it as the work proceeds.
        place: a file or folder that is written, for errors of the system that name none.
        quiet: whether another process of the run says the messages.

    Args:
        name: stands in front of every message.
    """

    def __init__(self, name: str, stopped: str = "stopped; nothing was written") -> None:
        self.name, self.stopped = name, stopped
        self.status = 0
        self.place: object = None
        self.quiet = False
        self._signal: int | None = None

    def __enter__(self) -> Self:
        self._streams = sys.stdout, sys.stderr
        self._guards = [_Guard(stream) for stream in self._streams]
        sys.stdout, sys.stderr = self._guards
        self._handler: Any = None
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGTERM, self._stop)
        return self

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        self._signal = signum
        raise KeyboardInterrupt

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        try:
            ours = self._end(error)
            for guard in self._guards:
                guard.flush()
            closed = self._guards[0].error
            if closed is not None and self.status == 0:
                self.status = 141 if isinstance(closed, BrokenPipeError) else 2
                if self.status == 2:
                    self.say(
                        f"standard output could not be written ({closed.strerror}); all the rest is done"
                    )
            return ours
        finally:
            sys.stdout, sys.stderr = self._streams
            if self._handler is not None:
                signal.signal(signal.SIGTERM, self._handler)

    def _end(self, error: BaseException | None) -> bool:
        """Report an error; return whether it is one of the user's."""
        # Lightning turns a Ctrl-C into SystemExit, the start of a compiled module turns a signal into ImportError.
        if isinstance(error, KeyboardInterrupt | SystemExit) or (error is not None and self._signal):
            self.fail(self.stopped, 128 + (self._signal or signal.SIGINT))
        elif isinstance(error, MemoryError | RuntimeError) and _is_memory(error):
            self.fail("out of memory; make the batch or the input smaller")
        elif isinstance(error, RecursionError):
            self.fail(f"an input is nested too deeply ({error})")
        elif isinstance(error, ValueError | OSError | FloatingPointError):
            text = str(error)
            if isinstance(error, OSError) and error.errno and (place := error.filename or self.place):
                text = f"{place}: {error.strerror}"
            is_list = all(line.startswith("  ") for line in text.splitlines()[1:])
            self.fail(text if is_list else " ".join(text.split()))
        return error is None or bool(self.status)

    def fail(self, message: str, status: int = 2) -> int:
        """Say why the program ends; return its exit code."""
        self.status = status
        self.say(message)
        return status

    def say(self, message: str) -> None:
        if not self.quiet:
            print(f"{self.name}: {message}", file=sys.stderr, flush=True)


def _is_memory(error: MemoryError | RuntimeError) -> bool:
    """Return whether memory ran out; torch has errors of its own for that."""
    text = str(error)
    return isinstance(error, MemoryError) or "out of memory" in text or "allocate memory" in text


class _Guard:
    """A standard stream that may close or fill up: from then on its text goes nowhere, and ``error`` says why."""

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream
        self.error: OSError | None = None
        with suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # names that are no UTF-8

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        self._attempt("write", text)
        return len(text)

    def flush(self) -> None:
        self._attempt("flush")

    def _attempt(self, name: str, *arguments: str) -> None:
        try:
            if self.stream is not None:
                getattr(self.stream, name)(*arguments)
        except OSError as error:
            self.error = error
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())  # type: ignore[union-attr]  # what is in the buffers too
                os.close(nowhere)
