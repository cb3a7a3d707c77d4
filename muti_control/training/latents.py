"""Latents of a frozen autoencoder, computed once for each picture and kept on disk."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from data.files import FileHashes
from data.images import read_image, to_uint8
from data.paired import PairedDataset
from ldm.autoencoder import AutoencoderKL
from muti_control.rank_zero import is_first, wait_for
from muti_control.training.tensor_store import Rows, RowStore

FORMAT = "1"  # of what is stored; another number computes everything anew
ROWS_PER_PART = 512  # 16 MiB at 256 px, and what a killed run loses at most
_BATCH = 16


class HasFirstStage(Protocol):
    """A whole model, or its autoencoder alone."""

    first_stage_model: AutoencoderKL


class LatentPairs(Dataset[dict[str, Any]]):
    """A paired dataset whose items also hold the posterior of the face's latent.

    Items: those of PairedDataset less ``face``, and ``moments`` (2 z, h, w) float32: mean and log-variance of
    the unscaled latent. Without ``with_skull`` the skull picture is left out (the base stage needs none).
    ``more``, set by a stage before the first item is asked for, adds to item i what it gives for i, by its name.
    """

    more: Mapping[str, Callable[[int], Tensor]] = {}

    def __init__(self, pairs: PairedDataset, moments: Rows, with_skull: bool) -> None:
        self.pairs, self.moments, self.with_skull = pairs, moments, with_skull

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item: dict[str, Any] = {"moments": self.moments[index].float(), "index": index}
        if self.with_skull:
            item["skull"] = self.pairs.skull(index)
        item["prompt"] = self.pairs.prompt(index)
        item |= {name: give(index) for name, give in self.more.items()}
        return item


def weights_hash(*modules: nn.Module) -> str:
    """16 hexadecimal digits of the names, types and values of all weights."""
    digest = hashlib.blake2b(digest_size=8)
    for module in modules:
        for name, value in sorted(module.state_dict().items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class _Faces(Dataset[Tensor]):
    """Pictures (3, H, W) in [-1, 1] as PairedDataset gives them, of 8-bit precision, without the skulls."""

    def __init__(self, paths: Sequence[Path], size: int) -> None:
        self.paths, self.size = paths, size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        pixels = to_uint8(read_image(self.paths[index], self.size)[0])  # (H, W, 3)
        return torch.from_numpy(pixels).permute(2, 0, 1).float().div(255).contiguous() * 2 - 1


def face_moments(
    model: HasFirstStage,
    pairs: PairedDataset,
    cache_dir: Path,
    device: torch.device,
    num_workers: int = 0,
) -> Rows:
    """Moments (2 z, h, w) of every face; only those are computed that are not in ``cache_dir`` yet.

    They are kept by the contents of the picture, below a folder named by the encoder's weights: a picture or a weight
    that changes is computed anew, a file that moves is not, and a computation that was broken off goes on. The first
    process of a run does the work, others wait for it.
    """
    first_stage = model.first_stage_model
    key = weights_hash(first_stage.encoder, first_stage.quant_conv)
    store = RowStore(cache_dir / f"latents_{key}_{pairs.size}px_{FORMAT}")
    paths = [record.face_path for record in pairs.records if record.face_path is not None]
    index = cache_dir / "pictures.json"
    if not is_first():
        return wait_for(lambda: _ready(store, index, paths), cache_dir, "latents")
    known = FileHashes(index)
    hashes = known.of(paths)
    by_hash = dict(zip(hashes, paths, strict=True))
    missing = store.missing(hashes)
    if missing:
        _encode(
            model,
            store,
            missing,
            _Faces([by_hash[h] for h in missing], pairs.size),
            device,
            num_workers,
            known,
        )
    known.save()
    return store.rows(hashes)


def _ready(store: RowStore, index: Path, paths: Sequence[Path]) -> Rows | None:
    hashes = FileHashes(index).stored(paths)
    if hashes is None:
        return None
    store.look_again()
    return None if store.missing(hashes) else store.rows(hashes)


@torch.no_grad()
def _encode(
    model: HasFirstStage,
    store: RowStore,
    keys: Sequence[str],
    faces: _Faces,
    device: torch.device,
    num_workers: int,
    hashes: FileHashes,
) -> None:
    first_stage = model.first_stage_model.to(device)
    loader = DataLoader(faces, batch_size=_BATCH, num_workers=num_workers)
    parts: list[Tensor] = []
    first = 0  # of the rows not written yet
    with tqdm(total=len(keys), desc="encoding faces", unit="face", file=sys.stderr, disable=None) as bar:
        for batch in loader:
            posterior = first_stage.encode(batch.to(device).contiguous(memory_format=torch.channels_last))
            parts.append(torch.cat([posterior.mean, posterior.logvar], dim=1).float().cpu())
            bar.update(len(batch))
            num = sum(map(len, parts))
            if num >= ROWS_PER_PART or first + num == len(keys):
                store.write(keys[first : first + num], torch.cat(parts))
                hashes.save()  # not before: a run that is refused for a broken picture leaves nothing behind
                first, parts = first + num, []
