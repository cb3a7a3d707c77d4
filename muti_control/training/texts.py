"""Frozen encoders that rest on the CPU, and the text embeddings that stand in for the text encoder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.latent_diffusion import LatentDiffusion
from ldm.text import FrozenCLIPEmbedder
from muti_control.distributed import is_first, wait_for
from muti_control.training.latents import Rows, RowStore, weights_hash

FORMAT = "1"
_BATCH = 32


class Parked(nn.Module):
    """Stands in a network in the place of a frozen module, which rests on the CPU.

    Moving or casting the network does not reach the module, and its parameters are not the network's, but the
    network's ``state_dict`` still has them, under their own names.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = (module,)  # within a tuple: PyTorch does not count it as a part

    @property
    def module(self) -> Any:
        """The frozen module."""
        return self._module[0]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update(self.module.state_dict(prefix=prefix, keep_vars=keep_vars))

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        own = {name.removeprefix(prefix): v for name, v in state_dict.items() if name.startswith(prefix)}
        self.module.load_state_dict(own)


def park(owner: nn.Module, name: str) -> None:
    """Put a Parked in the place of the frozen module ``owner.name``."""
    owner.add_module(name, Parked(getattr(owner, name).to("cpu")))


class TextTable(Parked):
    """Stands where the text encoder stood, and holds the embeddings of the prompts of a run.

    Another prompt is encoded by the encoder, wherever that rests, and added.
    """

    embeddings: Tensor

    def __init__(self, encoder: FrozenCLIPEmbedder, prompts: Sequence[str], embeddings: Tensor) -> None:
        """embeddings: (N, 77, C), of ``prompts``."""
        super().__init__(encoder)
        self.numbers = {prompt: number for number, prompt in enumerate(prompts)}
        self.register_buffer("embeddings", embeddings, persistent=False)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Return embeddings (B, 77, C)."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.numbers]
        if missing:
            rows = _encode(self.module, missing).to(self.embeddings)
            self.numbers |= {prompt: len(self.numbers) + k for k, prompt in enumerate(missing)}
            self.embeddings = torch.cat([self.embeddings, rows])
        numbers = torch.tensor([self.numbers[prompt] for prompt in prompts])
        return self.embeddings[numbers.to(self.embeddings.device)]


def text_embeddings(
    model: LatentDiffusion, prompts: Iterable[str], cache_dir: Path, device: torch.device
) -> Rows:
    """Return the embeddings (77, C) of every prompt, float32; those in ``cache_dir`` are not computed again.

    They are kept below a folder named by the encoder's weights. The first process of a run does the work.
    """
    encoder, prompts = model.cond_stage_model, list(prompts)
    store = RowStore(cache_dir / f"texts_{weights_hash(encoder)}_{encoder.cfg.max_length}_{FORMAT}")
    if not is_first():
        return wait_for(lambda: store.rows_of_all(prompts), cache_dir, "text embeddings")
    missing = store.missing(prompts)
    if missing:
        parts = [missing[k : k + _BATCH] for k in range(0, len(missing), _BATCH)]
        encoder.to(device)
        store.write(missing, torch.cat([_encode(encoder, part).float().cpu() for part in parts]))
    return store.rows(prompts)


@torch.no_grad()
def _encode(encoder: FrozenCLIPEmbedder, prompts: Sequence[str]) -> Tensor:
    device = next(encoder.parameters()).device
    with torch.autocast(device.type, enabled=False):
        return encoder.encode(prompts)  # (B, 77, C)


def tabulate_texts(
    model: LatentDiffusion, prompts: Iterable[str], cache_dir: Path, device: torch.device
) -> None:
    """Put a TextTable of ``prompts``, and the empty one, in the place of the model's text encoder."""
    distinct = sorted({*prompts, ""})
    rows = text_embeddings(model, distinct, cache_dir, device)
    encoder = model.cond_stage_model.to("cpu")
    embeddings = torch.stack([rows[k] for k in range(len(rows))])
    model.add_module("cond_stage_model", TextTable(encoder, distinct, embeddings))
