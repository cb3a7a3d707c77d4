"""Work beside the sampling: pictures read ahead of it, faces written behind it, neither without bound.

Threads, not processes: decoding and encoding a picture leave Python's lock to the thread that feeds the device, and
nothing has to be copied between processes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(
    read: Callable[[Item], Result], items: Iterable[Item], ahead: int = 2
) -> Generator[tuple[Item, Result], None, None]:
    """Each item with ``read(item)``, in order; while one is worked on, a thread reads the next ``ahead``.

    What ``read`` raises is raised where its item would have come. Close the iterator (``contextlib.closing``) to
    leave early.
    """
    pending: deque[tuple[Item, Future[Result]]] = deque()
    with ThreadPoolExecutor(1, "read-ahead") as reader:
        try:
            for item in items:
                pending.append((item, reader.submit(read, item)))
                if len(pending) > ahead:
                    first, future = pending.popleft()
                    yield first, future.result()
            while pending:
                first, future = pending.popleft()
                yield first, future.result()
        finally:
            for _, future in pending:
                future.cancel()


class WriteBehind:
    """Calls made in the background by ``threads`` threads, with at most ``limit`` of them unfinished.

    A context manager: at its end all calls are done. What a call raises is raised by a later :meth:`put`, or at the
    end; when the block itself raises (Ctrl-C included), the calls made before it are still carried out.
    """

    def __init__(self, threads: int, limit: int) -> None:
        self._pool = ThreadPoolExecutor(threads, "write-behind")
        self._limit = limit
        self._pending: deque[Future[Any]] = deque()

    def put(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Have ``call(*arguments)`` made soon; waits while ``limit`` calls are unfinished.

        Raises:
            Exception: of an earlier call.
        """
        while self._pending and (len(self._pending) >= self._limit or self._pending[0].done()):
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(call, *arguments))

    def __enter__(self) -> WriteBehind:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True)
        if kind is None:
            for call in self._pending:
                call.result()
