"""Text embeddings of a frozen text encoder, computed once for each prompt and kept on disk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ldm.latent_diffusion import LatentDiffusion
from ldm.text import FrozenCLIPEmbedder
from muti_control.rank_zero import is_first, wait_for
from muti_control.training.latents import weights_hash
from muti_control.training.offload import Parked
from muti_control.training.tensor_store import Rows, RowStore

FORMAT = "1"
_BATCH = 32


class TextTable(Parked):
    """Stands where the text encoder stood, and knows the embeddings of the prompts of a run.

    A prompt that it does not know is encoded by the encoder, wherever that rests, and remembered.
    """

    embeddings: Tensor

    def __init__(self, encoder: FrozenCLIPEmbedder, prompts: Sequence[str], embeddings: Tensor) -> None:
        """embeddings: (N, 77, C), of ``prompts``."""
        super().__init__(encoder)
        self.numbers = {prompt: number for number, prompt in enumerate(prompts)}
        self.register_buffer("embeddings", embeddings, persistent=False)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> embeddings (B, 77, C)."""
        unknown = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.numbers]
        if unknown:
            found = _encode(self.module, unknown).to(self.embeddings)
            self.numbers |= {prompt: len(self.numbers) + k for k, prompt in enumerate(unknown)}
            self.embeddings = torch.cat([self.embeddings, found])
        rows = torch.tensor([self.numbers[prompt] for prompt in prompts])
        return self.embeddings[rows.to(self.embeddings.device)]


def text_embeddings(
    model: LatentDiffusion, prompts: Iterable[str], cache_dir: Path, device: torch.device
) -> Rows:
    """Embeddings (77, C) of every prompt, float32; only those are computed that are not in ``cache_dir`` yet.

    They are kept below a folder named by the encoder's weights. The first process of a run does the work.
    """
    encoder, prompts = model.cond_stage_model, list(prompts)
    store = RowStore(cache_dir / f"texts_{weights_hash(encoder)}_{encoder.cfg.max_length}_{FORMAT}")
    if not is_first():
        return wait_for(lambda: _ready(store, prompts), cache_dir, "text embeddings")
    missing = store.missing(prompts)
    if missing:
        parts = [missing[k : k + _BATCH] for k in range(0, len(missing), _BATCH)]
        encoder.to(device)
        store.write(missing, torch.cat([_encode(encoder, part).float().cpu() for part in parts]))
    return store.rows(prompts)


def _ready(store: RowStore, prompts: Sequence[str]) -> Rows | None:
    store.look_again()
    return None if store.missing(prompts) else store.rows(prompts)


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
