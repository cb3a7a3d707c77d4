"""``python -m data.pack FOLDER OUT [key=value ...]``: pack a data set into one large file that trains as it is.

FOLDER holds ``split_data/*.json`` and the pictures, as for training. OUT gets the same manifests and, in place of the
picture folders, the uncompressed zip file ``pairedCS.zip``: train with ``data.root=OUT``.
``python -m data.pack --check OUT`` reads a pack whole and compares checksums.
"""

from __future__ import annotations

import shutil
import sys
import zipfile
from pathlib import Path

from tqdm import tqdm

from data.files import PACK_SUFFIX, open_pack, read_bytes, replacing
from data.manifest import PICTURE_ROOT, find_images_dir, read_manifest
from data.program import run_program
from settings.base import Settings

MANIFEST_DIR = "split_data"
ARCHIVE = PICTURE_ROOT + PACK_SUFFIX


class PackConfig(Settings):
    """How a data set is packed."""

    skull_folder: str | None = None
    """Name of the skulls' folder in pairedCS; null takes the usual names."""
    face_folder: str | None = None
    """Name of the faces' folder in pairedCS; null takes the usual names."""
    overwrite: bool = False
    """Replace a pack that is there."""


def pack(folder: Path, out: Path, config: PackConfig | None = None, progress: bool = True) -> int:
    """Pack every manifest of ``folder/split_data`` and all files they name into ``out``.

    The same data set gives the same bytes. The zip file gets its name last: without it the pack is not finished.

    Returns:
        The number of packed files.

    Raises:
        ValueError: there is nothing to pack, or ``out`` cannot take it.
        ManifestError: a manifest has mistakes.
    """
    config = config or PackConfig()
    manifests = sorted((folder / MANIFEST_DIR).glob("*.json*"))
    if not manifests:
        raise ValueError(
            f"{folder}: no {MANIFEST_DIR}/*.json in it; give the folder that data.root would name"
        )
    if out.resolve() == folder.resolve():
        raise ValueError(f"{out}: is the folder to be packed; choose another one for the pack")
    archive = out / ARCHIVE
    if archive.exists() and not config.overwrite:
        raise ValueError(f"{out}: holds a pack already; choose another folder, or pass overwrite=true")
    sources = _sources(manifests, config)
    (out / MANIFEST_DIR).mkdir(parents=True, exist_ok=True)
    archive.unlink(missing_ok=True)
    lists = {manifest: out / MANIFEST_DIR / manifest.name for manifest in manifests}
    if (folder / "cohort.json").is_file():
        lists[folder / "cohort.json"] = out / "cohort.json"
    for source, target in lists.items():
        with replacing(target) as temporary:
            shutil.copyfile(source, temporary)
    with replacing(archive) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as zipped:
        for name, path in tqdm(sources.items(), unit="file", desc="packing", disable=not progress):
            entry = zipfile.ZipInfo(name)  # of 1980, without an owner: the same files give the same bytes
            entry.external_attr = 0o644 << 16
            zipped.writestr(entry, read_bytes(path))
    return len(sources)


def _sources(manifests: list[Path], config: PackConfig) -> dict[str, Path]:
    """Return each file by its name in the pack, pictures of one line side by side."""
    sources: dict[str, Path] = {}
    for manifest in manifests:
        records = read_manifest(
            manifest, skull_folder=config.skull_folder, face_folder=config.face_folder, need_target=False
        )
        root = find_images_dir(manifest)
        for record in records:
            for path in (record.skull_path, record.face_path, record.landmarks_path, record.texture_path):
                if path is not None:
                    name = path.relative_to(root).as_posix()
                    if name != name.encode("utf-8", "replace").decode():
                        raise ValueError(f"{path}: a zip file takes names in UTF-8 alone; rename it")
                    sources[name] = path
    return sources


def check_pack(config: Settings, folder: Path) -> None:
    """Read a pack whole and compare checksums. Raises: PackError."""
    archive = open_pack(folder / ARCHIVE)
    archive.check()
    print(f"{folder}: {len(archive.files)} files, all as they were packed")


def _pack(config: PackConfig, folder: Path, out: Path) -> None:
    print(f"{out}: {pack(folder, out, config)} files packed; train with data.root={out}")


def main(argv: list[str] | None = None) -> int:
    """Return the exit status: 0, 2 after one message on stderr, 130 after Ctrl-C."""
    arguments = sys.argv[1:] if argv is None else argv
    if "--check" in arguments:
        arguments = [one for one in arguments if one != "--check"]
        return run_program("data.pack", __doc__, Settings, check_pack, arguments, paths="OUT")
    stopped = "stopped; the pack is not finished"
    return run_program(
        "data.pack", __doc__, PackConfig, _pack, arguments, paths="FOLDER OUT", stopped=stopped
    )


if __name__ == "__main__":
    sys.exit(main())
