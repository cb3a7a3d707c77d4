"""Puts the network of a stage where the plan for its memory says."""

from __future__ import annotations

from dataclasses import replace

import torch

from cldm.controlled import ControlledLatentDiffusion
from ldm.compiled import check_compiler, compile_blocks
from ldm.config import ConfigError
from ldm.latent_diffusion import ModelConfig
from muti_control.rank_zero import is_first
from muti_control.training.activations import measure, measure_decoder, measure_discriminator
from muti_control.training.config import ExperimentConfig
from muti_control.training.memory import AUTOCAST_SHARE, MemoryConfig, Plan, choose
from muti_control.training.trainer import pick_precision

READER_BYTES = 29_000_000  # a landmark network's activations for a face: it sees all at its own 256 px
READER_WEIGHTS = 50_000_000  # bytes


def arrange(cfg: ExperimentConfig, model: ControlledLatentDiffusion) -> Plan:
    """Choose the plan, tell it, and follow it: precision of the frozen UNet, recomputation, compilation.

    ``cfg.train.batch_size`` and ``accumulate`` and ``cfg.memory`` become those of the plan.

    Raises:
        ConfigError: the card is too small, a key does not fit, or there is no compiler.
    """
    given = cfg.memory
    if given.card and cfg.stage != "control":
        raise ConfigError(
            f"memory.card: plans the control stage only, and this is {cfg.stage}; set train.batch_size, "
            "train.accumulate and model.unet.gradient_checkpointing by hand"
        )
    locked = cfg.diffusion.unlocked == "none"
    if not locked and (given.card or given.half_unet):
        key = "card" if given.card else "half_unet"
        raise ConfigError(
            f"memory.{key}: is for a locked UNet, and diffusion.unlocked is {cfg.diffusion.unlocked}; leave one of the "
            "two out"
        )
    mixed = pick_precision(cfg) == "bf16-mixed"
    try:
        plan = choose(
            given,
            cfg.train.batch_size,
            cfg.train.accumulate,
            measure(model.cfg) if given.card else None,
            _other_bytes(model) + (picture_bytes(cfg, model.cfg, mixed) if given.card else 0),
            mixed,
        )
        if plan.compile:
            check_compiler()
    except ValueError as error:
        raise ConfigError(str(error)) from error
    plan = replace(plan, half_unet=plan.half_unet and locked)
    if given != MemoryConfig() and is_first():
        print(plan.describe(given.card), flush=True)
    cfg.train.batch_size, cfg.train.accumulate = plan.batch_size, plan.accumulate
    cfg.memory = MemoryConfig(
        given.card,
        plan.batch_size,
        plan.recompute_control,
        plan.recompute_unet,
        plan.ema_on_cpu,
        plan.half_unet,
        plan.compile,
    )
    if given.card or given.recompute_control is not None:
        model.control_model.recomputes = plan.recompute_control
    if given.card or given.recompute_unet is not None:
        model.unet.recomputes = plan.recompute_unet
    if plan.half_unet and mixed and cfg.stage == "control":
        model.model.to(torch.bfloat16)
    if plan.compile:
        compile_blocks(model)
    return plan


def picture_bytes(cfg: ExperimentConfig, model: ModelConfig, mixed: bool) -> int:
    """Of what the losses of decoded faces need: a chunk's activations, the judges, the discriminator's optimizer.

    The discriminator holds the true faces' features beside those of the decoded. Its own turn, on all decoded faces,
    comes when the control network's activations are gone, and takes less than these.
    """
    losses = cfg.losses
    if not losses.on:
        return 0
    decoder = measure_decoder(model)
    share = AUTOCAST_SHARE if mixed else 1.0
    one = share * (decoder.kept + decoder.block if losses.recompute else decoder.all)
    weights = 0
    if losses.lm:
        one, weights = one + READER_BYTES, READER_WEIGHTS
    if losses.gan or losses.fm:
        seen, parameters = measure_discriminator(losses.discriminator.network, model.image_size)
        one, weights = one + 2 * seen, weights + 16 * parameters
    return int(weights + min(losses.chunk, losses.sub_batch, cfg.train.batch_size) * one)


def _other_bytes(model: ControlledLatentDiffusion) -> int:
    """Of everything on the card but the UNet and the control network."""
    own = {id(p) for network in (model.unet, model.control_model) for p in network.parameters()}
    rest = [*model.parameters(), *model.buffers()]
    return sum(x.numel() * x.element_size() for x in rest if id(x) not in own)
