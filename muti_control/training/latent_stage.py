"""A stage whose network is the whole latent diffusion model, of which it trains a part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cldm.controlled import model_metadata
from ldm.checkpoint import git_revision, read_state_dict, write_state_dict
from ldm.config import ModelConfig
from ldm.latent_diffusion import LatentDiffusion
from muti_control.training.stage import Stage


class LatentStage(Stage):
    """Adds the export: one file with all of the model, which ``sample.py`` and the next stage read."""

    @property
    def model(self) -> LatentDiffusion:
        """The network, under its own type."""
        assert isinstance(self.net, LatentDiffusion)
        return self.net

    def architecture(self) -> dict[str, Any]:
        facts = self.model.cfg.model_dump()
        for name in ("grain", "grain_exemplar"):  # a run from before there were such settings goes on
            if not facts["first_stage"][name]:
                del facts["first_stage"][name]
        if facts["schedule"]["prediction"] == "eps":
            del facts["schedule"]["prediction"]
        return facts

    def exported_config(self) -> ModelConfig:
        """The architecture as the exported file shall carry it."""
        return self.model.cfg

    def export_metadata(self) -> dict[str, str]:
        """What the exported file says of itself."""
        return {
            **model_metadata(self.exported_config()),
            "stage": self.cfg.stage,
            "step": str(self.updates),
            "git": git_revision(),
        }

    def export(self, path: Path) -> None:
        """Write the whole model, averaged weights in place of the trained ones, as one file.

        Parameters come in ``train.export_dtype``, buffers as they are. A stage before ``control`` leaves the
        untouched control network out: tool_add_control.py adds it.
        """
        dtype = getattr(torch, self.cfg.train.export_dtype)
        left_out = () if self.cfg.stage == "control" else ("control_model.", "logvar")
        with self.ema.applied(self.averaged_tensors()):
            metadata = self.export_metadata()
            buffers = dict(self.net.named_buffers())
            exact = self._exact()
            state = {
                name: value if name in buffers else exact.get(name, value).to(dtype)
                for name, value in self.net.state_dict().items()
                if not name.startswith(left_out)
            }
            write_state_dict(path, state, metadata)

    def _exact(self) -> dict[str, Tensor]:
        """Frozen weights that are held in less precision than the file has them, from the file."""
        if self.model.dtype == torch.float32 or self.cfg.init is None:
            return {}
        state, _ = read_state_dict(self.cfg.init)
        return {name: value for name, value in state.items() if name.startswith("model.diffusion_model.")}
