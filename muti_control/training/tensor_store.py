"""Tensors of one shape, each under a key, in files of many: written part by part, read where they lie."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ldm.checkpoint import CheckpointError, read_state_dict, write_state_dict

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

    def look_again(self) -> None:
        """Take up the parts that came since."""
        seen = set(self._files)
        for path in sorted(self.folder.glob("part-*.safetensors")):
            if path not in seen:
                self._take_up(path, _read(path)[1])

    def _take_up(self, path: Path, keys: Sequence[str]) -> None:
        self._files.append(path)
        self._where |= {key: (len(self._files) - 1, row) for row, key in enumerate(keys)}

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of ``keys`` that have no row yet, each once, in the order they come."""
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
        """The rows of ``keys``, one for each. Raises: KeyError for one that has none."""
        where = torch.tensor([self._where[key] for key in keys], dtype=torch.int64).reshape(-1, 2)
        return Rows(self._files, where)


def _read(path: Path) -> tuple[Tensor, list[str]]:
    try:
        state, metadata = read_state_dict(path)
        keys = json.loads(metadata["keys"])
        if len(keys) != len(state[_ENTRY]):
            raise ValueError(f"{len(keys)} keys for {len(state[_ENTRY])} rows")
        return state[_ENTRY], keys
    except (CheckpointError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}). It holds nothing that cannot be computed again: remove it."
        ) from error
