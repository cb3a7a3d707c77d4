"""Which parts of a training lie where, and what is recomputed, so that it fits the memory of a card."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

from muti_control.training.activations import Activations, StepSizes

GB = 1e9
CONTEXT_BYTES = 0.8 * GB  # what CUDA, cuDNN and cuBLAS take for themselves, about
SPARE = 0.08  # of the card, for what an allocator cannot use between its blocks
ENOUGH = 8  # pictures at a time, beyond which more of them hardly make a large card faster
AUTOCAST_SHARE = 0.85  # of float32 activations, stored under autocast on a GPU: norms and SiLU keep float32


@dataclass
class MemoryConfig:
    """Where a diffusion stage's memory goes. ``card`` chooses all that is left null; a key that is given stands.

    card: memory of each GPU in GB, such as 12, 24 or 80; 0 plans nothing: null then means false, but for half_unet.
    batch_size: pictures at a time; ``train.accumulate`` becomes what keeps ``train.batch_size * train.accumulate``.
    recompute_control, recompute_unet: compute activations of the control network, or of the frozen UNet's decoder,
    a second time in the backward pass instead of keeping them: about an eighth, or a quarter, more work.
    ema_on_cpu: keep the averaged weights in main memory; costs a copy of the weights at every step.
    half_unet: hold the frozen UNet in bf16 where training is bf16-mixed (the exported file has it as it was).
    compile: torch.compile the repeated blocks; the first steps take minutes.
    """

    card: float = 0.0
    batch_size: int | None = None
    recompute_control: bool | None = None
    recompute_unet: bool | None = None
    ema_on_cpu: bool | None = None
    half_unet: bool | None = None
    compile: bool | None = None


@dataclass(frozen=True)
class Plan:
    """A choice. num_bytes: what one card is predicted to hold at the most, 0 where nothing was predicted."""

    batch_size: int
    accumulate: int
    recompute_control: bool = False
    recompute_unet: bool = False
    ema_on_cpu: bool = False
    half_unet: bool = True
    compile: bool = False
    num_bytes: float = 0.0

    def describe(self, card: float) -> str:
        """A line for the user: every choice by its key."""
        keys = ("batch_size", "recompute_control", "recompute_unet", "ema_on_cpu", "half_unet", "compile")
        choices = " ".join(f"{key}={str(getattr(self, key)).lower()}" for key in keys)
        line = f"memory: {choices}, train.accumulate={self.accumulate}"
        if card and self.num_bytes:
            line += f"; about {self.num_bytes / GB:.1f} of {card:g} GB by calculation (no GPU has confirmed it yet)"
        return line


def predicted_bytes(sizes: StepSizes, plan: Plan, others: int, mixed: bool, on_gpu: bool = True) -> float:
    """Peak of one process at a step, bytes: weights, gradients, AdamW's state, averages, activations of a micro-batch.

    others: bytes of what else is there (the autoencoder's decoder, the prompts' embeddings). mixed: bf16-mixed.
    on_gpu: with the driver's share, and autocast as it is on a GPU (a CPU keeps norms in bf16).
    """
    weights = sizes.trained * (16 + (0 if plan.ema_on_cpu else 4) + (2 if mixed else 0))
    half = mixed and plan.half_unet
    weights += sizes.unet * (2 if half else 4) + others
    share = (AUTOCAST_SHARE if on_gpu else 0.5) if mixed else 1.0
    stored = share * _kept(sizes.control, plan.recompute_control)
    stored += (0.5 if half else share) * _kept(sizes.decoder, plan.recompute_unet)
    return weights + plan.batch_size * stored + (CONTEXT_BYTES if on_gpu else 0.0)


def _kept(activations: Activations, recompute: bool) -> int:
    return activations.kept + activations.block if recompute else activations.all


def choose(
    cfg: MemoryConfig, batch_size: int, accumulate: int, sizes: StepSizes | None, others: int, mixed: bool
) -> Plan:
    """The plan for ``cfg.card``: the least saving that leaves room for ``ENOUGH`` pictures at a time.

    batch_size, accumulate: as configured; their product is kept.

    Raises:
        ValueError: what was given does not divide, or nothing fits the card.
    """
    total = batch_size * accumulate
    if cfg.batch_size is not None and (cfg.batch_size < 1 or total % cfg.batch_size):
        raise ValueError(
            f"memory.batch_size: got {cfg.batch_size}, expected a divisor of {total}, which is "
            "train.batch_size * train.accumulate"
        )
    given = {
        field.name: value
        for field in fields(cfg)
        if field.name not in ("card", "batch_size") and (value := getattr(cfg, field.name)) is not None
    }
    own = cfg.batch_size or (batch_size if not cfg.card else None)
    batches = [own] if own else [n for n in range(total, 0, -1) if total % n == 0]
    if not cfg.card or sizes is None:
        return Plan(batches[0], total // batches[0], **given)
    best: Plan | None = None
    for level in _levels():
        for number in batches:
            plan = replace(level, batch_size=number, accumulate=total // number, **given)
            plan = replace(plan, num_bytes=predicted_bytes(sizes, plan, others, mixed))
            if plan.num_bytes <= (1 - SPARE) * cfg.card * GB:
                if best is None or number > best.batch_size:
                    best = plan
                break
        if best is not None and best.batch_size >= min(ENOUGH, batches[0]):
            break
    if best is None:
        least = replace(list(_levels())[-1], batch_size=batches[-1], **given)
        raise ValueError(
            f"memory.card: {cfg.card:g} GB are too few: the smallest plan takes "
            f"{predicted_bytes(sizes, least, others, mixed) / GB / (1 - SPARE):.1f} GB"
        )
    return best


def _levels() -> Iterator[Plan]:
    """Ways to save, the cheapest in time first."""
    yield Plan(1, 1)
    yield Plan(1, 1, recompute_control=True)
    yield Plan(1, 1, recompute_control=True, recompute_unet=True)
    yield Plan(1, 1, ema_on_cpu=True)
    yield Plan(1, 1, recompute_control=True, ema_on_cpu=True)
    yield Plan(1, 1, recompute_control=True, recompute_unet=True, ema_on_cpu=True)
