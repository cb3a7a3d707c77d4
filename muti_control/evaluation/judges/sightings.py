"""The vectors that the eyes made of pictures, on disk by the content of the picture: no eye looks twice."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from muti_control.evaluation.judges.dlib_recogniser import Pictures
from muti_control.evaluation.judges.recognisers import Eye, Vector

_PATIENCE = 120  # seconds to wait for another process that writes


class CacheError(ValueError):
    """The file of vectors cannot be used; the message says what to do."""


class Sightings:
    """Vectors of pictures under the hash of the picture's pixels, the eye and its settings, in an SQLite file.

    Several processes may share it, and one that is killed loses at most the picture it was looking at.

    Raises:
        CacheError: the file is something else, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS seen (key TEXT PRIMARY KEY, vector BLOB) WITHOUT ROWID"
            )
        except (sqlite3.Error, OSError) as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> CacheError:
        remedy = "delete it if it is broken, or give another file"
        return CacheError(f"cache: {self.path} cannot be used ({error}); {remedy}")

    def __enter__(self) -> Sightings:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def look(self, eye: Eye, picture: Pictures) -> Vector | None:
        """Return the eye's vector (D,) of a picture (H, W) uint8, from the file if it is there; None without a face."""
        if not eye.cached:
            return eye.look(picture)
        settings = repr((eye.name, sorted(eye.identity.items())))
        key = hashlib.sha256(f"{settings}{picture.shape}".encode() + picture.tobytes()).hexdigest()
        try:
            row = self._file.execute("SELECT vector FROM seen WHERE key = ?", (key,)).fetchone()
            if row is None:
                vector = eye.look(picture)
                stored = b"" if vector is None else vector.astype(np.float32).tobytes()
                self._file.execute("INSERT OR REPLACE INTO seen VALUES (?, ?)", (key, stored))
            else:
                stored = row[0]
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        return np.frombuffer(stored, np.float32) if stored else None

    def look_at_all(self, eyes: Sequence[Eye], picture: Pictures) -> dict[str, Vector | None]:
        """Return the vector of each eye by its name."""
        return {eye.name: self.look(eye, picture) for eye in eyes}
