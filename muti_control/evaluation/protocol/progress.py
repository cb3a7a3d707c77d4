"""One bar over all the work of an evaluation, with the time left."""

from __future__ import annotations

import time
from types import TracebackType

from tqdm import tqdm


class Progress:
    """Stages of so many steps each; how long a step takes is a guess until the stage has begun to show it.

    A context manager. Args: stages: name -> (number of steps, guessed seconds of one). silent: show nothing.
    """

    def __init__(self, stages: dict[str, tuple[int, float]], silent: bool = False) -> None:
        self._left = {name: steps for name, (steps, _) in stages.items()}
        self._cost = {name: cost for name, (_, cost) in stages.items()}
        self._done = dict.fromkeys(stages, 0)
        self._seconds = dict.fromkeys(stages, 0.0)
        self._stage: str | None = None
        self._last = time.monotonic()
        self._elapsed = 0.0
        form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed} so far, {postfix}"
        self._bar = tqdm(total=100.0, bar_format=form, disable=True if silent else None, dynamic_ncols=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def begin(self, stage: str) -> None:
        """Time from now on counts for this stage; what an earlier one has left falls away."""
        if self._stage is not None:
            self._left[self._stage] = 0
        self._stage, self._last = stage, time.monotonic()
        self._show()

    def advance(self, steps: int = 1) -> None:
        """So many steps of the stage are done."""
        assert self._stage is not None, "begin a stage first"
        now = time.monotonic()
        name, spent, self._last = self._stage, now - self._last, now
        self._elapsed += spent
        self._seconds[name] += spent
        self._done[name] += steps
        self._left[name] = max(0, self._left[name] - steps)
        self._show()

    @property
    def seconds_left(self) -> float:
        """Of all stages, by what their steps took so far, or by the guess."""
        return sum(left * self._cost_of(name) for name, left in self._left.items())

    def _cost_of(self, name: str) -> float:
        return self._seconds[name] / self._done[name] if self._done[name] else self._cost[name]

    def _show(self) -> None:
        if self._bar.disable:
            return
        left = self.seconds_left
        self._bar.n = round(100 * self._elapsed / max(1e-9, self._elapsed + left), 1)
        self._bar.set_description_str(self._stage or "", refresh=False)
        self._bar.set_postfix_str(f"{_duration(left)} left", refresh=False)
        self._bar.update(0)
        if time.monotonic() - self._bar.last_print_t > 0.5:
            self._bar.refresh()
            self._bar.last_print_t = time.monotonic()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
