"""Add a control network to a latent-diffusion checkpoint, ready for training.

    python tool_add_control.py IN OUT [control=FILE] [landmarks=N] [texture=true] [config=YAML] [seed=0]
        [force=true] [replace=true]

IN and OUT end in .safetensors, .ckpt, .pth or .pt, in any combination. Every `control_model.X` is a copy of
`model.diffusion_model.X`; layers the base does not have (hint encoder, zero convolutions) are fresh, drawn
from `seed`, the last of each path zero: the result gives exactly the base model's noise estimate until it
is trained. All of the base model's weights are passed through untouched.

The architecture is the one recorded in IN; for files of other makers it is models/cldm_v15.yaml
(Stable Diffusion 1.5), or what config=YAML says. An existing OUT is kept unless force=true.
A trained control network in IN is refused unless replace=true, which leaves it out, and its branches with it:
landmarks=N and texture=true say which the new one is to have.

control=FILE takes a ready-made control network instead of a copy: a public ControlNet file for Stable Diffusion
1.5 (with or without `control_model.` in front of its keys), or the one inside another whole model.

landmarks=N adds a branch for N landmarks of the face (the cohort has 106), texture=true one for the look of the skin,
read off another face. Neither changes anything until it is trained. A trained control network in IN is then kept.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from cldm.add_control import add_control, control_network, has_trained_control
from cldm.controlled import SD15_CONFIG, load_model_config, model_config_from_metadata, model_metadata
from ldm.checkpoint import (
    CheckpointError,
    check_writable,
    git_revision,
    key_table,
    read_state_dict,
    sha256,
    write_state_dict,
)
from ldm.latent_diffusion import LandmarkConfig, TextureConfig

USAGE = (__doc__ or "").strip()
MAX_LANDMARKS = 1000
_KEYS = ("control", "config", "force", "landmarks", "replace", "seed", "texture")


@dataclass
class Options:
    """The command line."""

    source: Path
    target: Path
    control: Path | None = None
    landmarks: int = 0
    texture: bool = False
    config: Path | None = None
    force: bool = False
    replace: bool = False
    seed: int = 0


def parse(argv: Sequence[str]) -> Options:
    """Two paths (which may contain `=`, as Lightning's file names do), then key=value.

    Raises:
        ValueError: too few paths, an unknown key, or a value that is not of its kind.
    """
    if len(argv) < 2:
        raise ValueError(f"expected IN and OUT, got {len(argv)} argument(s)\n\n{USAGE}")
    options = Options(Path(argv[0]), Path(argv[1]))
    for path in argv[:2]:
        if not path or (path.split("=")[0] in _KEYS and "=" in path):
            raise ValueError(f"{path!r} where a file name belongs; IN and OUT come first")
    for argument in argv[2:]:
        key, _, value = argument.partition("=")
        if key == "config" and value:
            options.config = Path(value)
        elif key == "control" and value:
            options.control = Path(value)
        elif key == "landmarks" and value.isdecimal() and 0 < int(value) <= MAX_LANDMARKS:
            options.landmarks = int(value)
        elif key == "texture" and value.lower() in ("true", "false"):
            options.texture = value.lower() == "true"
        elif key == "force" and value.lower() in ("true", "false"):
            options.force = value.lower() == "true"
        elif key == "replace" and value.lower() in ("true", "false"):
            options.replace = value.lower() == "true"
        elif key == "seed" and value.isdecimal() and int(value) < 2**63:
            options.seed = int(value)
        else:
            raise ValueError(
                f"{argument!r} not understood; expected control=FILE, landmarks=1..{MAX_LANDMARKS}, "
                "texture=true, config=YAML, force=true, replace=true or seed=NUMBER"
            )
    return options


def run(options: Options) -> None:
    """Read, add, write, and print the table of keys.

    Raises:
        ValueError: anything that keeps the output from being made (nothing is written then).
    """
    source, target = options.source, options.target
    check_writable(target)
    if target.exists():
        for path in (source, options.control):
            if path is not None and path.exists() and target.samefile(path):
                raise ValueError(f"{target} is the input itself; choose another name for the output")
        if not options.force:
            raise ValueError(f"{target} exists already; choose another name, or add force=true to replace it")
    base, metadata = read_state_dict(source)
    with _named(source):
        cfg = None if options.config else model_config_from_metadata(metadata)
    cfg = cfg or load_model_config(options.config or SD15_CONFIG)
    if options.replace and not (options.control or options.config):
        cfg.control.landmarks = cfg.control.texture = None
    if options.landmarks:
        known = cfg.control.landmarks
        if known is not None:
            raise ValueError(f"{source} has a branch for {known.num_points} landmarks already")
        cfg.control.landmarks = LandmarkConfig(num_points=options.landmarks)
    if options.texture:
        if cfg.control.texture is not None:
            raise ValueError(f"{source} has a texture branch already")
        cfg.control.texture = TextureConfig()
    control, kept = None, {}
    if options.control is not None:
        given, _ = read_state_dict(options.control)
        with _named(options.control):
            control = control_network(given, cfg)
    elif (options.landmarks or options.texture) and has_trained_control(base) and not options.replace:
        with _named(source):
            control = control_network(base, cfg)
        base = {key: value for key, value in base.items() if key not in control}
        kept = {key: metadata[key] for key in ("sampling",) if key in metadata}  # what it was validated with
    with _named(source):
        added = add_control(base, cfg, options.seed, options.replace, control)
    notes = {"step": "0", "git": git_revision(), "base": source.name, "base_sha256": sha256(source)}
    if "step" in metadata:
        notes["base_step"] = metadata["step"]
    notes |= kept
    if options.control is not None:
        notes |= {"control": options.control.name, "control_sha256": sha256(options.control)}
    else:
        notes["seed"] = str(options.seed)
    write_state_dict(target, added.state, {**model_metadata(cfg), **notes})
    print(key_table(added.kinds))
    print(f"wrote {target}: {len(added.state)} tensors, {target.stat().st_size / 2**20:.1f} MiB")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Puts the file in front of what is wrong with its content."""
    try:
        yield
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}.") from error


def main(argv: Sequence[str]) -> int:
    """Exit status: 0; 2 after one line on stderr; 130 when interrupted."""
    if any(argument in ("-h", "--help") for argument in argv):
        print(USAGE)
        return 0
    try:
        run(parse(argv))
    except (ValueError, OSError, yaml.YAMLError) as error:
        message = str(error) if USAGE in str(error) else " ".join(str(error).split())
        print(f"tool_add_control.py: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tool_add_control.py: interrupted, nothing written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # a job that is stopped leaves nothing behind either
    sys.exit(main(sys.argv[1:]))
