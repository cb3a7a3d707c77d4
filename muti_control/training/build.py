"""Network and data of a run, from its configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from cldm.branches import branches_among, fresh_branches, untrained_branches
from cldm.controlled import (
    ControlledLatentDiffusion,
    check_complete,
    check_fit,
    restore_buffers,
)
from cldm.texture import NUM_FEATURES
from data.manifest import Record, check_disjoint, read_manifest
from data.paired import PairedDataset
from ldm.autoencoder import fresh_grain
from ldm.checkpoint import SD_OPTIONAL, load_strict, read_state_dict
from ldm.compiled import check_compiler, compile_blocks
from ldm.config import TextureConfig
from muti_control.conditions.pair_textures import PairTextures
from muti_control.training.config import ExperimentConfig, TextureConditionConfig
from muti_control.training.first_stage import FirstStage, architecture_of
from muti_control.training.latents import LatentPairs, face_moments
from muti_control.training.offload import park
from muti_control.training.stage import Stage
from muti_control.training.stages.autoencoder import AutoencoderStage
from muti_control.training.stages.base import BaseStage
from muti_control.training.stages.control import ControlStage
from muti_control.training.stages.grain import Faces, GrainStage
from muti_control.training.stages.guidance_decoder import GuidanceDecoderStage
from muti_control.training.stages.pipnet import build_pip_stage
from muti_control.training.stages.pix2pix import Pix2PixStage
from muti_control.training.texts import tabulate_texts
from muti_control.training.trainer import device_of, pick_precision
from settings.messages import ConfigError

MakeStage = Callable[[ExperimentConfig, ControlledLatentDiffusion, Dataset[Any], Dataset[Any]], Stage]

STAGE_CLASSES: dict[str, MakeStage] = {
    "autoencoder": AutoencoderStage,
    "base": BaseStage,
    "control": ControlStage,
}


def check_files(cfg: ExperimentConfig) -> None:
    """Raises ConfigError naming every file or folder the run needs and lacks, and how to get each."""
    lacking = []
    if cfg.init is not None and not Path(cfg.init).is_file():
        lacking.append(f"init: {cfg.init} not found. {cfg.how_to_get_init}".strip())
    for name in (cfg.data.train, cfg.data.valid):
        manifest = Path(cfg.data.root) / "split_data" / name
        if not manifest.is_file():
            lacking.append(f"data.root: {manifest} not found. {cfg.data.how_to_get}".strip())
            break
    if cfg.losses.lm and not Path(cfg.losses.pipnet).is_file():
        lacking.append(
            f"losses.pipnet: {cfg.losses.pipnet} not found; train.py configs/demo/pipnet_face.yaml makes one"
        )
    wanted = {
        "losses": (cfg.losses.gan or cfg.losses.fm, cfg.losses.discriminator.init),
        "autoencoder": (cfg.autoencoder.gan, cfg.autoencoder.discriminator.init),
    }
    for part, (on, init) in wanted.items():
        if on and init is not None and not Path(init).is_file():
            lacking.append(f"{part}.discriminator.init: {init} not found; leave it out for a fresh one")
    if lacking:
        raise ConfigError("this run needs files that are not there:\n  " + "\n  ".join(lacking))


def build_model(cfg: ExperimentConfig) -> ControlledLatentDiffusion:
    """The network of the run: of ``cfg.init``'s weights and architecture, or fresh from ``cfg.model``.

    The seed of fresh weights is ``train.seed``. Raises CheckpointError or ConfigError for files that do not fit.
    """
    state: dict[str, torch.Tensor] | None = None
    model_cfg = cfg.model
    untrained: frozenset[str] = frozenset()
    if cfg.init is not None:
        state, metadata = read_state_dict(cfg.init)
        model_cfg = architecture_of(cfg, metadata)
        state |= fresh_grain(state, model_cfg.first_stage, cfg.train.seed)
        if cfg.stage == "control":
            check_complete(cfg.init, state)
            fresh = fresh_branches(state, model_cfg, cfg.train.seed)
            state |= fresh
            untrained = untrained_branches(metadata) | branches_among(fresh)
        optional = (*SD_OPTIONAL, *(() if cfg.stage == "control" else (r"^control_model\.",)))
        check_fit(cfg.init, state, model_cfg, optional)
    assert model_cfg is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.train.seed)
        model = ControlledLatentDiffusion(model_cfg)
    model.untrained_branches = untrained
    if state is not None:
        load_strict(model, state, allow_missing=optional, allow_unexpected=SD_OPTIONAL)
        restore_buffers(model)  # a half-precision file would spoil them
    return model


def build_stage(cfg: ExperimentConfig) -> Stage:
    """Network and data of a run, ready for ``Trainer.fit``."""
    return BUILDERS[cfg.stage](cfg)


def read_lists(cfg: ExperimentConfig) -> dict[str, list[Record]]:
    """The pairs of the lists "train" and "valid", the latter cut to ``train.num_valid``; no subject is in both."""
    lists = {
        part: read_manifest(
            Path(cfg.data.root) / "split_data" / name,
            skull_folder=cfg.data.skull_folder,
            face_folder=cfg.data.face_folder,
        )
        for part, name in (("train", cfg.data.train), ("valid", cfg.data.valid))
    }
    check_disjoint(lists)
    lists["valid"] = lists["valid"][: cfg.train.num_valid]
    if len(lists["valid"]) < 2:
        raise ConfigError(f"data.valid: {cfg.data.valid} lists one pair, expected at least two to compare")
    return lists


def build_latent_stage(cfg: ExperimentConfig) -> Stage:
    """The autoencoder, base and control stages."""
    model = build_model(cfg)
    sets = {
        part: PairedDataset(records, size=model.cfg.image_size) for part, records in read_lists(cfg).items()
    }
    if cfg.stage != "autoencoder":
        cfg.sampling.scales_for(
            model.cfg.unet.num_control_outputs
        )  # complain now, not at the first validation
    check_gate(cfg, model.cfg.schedule.num_timesteps)
    train_set: Any = sets["train"]
    if cfg.stage != "autoencoder":
        train_set = _cached(cfg, model, sets)
    arrange(cfg, model)
    return STAGE_CLASSES[cfg.stage](cfg, model, train_set, sets["valid"])


def arrange(cfg: ExperimentConfig, model: ControlledLatentDiffusion) -> None:
    """Recompute, cast and compile parts of the network, as ``memory`` says."""
    memory = cfg.memory
    if memory.compile:
        check_compiler()
    if memory.recompute_control:
        model.control_model.recomputes = True
    if memory.recompute_unet:
        model.unet.recomputes = True
    locked = cfg.stage == "control" and cfg.diffusion.unlocked == "none"
    if memory.half_unet and locked and pick_precision(cfg) == "bf16-mixed":
        model.model.to(torch.bfloat16)
    if memory.compile:
        compile_blocks(model)


def check_gate(cfg: ExperimentConfig, num_timesteps: int) -> None:
    """Raises ConfigError if no sample's t is one at which the picture losses look at its face."""
    if cfg.losses.on and cfg.losses.min_t >= num_timesteps:
        raise ConfigError(
            f"losses.min_t: got {cfg.losses.min_t}, expected less than the model's {num_timesteps} steps of noise: no "
            "face would ever be looked at"
        )


