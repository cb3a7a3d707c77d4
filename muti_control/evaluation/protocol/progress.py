"""One progress bar for each stage of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def stage(name: str, steps: int, silent: bool) -> Iterator[Callable[[int], None]]:
    """Show a bar while the stage runs; it yields the function that advances it. Without a terminal nothing is shown."""
    with tqdm(total=steps, desc=name, disable=True if silent else None, dynamic_ncols=True) as bar:

        def advance(steps: int) -> None:
            bar.update(steps)

        yield advance
