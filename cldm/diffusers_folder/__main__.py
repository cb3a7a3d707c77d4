"""Convert models between our single file and the folder layout of the diffusers library (the extra `diffusers`).

    python -m cldm.diffusers_folder export IN.safetensors OUT_FOLDER [config=YAML]
    python -m cldm.diffusers_folder import IN_FOLDER OUT.safetensors [variant=fp16] [image_size=256] [overwrite=true]
    python -m cldm.diffusers_folder import CONTROLNET_FOLDER OUT.safetensors base=BASE.safetensors [config=YAML]

export: StableDiffusionControlNetPipeline.from_pretrained loads OUT_FOLDER; where IN has no control network,
StableDiffusionPipeline does. The caller of that pipeline gives it steps, eta, guidance and control scales: the
README.md in the folder says which ones. config=YAML names the architecture of a file that does not carry it
(default: models/cldm_v15.yaml).

import: IN_FOLDER is Stable Diffusion 1.x as downloaded from a hub, or an exported folder. Weights are read from
.safetensors or .bin, whole or in shards; variant=fp16 prefers files of that variant. Without controlnet/ the result
is a base model for tool_add_control.py. A folder that is a single ControlNet goes onto base=BASE.
image_size is the side of the pictures in px, if not the folder's. An existing OUT is kept unless overwrite=true.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cldm.controlled import architecture_of
from ldm.checkpoint import check_writable, key_table, read_state_dict, sha256, write_state_dict
from settings.base import Settings
from settings.help import help_text, is_asked
from settings.messages import ConfigError
from settings.program import Program
from settings.reading import parse_command_line

PROGRAM = "python -m cldm.diffusers_folder"
USAGE = (__doc__ or "").strip()


class ExportConfig(Settings):
    """The settings behind ``export IN OUT``."""

    config: str | None = None
    """YAML of the architecture, where the file does not carry it; null takes models/cldm_v15.yaml."""


class ImportConfig(ExportConfig):
    """The settings behind ``import IN OUT``."""

    variant: str | None = None
    """Prefer files of this variant, such as fp16."""
    image_size: int | None = None
    """Side of the pictures, px; null takes the folder's."""
    base: str | None = None
    """Checkpoint that a single ControlNet goes onto."""
    overwrite: bool = False
    """Replace an existing OUT."""


def run_export(source: Path, target: Path, options: ExportConfig) -> None:
    """Read ``source``, write the folder ``target``, and print its content.

    Raises:
        ValueError: anything that keeps the folder from being made (nothing is left behind then).
    """
    from cldm.diffusers_folder.card import sampling_notes
    from cldm.diffusers_folder.exporting import check_unused, export_folder, recommended

    check_unused(target)
    state, metadata = read_state_dict(source)
    cfg = architecture_of(source, metadata, options.config)
    try:
        done = export_folder(state, metadata, cfg, target)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    for part, count in done.parts.items():
        print(f"{part:<12}  {count:>4} tensors")
    if done.left_out:
        print(key_table({"left out": done.left_out}))
    for note in sampling_notes(recommended(metadata), "controlnet" in done.parts, done.lacking):
        print(f"note: {note}")
    print(f"wrote {target}; how to sample from it: {target / 'README.md'}")


def run_import(source: Path, target: Path, options: ImportConfig) -> None:
    """Read the folder ``source``, write the checkpoint ``target``, and print its content.

    Raises:
        ValueError: anything that keeps the output from being made (nothing is written then).
    """
    from cldm.diffusers_folder.importing import import_control, import_folder, is_lone_control

    check_writable(target)
    if target.exists() and not options.overwrite:
        raise ValueError(f"{target} exists already; choose another name, or add overwrite=true to replace it")
    alone = is_lone_control(source)
    if alone and options.base is None:
        raise ConfigError(f"{source} is a single ControlNet; say what it goes onto with base=CHECKPOINT")
    if options.base is not None and not alone:
        raise ConfigError(f"base: got {options.base}, but {source} is not a single ControlNet")
    if options.config is not None and options.base is None:
        raise ConfigError(
            "config: it is the architecture of base=, which is not given; the folder has its own"
        )
    try:
        if options.base is not None:
            state, metadata = read_state_dict(options.base)
            cfg = architecture_of(options.base, metadata, options.config)
            done = import_control(source, state, metadata, cfg, options.variant)
            done.metadata |= {"base": Path(options.base).name, "base_sha256": sha256(options.base)}
        else:
            done = import_folder(source, options.variant, options.image_size)
    except ValueError as error:
        message = str(error)
        raise ValueError(message if str(source) in message else f"{source}: {message}") from error
    write_state_dict(target, done.state, done.metadata)
    print("\n".join(done.log))
    size = f"pictures of {done.cfg.image_size} px"
    has_control = any(key.startswith("control_model.") for key in done.state)
    kind = "" if has_control else "; a base model: tool_add_control.py adds a control network"
    print(f"wrote {target}: {len(done.state)} tensors, {target.stat().st_size / 2**20:.1f} MiB, {size}{kind}")


def run(argv: Sequence[str]) -> None:
    """Do what the command line says: an action, two paths (which may contain `=`), then key=value.

    Raises:
        ValueError: an unknown action or key, too few paths, or anything that keeps the output from being made.
        ImportError: diffusers is not installed.
    """
    if not argv or argv[0] not in ("export", "import"):
        got = repr(argv[0]) if argv else "nothing"
        raise ValueError(f"got {got}, expected export or import; {PROGRAM} -h says more")
    if len(argv) < 3:
        raise ValueError(
            f"{argv[0]}: expected IN and OUT, got {len(argv) - 1} argument(s); {PROGRAM} -h says more"
        )
    source, target = Path(argv[1]), Path(argv[2])
    if argv[0] == "export":
        run_export(source, target, parse_command_line(ExportConfig, argv[3:]))
    else:
        run_import(source, target, parse_command_line(ImportConfig, argv[3:]))


def quieten() -> None:
    """Switch off the libraries' progress bars and their remarks on what they do. Raises: ImportError."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def main(argv: Sequence[str]) -> int:
    """Return the exit status (see :class:`settings.program.Program`)."""
    with Program(PROGRAM, "interrupted, nothing written") as end:
        if is_asked(argv):
            print(help_text(__doc__, ImportConfig, []))
            return end.status
        try:
            quieten()
            run(argv)
        except ImportError as error:
            hint = "python -m pip install diffusers  (the `diffusers` extra) reads and writes such folders"
            end.fail(f"{error}; {hint}")
    return end.status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