def _cached(
    cfg: ExperimentConfig, model: ControlledLatentDiffusion, sets: dict[str, PairedDataset]
) -> LatentPairs:
    """The training pairs with their latents; encoders that the run then does without are parked."""
    cache = Path(cfg.out) / "cache"
    moments = face_moments(model, sets["train"], cache, device_of(cfg), cfg.data.num_workers)
    park(model.first_stage_model, "encoder")
    if cfg.stage == "control" or not cfg.diffusion.train_text_encoder:
        prompts = {pairs.prompt(k) for pairs in sets.values() for k in range(len(pairs))}
        tabulate_texts(model, prompts, cache, device_of(cfg))
    return LatentPairs(sets["train"], moments, with_skull=cfg.stage == "control")


def build_pix2pix_stage(cfg: ExperimentConfig) -> Stage:
    """The pix2pix stage."""
    lists = read_lists(cfg)
    return Pix2PixStage.of(cfg, lists["train"], lists["valid"])


def build_guidance_decoder_stage(cfg: ExperimentConfig) -> Stage:
    """The guidance_decoder stage; of ``init`` it takes the autoencoder alone, and of the pairs the faces' latents."""
    first_stage = FirstStage.of(cfg)
    got, expected = cfg.guidance_decoder.network.z_channels, first_stage.cfg.first_stage.z_channels
    if got != expected:
        raise ConfigError(
            f"guidance_decoder.network.z_channels: got {got}, expected {expected}, as in {cfg.init}"
        )
    latents = {}
    for part, records in read_lists(cfg).items():
        pairs = PairedDataset(records, size=first_stage.cfg.image_size)
        moments = face_moments(
            first_stage, pairs, Path(cfg.out) / "cache", device_of(cfg), cfg.data.num_workers
        )
        latents[part] = LatentPairs(pairs, moments, with_skull=False)
    park(first_stage.first_stage_model, "encoder")
    return GuidanceDecoderStage.of(cfg, first_stage, latents["train"], latents["valid"])


def build_grain_stage(cfg: ExperimentConfig) -> Stage:
    """The grain stage; of ``init`` it trains on the autoencoder alone, with the pairs' faces and their exemplars."""
    first_stage = FirstStage.of(cfg, cfg.grain.filters, NUM_FEATURES if cfg.grain.exemplars else 0)
    size, branch = first_stage.cfg.image_size, first_stage.cfg.control.texture or TextureConfig()
    shown = TextureConditionConfig(dropout=1 - cfg.grain.exemplars)
    faces = {}
    for part, records in read_lists(cfg).items():
        textures = PairTextures(records, size, branch, shown) if cfg.grain.exemplars else None
        if textures is not None and not textures.any:
            raise ConfigError(
                f"grain.exemplars: got {cfg.grain.exemplars}, but no pair of the {part} list has a 'texture' field "
                "(the name of another face of the same style); grain.exemplars=0 trains without"
            )
        faces[part] = Faces(PairedDataset(records, size=size), textures)
    return GrainStage(cfg, first_stage, faces["train"], faces["valid"])


# How the stage of each name is built.
BUILDERS: dict[str, Callable[[ExperimentConfig], Stage]] = {
    **dict.fromkeys(STAGE_CLASSES, build_latent_stage),
    "pipnet": build_pip_stage,
    "pix2pix": build_pix2pix_stage,
    "guidance_decoder": build_guidance_decoder_stage,
    "grain": build_grain_stage,
}
