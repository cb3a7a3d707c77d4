"""One drawing process for all sessions: who is drawn next, who waits, and a new process for one that died."""

from __future__ import annotations

import multiprocessing
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from time import monotonic
from typing import Any, Literal

from muti_control.studio import texts
from muti_control.studio.drawing import Preset, Request, serve

Lane = Literal["quick", "fine"]
LANES: tuple[Lane, ...] = ("quick", "fine")
PATIENCE = 4.0  # s until a process that does not stop is killed: reading a large scan hears nothing
TRIES = 2  # of a request whose process dies

Report = Callable[[str, Any], None]


class QueueFull(ValueError):
    """Too many requests wait already."""


@dataclass(eq=False)
class Task:
    """A request and who hears of it.

    report: called as (kind, content): started, checked, faces, step, saving, again, and at the end done, stopped or
    failed. stopped: when the session asked for the end.
    """

    lane: Lane
    number: int
    request: Request
    report: Report
    tries: int = 0
    stopped: float | None = None


@dataclass
class Worker:
    """The queue of all sessions, and the process that draws.

    Short requests (``quick``) have a lane of their own: they are done between two steps of a long one (``fine``).

    Args:
        loading: of ``Reconstructor.load``. limit: requests that may wait.
        call: runs a function in the thread of the page.
    """

    loading: Mapping[str, Any]
    limit: int
    call: Callable[..., Any] = lambda function, *arguments: function(*arguments)
    restarts: int = 0
    preset: Preset | None = None
    _waiting: dict[Lane, deque[Task]] = field(default_factory=lambda: {lane: deque() for lane in LANES})
    _running: dict[Lane, Task | None] = field(default_factory=lambda: dict.fromkeys(LANES))
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _number: int = 0
    _ready: bool = False
    _closed: bool = False

    def start(self) -> Preset:
        """Start the process and wait until it has the model. Raises: ValueError: the weights cannot be used."""
        self._begin()
        try:
            _, kind, content = self._connection.recv()
        except EOFError:
            kind, content = "refused", texts.PROCESS_DIED
        if kind == "refused":
            raise ValueError(content)
        self.preset, self._ready = content, True
        threading.Thread(target=self._watch, name="studio-worker", daemon=True).start()
        return self.preset

    @property
    def ready(self) -> bool:
        """Whether the process has the model; it has not for some seconds after it was started again."""
        return self._ready

    @property
    def process(self) -> int | None:
        """The number of the process."""
        return self._process.pid

    def submit(self, lane: Lane, request: Request, report: Report) -> Task:
        """Put a request at the end of its lane. Raises: QueueFull."""
        with self._lock:
            if sum(map(len, self._waiting.values())) >= self.limit:
                raise QueueFull(texts.QUEUE_FULL.format(limit=self.limit))
            self._number += 1
            task = Task(lane, self._number, request, report)
            self._waiting[lane].append(task)
            self._dispatch()
        return task

    def cancel(self, task: Task) -> None:
        """End a task; it reports ``stopped``. A process that goes on in spite of that is replaced by a new one."""
        with self._lock:
            if task in self._waiting[task.lane]:
                self._waiting[task.lane].remove(task)
                self._tell(task, "stopped", None)
            elif self._running[task.lane] is task and task.stopped is None:
                task.stopped = monotonic()
                self._stop[LANES.index(task.lane)] = task.number

    def ahead(self, task: Task) -> int:
        """Return how many tasks of the same lane come before one that waits; 0 for one that is drawn."""
        with self._lock:
            waiting = self._waiting[task.lane]
            return waiting.index(task) + (self._running[task.lane] is not None) if task in waiting else 0

    def close(self) -> None:
        """End the process."""
        self._closed = True
        with suppress(OSError):
            self._connection.close()
        self._process.kill()
        self._process.join(5)

    def _begin(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._stop = context.RawArray("q", len(LANES))
        self._process = context.Process(
            target=serve, args=(theirs, self._stop, dict(self.loading)), daemon=True
        )
        self._process.start()
        theirs.close()

    def _watch(self) -> None:
        while not self._closed:
            with suppress(OSError):  # closed meanwhile
                ready = wait([self._connection, self._process.sentinel], timeout=0.1)
                if self._connection in ready:
                    with suppress(EOFError):
                        self._hear(*self._connection.recv())
                        continue
                if ready and not self._closed:
                    self._again()
            above, below = (self._running[lane] for lane in LANES)
            if _is_deaf(above) or (above is None and _is_deaf(below)):
                self._process.kill()

    def _hear(self, number: int, kind: str, content: Any) -> None:
        with self._lock:
            if kind == "ready":
                self.preset, self._ready = content, True
            elif kind == "refused":  # it did load before: the file was changed
                for lane in LANES:
                    while self._waiting[lane]:
                        self._tell(self._waiting[lane].popleft(), "failed", content)
            task = next((task for task in self._running.values() if task and task.number == number), None)
            if task is not None:
                if kind in ("done", "stopped", "failed"):
                    self._running[task.lane] = None
                    below = self._running["fine"]
                    if below is not None and below.stopped is not None:  # it can hear from now on
                        below.stopped = monotonic()
                self._tell(task, kind if task.stopped is None else "stopped", content)
            self._dispatch()

    def _again(self) -> None:
        """Start a new process in place of one that died; what it was drawing comes first."""
        with self._lock:
            self._ready = False
            for lane, task in self._running.items():
                self._running[lane] = None
                if task is None:
                    continue
                task.tries += 1
                if task.stopped is not None:
                    self._tell(task, "stopped", None)
                elif task.tries >= TRIES:
                    self._tell(task, "failed", texts.DIED_TWICE)
                else:
                    self._waiting[lane].appendleft(task)
                    self._tell(task, "again", None)
            self.restarts += 1
            self._process.join(5)
            self._connection.close()
            self._begin()

    def _dispatch(self) -> None:
        for lane in LANES:  # a long one does not begin before all short ones are done
            short = lane == "fine" and (self._running["quick"] or self._waiting["quick"])
            if self._ready and self._running[lane] is None and self._waiting[lane] and not short:
                task = self._waiting[lane].popleft()
                self._running[lane] = task
                self._tell(task, "started", None)
                with suppress(OSError):  # the process is gone: the watch finds out
                    self._connection.send((LANES.index(lane), task.number, task.request))

    def _tell(self, task: Task, kind: str, content: Any) -> None:
        self.call(task.report, kind, content)


def _is_deaf(task: Task | None) -> bool:
    return task is not None and task.stopped is not None and monotonic() - task.stopped > PATIENCE
