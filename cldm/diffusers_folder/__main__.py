"""Models between our single file and the folder layout of the diffusers library. diffusers is not needed for it.

    python -m cldm.diffusers_folder export IN.safetensors OUT_FOLDER [config=YAML]
    python -m cldm.diffusers_folder import IN_FOLDER OUT.safetensors [variant=fp16] [image_size=256] [force=true]
    python -m cldm.diffusers_folder import CONTROLNET_FOLDER OUT.safetensors base=BASE.safetensors [config=YAML]

export: OUT_FOLDER is what StableDiffusionControlNetPipeline.from_pretrained loads; where IN has no control network,
StableDiffusionPipeline. Steps, eta, guidance and control scales are given to that pipeline by its caller: the README.md
in the folder says which ones. config=YAML names the architecture of a file that does not carry it
(default: models/cldm_v15.yaml).

import: IN_FOLDER is Stable Diffusion 1.x as downloaded from a hub, or an exported folder. Weights are read from
.safetensors or .bin, whole or in shards; variant=fp16 prefers files of that variant. Without controlnet/ the result
is a base model for tool_add_control.py. A folder that is a single ControlNet goes onto base=BASE.
image_size is the side of the pictures in px, if not the folder's. An existing OUT is kept unless force=true.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cldm.controlled import SD15_CONFIG, load_model_config, model_config_from_metadata
from cldm.diffusers_folder.card import sampling_notes
from cldm.diffusers_folder.importing import import_control, import_folder
from cldm.diffusers_folder.reading import lone_control
from cldm.diffusers_folder.writing import check_unused, export_folder, recommended
from ldm.checkpoint import check_writable, key_table, read_state_dict, sha256, write_state_dict

PROGRAM = "python -m cldm.diffusers_folder"
USAGE = (__doc__ or "").strip()
KEYS = {"export": ("config",), "import": ("variant", "image_size", "base", "config", "force")}


@dataclass
class Options:
    """The command line."""

    action: str
    source: Path
    target: Path
    config: Path | None = None
    variant: str | None = None
    image_size: int | None = None
    base: Path | None = None
    force: bool = False


def parse(argv: Sequence[str]) -> Options:
    """An action, two paths (which may contain `=`), then key=value.

    Raises:
        ValueError: an unknown action or key, too few paths, or a value that is not of its kind.
    """
    if not argv or argv[0] not in KEYS:
        got = repr(argv[0]) if argv else "nothing"
        raise ValueError(f"got {got}, expected export or import; {PROGRAM} -h says more")
    if len(argv) < 3:
        raise ValueError(
            f"{argv[0]}: expected IN and OUT, got {len(argv) - 1} argument(s); {PROGRAM} -h says more"
        )
    options = Options(argv[0], Path(argv[1]), Path(argv[2]))
    for argument in argv[3:]:
        key, _, value = argument.partition("=")
        known = key in KEYS[options.action] and bool(value)
        if known and key in ("config", "base"):
            setattr(options, key, Path(value))
        elif known and key == "variant" and value.isidentifier():
            options.variant = value
        elif known and key == "image_size" and value.isdecimal() and int(value) > 0:
            options.image_size = int(value)
        elif known and key == "force" and value.lower() in ("true", "false"):
            options.force = value.lower() == "true"
        else:
            names = ", ".join(f"{name}=" for name in KEYS[options.action])
            raise ValueError(f"{argument!r} not understood; {options.action} takes {names}")
    return options


def run_export(options: Options) -> None:
    """Read, write the folder, and print what stands in it.

    Raises:
        ValueError: anything that keeps the folder from being made (nothing is left behind then).
    """
    source, target = options.source, options.target
    check_unused(target)
    state, metadata = read_state_dict(source)
    cfg = None if options.config else model_config_from_metadata(metadata)
    cfg = cfg or load_model_config(options.config or SD15_CONFIG)
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
    print(f"wrote {target}: {done.num_bytes / 2**20:.1f} MiB; how to sample from it: {target / 'README.md'}")


def run_import(options: Options) -> None:
    """Read the folder, write the checkpoint, and print what it holds.

    Raises:
        ValueError: anything that keeps the output from being made (nothing is written then).
    """
    source, target = options.source, options.target
    check_writable(target)
    if target.exists() and not options.force:
        raise ValueError(f"{target} exists already; choose another name, or add force=true to replace it")
    alone = lone_control(source)
    if (alone is None) != (options.base is None):
        raise ValueError(
            f"{source} is a single ControlNet; say what it goes onto with base=CHECKPOINT"
            if alone
            else f"{source} is not a single ControlNet; base= goes with one only"
        )
    if options.config is not None and options.base is None:
        raise ValueError("config= is the architecture of base=, which is not given; the folder says its own")
    try:
        if options.base is not None:
            state, metadata = read_state_dict(options.base)
            cfg = None if options.config else model_config_from_metadata(metadata)
            cfg = cfg or load_model_config(options.config or SD15_CONFIG)
            done = import_control(source, state, metadata, cfg, options.variant)
            done.metadata |= {"base": options.base.name, "base_sha256": sha256(options.base)}
        else:
            done = import_folder(source, options.variant, options.image_size)
    except ValueError as error:
        message = str(error)
        raise ValueError(message if str(source) in message else f"{source}: {message}") from error
    write_state_dict(target, done.state, done.metadata)
    print("\n".join(done.log))
    size = f"pictures of {done.cfg.image_size} px"
    kind = "" if done.has_control else "; a base model: tool_add_control.py adds a control network"
    print(f"wrote {target}: {len(done.state)} tensors, {target.stat().st_size / 2**20:.1f} MiB, {size}{kind}")


def main(argv: Sequence[str]) -> int:
    """Exit status: 0; 2 after one line on stderr; 130 when interrupted."""
    if any(argument in ("-h", "--help") for argument in argv):
        print(USAGE)
        return 0
    try:
        options = parse(argv)
        (run_export if options.action == "export" else run_import)(options)
    except (ValueError, OSError) as error:
        print(f"{PROGRAM}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted, nothing written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
