"""Latents of a frozen autoencoder, computed once for each picture and kept on disk."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from ldm.checkpoint import CheckpointError, read_state_dict, write_state_dict
from muti_control.conditions.altered import alteration_of, on_tensor
from muti_control.distributed import is_first, wait_for
from settings.parsing import parse_json

FORMAT = "1"  # of what is stored; another number computes everything anew
ROWS_PER_PART = 512  # 16 MiB at 256 px, and what a killed run loses at most
_BATCH = 16
_ENTRY = "rows"  # name of the tensor in every part


class Rows(Dataset[Tensor]):
    """Row ``index`` of a choice of stored rows. The files are mapped when first needed, by each process for itself.

    files: the parts. where: (N, 2) int64, number of the file and of the row in it, for each of the N rows.
    """

    def __init__(self, files: Sequence[Path], where: Tensor) -> None:
        self.files, self.where = list(files), where
        self._mapped: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.where)

    def __getitem__(self, index: int) -> Tensor:
        file, row = self.where[index].tolist()
        if file not in self._mapped:
            self._mapped[file] = _read(self.files[file])[0]
        return self._mapped[file][row].clone()

    def __getstate__(self) -> dict[str, Any]:
        # A mapped tensor would be copied whole into the memory that processes share.
        return {"files": self.files, "where": self.where, "_mapped": {}}


class RowStore:
    """A folder of parts, ``part-*.safetensors``, each a tensor of rows and the list of their keys.

    Every part is written whole or not at all, under a name that follows from its keys, so a store whose writing was
    broken off holds what was finished, and two processes that write the same rows do no harm.

    Raises:
        CheckpointError: a part that cannot be read; the message says that it may be removed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: list[Path] = []
        self._where: dict[str, tuple[int, int]] = {}
        self.look_again()

    def rows_of_all(self, keys: Sequence[str]) -> Rows | None:
        """Return the rows of ``keys`` when all have one, another process's among them; else None."""
        self.look_again()
        return None if self.missing(keys) else self.rows(keys)

    def look_again(self) -> None:
        """Take up the parts that came since."""
        for path in sorted(set(self.folder.glob("part-*.safetensors")) - set(self._files)):
            self._take_up(path, _read(path)[1])

    def _take_up(self, path: Path, keys: Sequence[str]) -> None:
        self._files.append(path)
        self._where |= {key: (len(self._files) - 1, row) for row, key in enumerate(keys)}

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Return those of ``keys`` that have no row yet, each once, in the order they come."""
        return [key for key in dict.fromkeys(keys) if key not in self._where]

    def write(self, keys: Sequence[str], rows: Tensor) -> None:
        """Add a part: ``rows[i]`` under ``keys[i]``."""
        text = json.dumps(list(keys))
        path = self.folder / f"part-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}.safetensors"
        self.folder.mkdir(parents=True, exist_ok=True)
        write_state_dict(path, {_ENTRY: rows}, {"keys": text})
        if path not in self._files:
            self._take_up(path, keys)

    def rows(self, keys: Iterable[str]) -> Rows:
        """Return the rows of ``keys``, one for each. Raises: KeyError for one that has none."""
        where = torch.tensor([self._where[key] for key in keys], dtype=torch.int64).reshape(-1, 2)
        return Rows(self._files, where)


def _read(path: Path) -> tuple[Tensor, list[str]]:
    try:
        state, metadata = read_state_dict(path)
        keys = parse_json(metadata["keys"], "keys", list[str])
        if len(keys) != len(state[_ENTRY]):
            raise ValueError(f"{len(keys)} keys for {len(state[_ENTRY])} rows")
        return state[_ENTRY], keys
    except (CheckpointError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}). It holds nothing that cannot be computed again: remove it."
        ) from error


class HasFirstStage(Protocol):
    """A whole model, or its autoencoder alone."""

    first_stage_model: AutoencoderKL


class LatentPairs(Dataset[dict[str, Any]]):
    """A paired dataset whose items also hold the posterior of the face's latent.

    Items: those of PairedDataset less ``face``, and ``moments`` (2 z, h, w) float32: mean and log-variance of
    the unscaled latent. Without ``with_skull`` the skull picture is left out (the base stage needs none).
    Without ``moments`` (None) that is left out too.
    With ``augment`` > 0 the skull is altered at this strength, anew in each pass (``EndlessBatches.count_passes``), and
    the item holds what moves along: ``face`` (3, H, W) in [-1, 1], moved, and ``affine`` (2, 3), where landmarks go.
    ``more``, set by a stage before the first item is asked for, adds to item i what it gives for i, by its name.
    """

    more: Mapping[str, Callable[[int], Tensor]] = {}

    def __init__(
        self,
        pairs: PairedDataset,
        moments: Rows | None,
        with_skull: bool,
        augment: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.pairs, self.moments, self.with_skull = pairs, moments, with_skull
        self.augment, self.seed = augment, seed

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, number: int) -> dict[str, Any]:
        epoch, index = divmod(number, len(self))
        item: dict[str, Any] = {"index": index}
        if self.moments is not None:
            item["moments"] = self.moments[index].float()
        if self.with_skull:
            item["skull"] = self.pairs.skull(index)
        item["prompt"] = self.pairs.prompt(index)
        item |= {name: give(index) for name, give in self.more.items()}
        return item | self._altered(epoch, index) if self.augment else item

    def _altered(self, epoch: int, index: int) -> dict[str, Tensor]:
        record, size = self.pairs.records[index], self.pairs.size
        alteration = alteration_of(record.source, epoch, self.seed, self.augment)
        skull, face = self.pairs.skull(index), (self.pairs.face(index) + 1) / 2
        return {
            "skull": on_tensor(alteration.skull, skull),
            "face": on_tensor(alteration.moved, face) * 2 - 1,
            "affine": torch.from_numpy(alteration.points(size)),
        }


def weights_hash(*modules: nn.Module) -> str:
    """Return 16 hexadecimal digits of the names, types and values of all weights."""
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
    """Return the moments (2 z, h, w) of every face; only those are computed that are not in ``cache_dir`` yet.

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
    files = FileHashes(index)
    hashes = files.of(paths)
    if missing := store.missing(hashes):
        by_hash = dict(zip(hashes, paths, strict=True))
        faces = _Faces([by_hash[key] for key in missing], pairs.size)
        first = 0
        for rows in _encode(first_stage.to(device), faces, device, num_workers):
            store.write(missing[first : first + len(rows)], rows)
            files.save()  # not before: a run that is refused for a broken picture leaves nothing behind
            first += len(rows)
    files.save()
    return store.rows(hashes)


def _ready(store: RowStore, index: Path, paths: Sequence[Path]) -> Rows | None:
    hashes = FileHashes(index).stored(paths)
    return None if hashes is None else store.rows_of_all(hashes)


@torch.no_grad()
def _encode(
    first_stage: AutoencoderKL, faces: _Faces, device: torch.device, num_workers: int
) -> Iterator[Tensor]:
    """Yield the moments of all faces in their order, ``ROWS_PER_PART`` or more at a time."""
    parts: list[Tensor] = []
    with tqdm(total=len(faces), desc="encoding faces", unit="face", file=sys.stderr, disable=None) as bar:
        for batch in DataLoader(faces, batch_size=_BATCH, num_workers=num_workers):
            posterior = first_stage.encode(batch.to(device).contiguous(memory_format=torch.channels_last))
            parts.append(torch.cat([posterior.mean, posterior.logvar], dim=1).float().cpu())
            bar.update(len(batch))
            if sum(map(len, parts)) >= ROWS_PER_PART:
                yield torch.cat(parts)
                parts = []
    if parts:
        yield torch.cat(parts)
