"""Several processes at one training: how many, the same gradients for all, and answers they agree on.

No DistributedDataParallel around the model: gradients are averaged once per optimizer step, after accumulation. So a
parameter that is unused on one rank, or a loss that is gated differently there, needs no special case, nor do
two optimizers, gradient checkpointing or compiled blocks.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn

from settings.messages import ConfigError

T = TypeVar("T")
BUCKET_BYTES = 64 * 2**20  # gradients that travel together


class PlainDdp(DDPStrategy):
    """Lightning's strategy of one process per device, with the model left unwrapped: see :func:`average_gradients`."""

    def configure_ddp(self) -> None:
        """Nothing to wrap."""


def layout(devices: int) -> tuple[int, int]:
    """Processes on each machine and machines: as torchrun or srun started them, else ``devices`` on this one.

    Raises:
        ConfigError: ``devices`` contradicts what was started.
    """
    known = os.environ
    if "TORCHELASTIC_RUN_ID" in known:
        local = int(known["LOCAL_WORLD_SIZE"])
        machines = int(known["WORLD_SIZE"]) // local
        how = "torchrun"
    elif int(known.get("SLURM_STEP_NUM_TASKS", 1)) > 1:  # srun; a batch script alone is one process
        machines = int(known.get("SLURM_STEP_NUM_NODES", 1))
        local = int(known["SLURM_STEP_NUM_TASKS"]) // machines
        how = "srun"
    else:
        return devices, 1
    if devices not in (1, local):
        raise ConfigError(
            f"train.devices: got {devices}, but {how} started {local} processes on each machine; leave it out"
        )
    return local, machines


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes; one that is missing on some of them counts as zero there.

    A parameter that no process has a gradient for keeps none. With losses that divide by the full batch size,
    the mean is the gradient of the joint batch.
    """
    if world_size() == 1 or not parameters:
        return
    present = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8)
    present = present.to(parameters[0].device)
    dist.all_reduce(present, op=dist.ReduceOp.MAX)
    gradients = []
    for parameter, anywhere in zip(parameters, present.tolist(), strict=True):
        if anywhere:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        dist.all_reduce(flat)
        flat /= world_size()
        for gradient, mean in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            gradient.copy_(mean.view(gradient.shape))


def _buckets(gradients: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    """Consecutive gradients of one dtype, together of about ``BUCKET_BYTES``."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        size = sum(g.numel() * g.element_size() for g in bucket)
        if bucket and (size >= BUCKET_BYTES or bucket[0].dtype != gradient.dtype):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


def mean_of_ranks(values: Tensor) -> Tensor:
    """The mean over the processes of a tensor that all of them have."""
    if world_size() == 1:
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def largest(numbers: Sequence[int], device: torch.device) -> list[int]:
    """Each number's maximum over the processes: how they agree to save or to stop."""
    if world_size() == 1:
        return list(numbers)
    tensor = torch.tensor(numbers, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return [int(number) for number in tensor.tolist()]


def gather(items: list[T]) -> list[T]:
    """The items (picklable, on the CPU) of all processes, rank after rank, on every one of them."""
    if world_size() == 1:
        return items
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]
