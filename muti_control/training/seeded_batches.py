"""Randomness and order as functions of (seed, rank, batch number): a resumed run repeats an unbroken one."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import torch
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

    Batch number n holds the same indices whether the loader started at batch 0 or at batch n.
    """

    num_items: int
    batch_size: int
    seed: int
    first_batch: int = 0
    rank: int = 0
    world_size: int = 1

    def __iter__(self) -> Iterator[list[int]]:
        position = self.first_batch * self.batch_size
        pass_number, order = -1, torch.empty(0)
        while True:
            batch = []
            for k in range(position, position + self.batch_size):
                # Ranks interleave: this rank's k-th sample is the (k * world + rank)-th of all.
                current, offset = divmod(k * self.world_size + self.rank, self.num_items)
                if current != pass_number:
                    pass_number = current
                    draws = generator(self.seed, 0, current, "order")
                    order = torch.randperm(self.num_items, generator=draws)
                batch.append(int(order[offset]))
            position += self.batch_size
            yield batch


def leave_signals_to_the_parent(worker: int) -> None:
    """Make a loader's worker ignore Ctrl-C, which reaches the whole process group: the trainer decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
