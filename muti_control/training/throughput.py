"""How fast a run goes, what it waits for and how long it still takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def in_words(seconds: float) -> str:
    """A duration for people: ``45 s``, ``12 min``, ``3 h 20 min``, ``2 d 5 h``."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


class Pace:
    """Times of one start of a run, in seconds of ``clock``.

    Args:
        first: steps that are not counted in (memory is set up, kernels are chosen). clock: of rising seconds.
    """

    def __init__(self, first: int = 2, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock, self.first = clock, first
        self.steps = 0  # counted ones
        self._begin = self._mark = clock()
        self._marked_at = 0
        self.pauses = 0.0  # all of them, s
        self._pauses_at_mark = 0.0
        self._waited, self._busy = 0.0, 0.0

    def step(self) -> None:
        """One optimizer step is done."""
        if self.first > 0:
            self.first -= 1
            if self.first == 0:
                self._begin = self._mark = self.clock()
                self._pauses_at_mark = self.pauses
                self._waited = self._busy = 0.0
            return
        self.steps += 1

    @contextmanager
    def pause(self) -> Iterator[None]:
        """A validation or a save: it counts for the time left, not for the speed of the steps."""
        start = self.clock()
        try:
            yield
        finally:
            self.pauses += self.clock() - start

    def wait(self, seconds: float, busy: float) -> None:
        """Of a step that took ``busy`` seconds, ``seconds`` went by before its pictures were there."""
        self._waited += seconds
        self._busy += busy

    def waiting_share(self) -> float:
        """Of the steps' time since this was last asked, the share that was waited for pictures, in [0, 1]."""
        share = min(1.0, self._waited / self._busy) if self._busy > 0 else 0.0
        self._waited = self._busy = 0.0
        return share

    def steps_per_second(self) -> float | None:
        """Since this was last asked, without pauses; None where no step was counted."""
        now, steps = self.clock(), self.steps - self._marked_at
        seconds = now - self._mark - (self.pauses - self._pauses_at_mark)
        if steps == 0 or seconds <= 0:
            return None
        self._mark, self._marked_at, self._pauses_at_mark = now, self.steps, self.pauses
        return steps / seconds

    def seconds_left(self, steps: int) -> float | None:
        """For ``steps`` more, with validations and saves as often as so far; None where nothing was counted yet."""
        return None if self.steps == 0 else (self.clock() - self._begin) / self.steps * steps
