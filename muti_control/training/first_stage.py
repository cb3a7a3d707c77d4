"""The autoencoder of a checkpoint alone: what stages train on that need nothing else of the model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from cldm.controlled import model_config_of
from ldm.autoencoder import AutoencoderKL, fresh_grain
from ldm.checkpoint import load_strict, read_state_dict
from ldm.config import ModelConfig
from muti_control.training.config import ExperimentConfig
from settings.messages import ConfigError


def architecture_of(cfg: ExperimentConfig, metadata: Mapping[str, str]) -> ModelConfig:
    """Of the checkpoint ``init``, whose metadata is given: ``cfg.model``, or what the file says.

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
        """Of the checkpoint ``init``, frozen; nothing else of it is loaded.

        grain: filters of the grain head that it is to have; one that the checkpoint has not is a fresh one.
        grain_exemplar: numbers that tell the head of an exemplar, likewise; 0: as the checkpoint has it.

        Raises:
            CheckpointError, ConfigError: the file cannot be read, or is of another architecture.
        """
        assert cfg.init is not None
        state, metadata = read_state_dict(cfg.init)
        model_cfg = architecture_of(cfg, metadata)
        if grain:
            if model_cfg.first_stage.grain not in (0, grain):
                got = model_cfg.first_stage.grain
                raise ConfigError(
                    f"grain.filters: got {grain}, but {cfg.init} has a head of {got}; give that"
                )
            told = grain_exemplar or model_cfg.first_stage.grain_exemplar
            first = model_cfg.first_stage.with_(grain=grain, grain_exemplar=told)
            model_cfg = model_cfg.with_(first_stage=first)
        state |= fresh_grain(state, model_cfg.first_stage, cfg.train.seed)
        first_stage = cls(model_cfg)
        load_strict(first_stage.first_stage_model, state, prefix="first_stage_model.")
        return first_stage.requires_grad_(False)
