"""Randomness and order as functions of (seed, rank, batch number): a resumed run repeats an unbroken one."""

from __future__ import annotations

import hashlib
import itertools
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.data import Sampler


def generator(seed: int, rank: int, batch: int, stream: str) -> torch.Generator:
    """Return a fresh CPU generator for one purpose (``stream``) of one batch of one process.

    Nothing uses the global generator, so no other draws can shift a training run.
    """
    digest = hashlib.blake2b(f"{seed}/{rank}/{batch}/{stream}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@dataclass
class EndlessBatches(Sampler[list[int]]):
    """Batches of indices without end: shuffled passes over the data, each rank its own share of every pass.

    Batch number n holds the same indices whether the loader started at batch 0 or at batch n. With ``count_passes``
    the indices of pass p are those of the items plus p times ``num_items``.
    """

    num_items: int
    batch_size: int
    seed: int
    first_batch: int = 0
    rank: int = 0
    world_size: int = 1
    count_passes: bool = False

    def __iter__(self) -> Iterator[list[int]]:
        order_of = lru_cache(maxsize=1)(self._order)
        for batch in itertools.count(self.first_batch):
            # Ranks interleave: this rank's k-th sample is the (k * world + rank)-th of all.
            samples = range(batch * self.batch_size, (batch + 1) * self.batch_size)
            places = [divmod(k * self.world_size + self.rank, self.num_items) for k in samples]
            more = self.num_items if self.count_passes else 0
            yield [int(order_of(number)[offset]) + number * more for number, offset in places]

    def _order(self, pass_number: int) -> Tensor:
        return torch.randperm(self.num_items, generator=generator(self.seed, 0, pass_number, "order"))


def leave_signals_to_the_parent(worker: int) -> None:
    """Make a loader's worker ignore Ctrl-C, which reaches the whole process group: the trainer decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
