"""``python -m data.pack FOLDER OUT [key=value ...]``: pack a data set into a few large files that train as they are.

FOLDER holds ``split_data/*.json`` and the pictures, as for training. OUT gets the same manifests and, in place of the
picture folders, ``pairedCS.shards.json`` with ``pairedCS-00000.tar`` and so on: train with ``data.root=OUT``.
``python -m data.pack --check OUT`` reads a pack whole and compares checksums.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from data.manifest import PICTURE_ROOT, ManifestError, find_images_dir, read_manifest
from data.packs.shards import (
    INDEX_SUFFIX,
    Entry,
    Shard,
    ShardError,
    index_text,
    open_pack,
    read_bytes,
    sha256_of,
)
from data.settings import merged

MANIFEST_DIR = "split_data"
INDEX = PICTURE_ROOT + INDEX_SUFFIX
_BLOCK = 512  # of the tar format
_MB = 1_000_000  # bytes


@dataclass
class PackConfig:
    """shard_mb: size of a shard in MB, about. skull_folder, face_folder: as in training. overwrite: replace a pack."""

    shard_mb: int = 32
    skull_folder: str | None = None
    face_folder: str | None = None
    overwrite: bool = False


def pack(folder: Path, out: Path, config: PackConfig | None = None, progress: bool = True) -> int:
    """Pack every manifest of ``folder/split_data`` and all files they name into ``out``.

    The same data set gives the same bytes. The index is written last: a pack without it was not finished.

    Returns:
        How many shards there are.

    Raises:
        ValueError: nothing to pack, or ``out`` cannot take it.
        ManifestError: a manifest with mistakes.
    """
    config = config or PackConfig()
    manifests = sorted((folder / MANIFEST_DIR).glob("*.json*"))
    if not manifests:
        raise ValueError(
            f"{folder}: no {MANIFEST_DIR}/*.json in it; give the folder that data.root would name"
        )
    if out.resolve() == folder.resolve():
        raise ValueError(f"{out}: is the folder to be packed; choose another one for the pack")
    if (out / INDEX).exists() and not config.overwrite:
        raise ValueError(f"{out}: holds a pack already; choose another folder, or pass overwrite=true")
    sources = _files_of(manifests, config)
    (out / MANIFEST_DIR).mkdir(parents=True, exist_ok=True)
    (out / INDEX).unlink(missing_ok=True)
    for manifest in manifests:
        _copy(manifest, out / MANIFEST_DIR / manifest.name)
    if (folder / "cohort.json").is_file():
        _copy(folder / "cohort.json", out / "cohort.json")
    writer = _Writer(out, config.shard_mb * _MB)
    for name, path in tqdm(sources.items(), unit="file", desc="packing", disable=not progress):
        writer.add(name, read_bytes(path))
    writer.close()
    kept = {shard.file for shard in writer.shards}
    for stale in out.glob(f"{PICTURE_ROOT}-*.tar"):
        if stale.name not in kept:
            stale.unlink()
    temporary = out / f".{INDEX}.part"
    temporary.write_text(index_text(writer.shards, writer.files), encoding="utf-8")
    os.replace(temporary, out / INDEX)
    return len(writer.shards)


def _files_of(manifests: list[Path], config: PackConfig) -> dict[str, Path]:
    """Name in the pack -> file, each once, what belongs together side by side."""
    sources: dict[str, Path] = {}
    for manifest in manifests:
        records = read_manifest(
            manifest, skull_folder=config.skull_folder, face_folder=config.face_folder, need_target=False
        )
        root = find_images_dir(manifest)
        for record in records:
            paths = (record.skull_path, record.face_path, record.landmarks_path, record.texture_path)
            for path in paths:
                if path is not None:
                    sources[path.relative_to(root).as_posix()] = path
    return sources


def _copy(source: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.part")
    shutil.copyfile(source, temporary)
    os.replace(temporary, target)


class _Writer:
    """Writes files one after the other into shards of about ``limit`` bytes."""

    def __init__(self, out: Path, limit: int) -> None:
        self.out, self.limit = out, limit
        self.shards: list[Shard] = []
        self.files: dict[str, Entry] = {}
        self._tar: tarfile.TarFile | None = None

    def add(self, name: str, contents: bytes) -> None:
        if self._tar is not None and self._tar.offset + len(contents) > self.limit:
            self.close()
        if self._tar is None:
            self._tar = tarfile.TarFile(self._temporary, "w", format=tarfile.PAX_FORMAT)
        info = tarfile.TarInfo(name)  # no time, no owner: the same files give the same bytes
        info.size = len(contents)
        self._tar.addfile(info, io.BytesIO(contents))
        offset = self._tar.offset - -(-len(contents) // _BLOCK) * _BLOCK
        self.files[name] = Entry(len(self.shards), offset, len(contents), zlib.crc32(contents))

    def close(self) -> None:
        """Finish the shard that is being written."""
        if self._tar is None:
            return
        self._tar.close()
        self._tar = None
        name = f"{PICTURE_ROOT}-{len(self.shards):05d}.tar"
        shard = Shard(name, self._temporary.stat().st_size, sha256_of(self._temporary))
        os.replace(self._temporary, self.out / name)
        self.shards.append(shard)

    @property
    def _temporary(self) -> Path:
        return self.out / f".{PICTURE_ROOT}-{len(self.shards):05d}.tar.part"


def parse_config(overrides: list[str]) -> PackConfig:
    """``["shard_mb=16", ...]`` -> config. Raises: ValueError for an unknown key or a wrong value."""
    config = merged(PackConfig, overrides)
    if not 1 <= config.shard_mb <= 4096:
        raise ValueError(f"shard_mb={config.shard_mb}: expected 1 to 4096")
    return config


def _said(arguments: list[str]) -> Iterator[str]:
    """What the command did, line by line."""
    parser = argparse.ArgumentParser(prog="python -m data.pack", description=__doc__)
    parser.add_argument("folders", nargs="*", metavar="FOLDER OUT [key=value ...]")
    parser.add_argument("--check", type=Path, metavar="OUT", help="read a pack whole and compare checksums")
    args = parser.parse_args(arguments)
    if args.check is not None:
        found = open_pack(args.check / INDEX)
        found.check()
        yield f"{args.check}: {len(found.files)} files in {len(found.shards)} shards, all as they were packed"
        return
    if len(args.folders) < 2:
        raise ValueError("expected the folder of a data set and the folder for the pack")
    folder, out = (Path(name) for name in args.folders[:2])
    count = pack(folder, out, parse_config(args.folders[2:]))
    yield f"{out}: {count} shards; train with data.root={out}"


def main(argv: list[str] | None = None) -> int:
    try:
        for line in _said(sys.argv[1:] if argv is None else argv):
            print(line)
    except (ManifestError, ShardError, ValueError, OSError) as error:
        print(f"data.pack: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("data.pack: stopped; the pack is not finished", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
