"""What a run starts from and ends with: the lists of pairs, the network of a checkpoint, the exported file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from cldm.branches import branches_among, fresh_branches, untrained_branches
from cldm.controlled import (
    ControlledLatentDiffusion,
    check_complete,
    check_fit,
    model_config_of,
    model_metadata,
    restore_buffers,
)
from data.manifest import Record, check_disjoint, read_manifest
from ldm.autoencoder import AutoencoderKL, fresh_grain
from ldm.checkpoint import SD_OPTIONAL, git_revision, load_strict, read_state_dict, write_state_dict
from ldm.config import ModelConfig
from ldm.latent_diffusion import LatentDiffusion
from muti_control.training.config import DataConfig, ExperimentConfig
from muti_control.training.stage import Stage
from settings.messages import ConfigError


def read_lists(cfg: ExperimentConfig) -> dict[str, list[Record]]:
    """Return the pairs of "train" and of "valid" (at most ``train.num_valid``); no subject is in both.

    Raises:
        ManifestError: a list cannot be used. ConfigError: fewer than two validation pairs.
    """
    data = cfg.data
    lists = {"train": read_list(data, data.train), "valid": read_list(data, data.valid)}
    check_disjoint(lists)
    lists["valid"] = lists["valid"][: cfg.train.num_valid]
    if len(lists["valid"]) < 2:
        raise ConfigError(
            f"data.valid: {cfg.data.valid} lists one pair, expected at least two to compare; python -m data.split "
            "MANIFEST OUT valid=2 overwrite=true makes lists with two"
        )
    return lists


def read_list(data: DataConfig, name: str) -> list[Record]:
    """Return the pairs of a list of the data. Raises: ManifestError."""
    path = Path(data.root) / "split_data" / name
    return read_manifest(path, skull_folder=data.skull_folder, face_folder=data.face_folder)


def build_model(cfg: ExperimentConfig) -> ControlledLatentDiffusion:
    """Return the network of the run: with the weights and architecture of ``init``, or fresh from ``model``.

    The seed of fresh weights is ``train.seed``.

    Raises:
        CheckpointError, ConfigError: files that do not fit.
    """
    state: dict[str, Tensor] | None = None
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


def architecture_of(cfg: ExperimentConfig, metadata: Mapping[str, str]) -> ModelConfig:
    """Return the architecture of the checkpoint ``init``: ``cfg.model``, or what the file's ``metadata`` says.

    Raises:
        ConfigError: neither says it.
    """
    assert cfg.init is not None
    saved = model_config_of(cfg.init, dict(metadata))
    model_cfg = cfg.model or saved
    if model_cfg is None:
        raise ConfigError(
            f"init: {cfg.init} does not say its architecture; give it as model: (models/cldm_v15.yaml is SD1.5's)"
        )
    if saved is not None:  # the measured scale of the latents belongs to the weights, not to the architecture
        model_cfg.scale_factor = saved.scale_factor
    return model_cfg


class FirstStage(nn.Module):
    """The autoencoder of a model alone, with the scale of its latents."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.first_stage_model = AutoencoderKL(cfg.first_stage)

    def decode(self, z: Tensor) -> Tensor:
        """Scaled latents (B, z, h, w) -> pictures (B, 3, f h, f w), about [-1, 1]."""
        return self.first_stage_model.decode(z / self.cfg.scale_factor)

    @classmethod
    def of(cls, cfg: ExperimentConfig, grain: int = 0, grain_exemplar: int = 0) -> FirstStage:
        """Load the frozen autoencoder of the checkpoint ``init``, and nothing else of it.

        grain: filters of its grain head; a head that the checkpoint lacks is a fresh one.
        grain_exemplar: numbers with which an exemplar is described to the head; 0: as the checkpoint has it.

        Raises:
            CheckpointError, ConfigError: the file cannot be read, or is of another architecture.
        """
        assert cfg.init is not None
        state, metadata = read_state_dict(cfg.init)
        model_cfg = architecture_of(cfg, metadata)
        if grain:
            if model_cfg.first_stage.grain not in (0, grain):
                raise ConfigError(
                    f"grain.filters: got {grain}, but {cfg.init} has a head of {model_cfg.first_stage.grain}; give that"
                )
            numbers = grain_exemplar or model_cfg.first_stage.grain_exemplar
            first = model_cfg.first_stage.with_(grain=grain, grain_exemplar=numbers)
            model_cfg = model_cfg.with_(first_stage=first)
        state |= fresh_grain(state, model_cfg.first_stage, cfg.train.seed)
        first_stage = cls(model_cfg)
        load_strict(first_stage.first_stage_model, state, prefix="first_stage_model.")
        return first_stage.requires_grad_(False)


def export_model(stage: Stage, path: Path, model_cfg: ModelConfig, metadata: Mapping[str, str]) -> None:
    """Write the stage's whole model as one file, for ``sample.py`` and the next stage. Call it in ``ema.applied``.

    Parameters come in ``train.export_dtype``, buffers as they are. A stage before ``control`` leaves the untouched
    control network out: tool_add_control.py adds it.
    """
    cfg, net = stage.cfg, stage.net
    assert isinstance(net, LatentDiffusion)
    dtype = getattr(torch, cfg.train.export_dtype)
    left_out = () if cfg.stage == "control" else ("control_model.", "logvar")
    exact: dict[str, Tensor] = {}  # frozen weights that training held in half precision, from the file
    if net.dtype != torch.float32 and cfg.init is not None:
        exact = {
            n: x for n, x in read_state_dict(cfg.init)[0].items() if n.startswith("model.diffusion_model.")
        }
    buffers = dict(net.named_buffers())
    state = {
        name: value if name in buffers else exact.get(name, value).to(dtype)
        for name, value in net.state_dict().items()
        if not name.startswith(left_out)
    }
    write_state_dict(path, state, {**model_metadata(model_cfg), **file_facts(stage), **metadata})


def file_facts(stage: Stage) -> dict[str, str]:
    """Return what every exported file says of its making."""
    return {"stage": stage.cfg.stage, "step": str(stage.updates), "git": git_revision()}
