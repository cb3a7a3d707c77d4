"""Latents of a frozen autoencoder, computed once and kept on disk under a hash of all they depend on."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from data.paired import PairedDataset
from data.shards import read_bytes
from ldm.checkpoint import read_state_dict, write_state_dict
from ldm.latent_diffusion import LatentDiffusion


class LatentPairs(Dataset[dict[str, Any]]):
    """A paired dataset whose items also hold the posterior of the face's latent.

    Items: those of PairedDataset less ``face``, and ``moments`` (2 z, h, w) float32: mean and log-variance of
    the unscaled latent. Without ``with_skull`` the skull picture is left out (the base stage needs none).
    """

    def __init__(self, pairs: PairedDataset, moments: Tensor, with_skull: bool) -> None:
        self.pairs, self.moments, self.with_skull = pairs, moments, with_skull

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item: dict[str, Any] = {"moments": self.moments[index].float(), "index": index}
        if self.with_skull:
            item["skull"] = self.pairs.skull(index)
        item["prompt"] = self.pairs.prompt(index)
        return item


def _content_hash(model: LatentDiffusion, pairs: PairedDataset) -> str:
    digest = hashlib.blake2b(digest_size=12)
    for name, value in sorted(model.first_stage_model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    for record in pairs.records:
        assert record.face_path is not None
        digest.update(read_bytes(record.face_path))
    digest.update(str(pairs.size).encode())
    return digest.hexdigest()


@torch.no_grad()
def face_moments(
    model: LatentDiffusion, pairs: PairedDataset, cache_dir: Path, device: torch.device
) -> Tensor:
    """Moments (N, 2 z, h, w) of every face, from ``cache_dir`` if they were computed before."""
    path = cache_dir / f"moments_{_content_hash(model, pairs)}.safetensors"
    if path.is_file():
        return read_state_dict(path)[0]["moments"].clone()
    first_stage = model.first_stage_model.to(device)
    loader = DataLoader(pairs, batch_size=16)
    parts = []
    for batch in tqdm(loader, desc="encoding faces", file=sys.stderr, disable=None):
        posterior = first_stage.encode(batch["face"].to(device).contiguous(memory_format=torch.channels_last))
        parts.append(torch.cat([posterior.mean, posterior.logvar], dim=1).float().cpu())
    moments = torch.cat(parts)
    cache_dir.mkdir(parents=True, exist_ok=True)
    write_state_dict(path, {"moments": moments}, {})
    return moments
