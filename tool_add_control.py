"""Add a control network to a latent-diffusion checkpoint, ready for training.

    python tool_add_control.py IN OUT [key=value ...]
    python tool_add_control.py models/v1-5-pruned-emaonly.ckpt models/control_sd15_ini.safetensors

IN and OUT end in .safetensors, .ckpt, .pth or .pt. Every `control_model.X` is a copy of `model.diffusion_model.X`.
Layers that IN lacks (hint encoder, branches, zero convolutions) are fresh. The last of each path is zero, so OUT gives
exactly IN's noise estimate until it is trained. All weights of IN are passed through unchanged.

A trained control network in IN is kept, and the branches that it lacks are added. If it lacks none, it is refused
unless replace=true. `branches=[skull]` gives the layout of the public ControlNet. control=FILE is a public ControlNet
file for Stable Diffusion 1.5, or another whole model. OUT lists the branches that are not trained yet; sample.py does
not use those.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from ldm.containers import CheckpointError, container
from settings.base import Settings, expect
from settings.help import help_text, is_asked
from settings.messages import RENAMED, known_keys
from settings.program import Program
from settings.reading import parse_command_line

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.config import ModelConfig

USAGE = (__doc__ or "").strip()


class AddControlConfig(Settings):
    """What is added."""

    branches: list[Literal["skull", "landmarks", "texture"]] = ["skull", "landmarks", "texture"]
    """Conditions of the control network beside the text."""
    num_landmarks: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Points of a face in the data; null takes those of IN, else 106."""
    control: str | None = None
    """A ready-made control network in place of a copy."""
    config: str | None = None
    """YAML of the architecture, where IN does not carry it; null takes models/cldm_v15.yaml."""
    overwrite: bool = False
    """Replace an existing OUT."""
    replace: bool = False
    """Leave out a trained control network in IN, and add a fresh one."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the fresh layers."""

    @model_validator(mode="after")
    def _has_a_skull(self) -> Self:
        expect("skull" in self.branches, "branches", self.branches, "skull, and any of landmarks, texture")
        return self


def parse(argv: Sequence[str]) -> tuple[Path, Path, AddControlConfig]:
    """Return IN, OUT and the settings. The paths may contain `=`, as Lightning's file names do.

    Raises:
        ValueError: an unknown key, or a value that is not allowed.
    """
    for path in argv[:2]:
        key, equals, _ = path.partition("=")
        if not path or (equals and key in {*known_keys(AddControlConfig), *RENAMED}):
            raise ValueError(f"{path!r} where a file name belongs; IN and OUT come first")
    return Path(argv[0]), Path(argv[1]), parse_command_line(AddControlConfig, argv[2:])


def run(source: Path, target: Path, options: AddControlConfig) -> None:
    """Read ``source``, add the control network, write ``target``, and print the table of keys.

    Raises:
        ValueError: anything that keeps the output from being made (nothing is written then).
    """
    control_file = None if options.control is None else Path(options.control)
    inputs = [source] if control_file is None else [source, control_file]
    for file in inputs:
        container(file)
    # Below: seconds, which mistakes in settings and paths do not have to wait for.
    from cldm.add_control import add_control, control_network, has_trained_control
    from cldm.branches import branches_among, untrained_branches, untrained_metadata
    from cldm.controlled import architecture_of, model_metadata
    from ldm.checkpoint import git_revision, key_table, read_state_dict, sha256, write_state_dict
    from ldm.foreign import CONTROL, MODEL_PARTS

    check_output(target, inputs, options.overwrite)
    base, metadata = read_state_dict(source)
    cfg = architecture_of(source, metadata, options.config)

    # The ready-made network by checkpoint key; without one the control network is a copy of the base model.
    control: dict[str, Tensor] = {}
    origin, control_metadata, kept_metadata = source, metadata, {}
    if control_file is not None:
        origin = control_file
        control, control_metadata = read_state_dict(control_file)
    elif has_trained_control(base) and not options.replace:
        own = {key: value for key, value in base.items() if key.startswith(CONTROL)}
        alone = not any(key.startswith(MODEL_PARTS) for key in base)  # add_control refuses it
        if set(options.branches) - branches_among(own) and not alone:
            control = own
            base = {key: value for key, value in base.items() if key not in own}
            kept_metadata = {key: metadata[key] for key in ("sampling", "conditions") if key in metadata}
    with named(origin):
        present = branches_among(key for key in control if key.startswith(CONTROL))
        new = set(options.branches) - present
        set_branches(cfg, present | new, options.num_landmarks, present)
        if control:
            control = control_network(control, cfg)
        untrained = new | (untrained_branches(control_metadata) & present)
    with named(source):
        added = add_control(base, cfg, options.seed, options.replace, control or None)

    notes = {"step": "0", "git": git_revision(), "base": source.name, "base_sha256": sha256(source)}
    if "step" in metadata:
        notes["base_step"] = metadata["step"]
    if control_file is not None:
        notes |= {"control": control_file.name, "control_sha256": sha256(control_file)}
    else:
        notes["seed"] = str(options.seed)
    notes |= kept_metadata | untrained_metadata(untrained)
    write_state_dict(target, added.state, {**model_metadata(cfg), **notes})
    print(key_table(added.kinds))
    groups = {f"kept from {origin.name}": present, "added": new, "not trained yet": untrained}
    print(
        "branches "
        + "; ".join(f"{name}: {', '.join(sorted(group)) or 'none'}" for name, group in groups.items())
    )
    print(f"wrote {target}: {len(added.state)} tensors, {target.stat().st_size / 2**20:.1f} MiB")


def check_output(target: Path, inputs: Sequence[Path], overwrite: bool) -> None:
    """Raise ValueError if ``target`` cannot be written, is an input, or exists (unless ``overwrite``)."""
    from ldm.checkpoint import check_writable

    check_writable(target)
    if not target.exists():
        return
    if any(path.exists() and target.samefile(path) for path in inputs):
        raise ValueError(f"{target} is the input itself; choose another name for the output")
    if not overwrite:
        raise ValueError(f"{target} exists already; choose another name, or add overwrite=true to replace it")


def set_branches(
    cfg: ModelConfig, branches: Collection[str], num_landmarks: int | None, present: Collection[str]
) -> None:
    """Give the architecture these branches and no other.

    Args:
        num_landmarks: points of the landmark branch; None: as ``cfg`` has it, or 106.
        present: branches whose weights exist already.

    Raises:
        ValueError: ``num_landmarks`` is not the number of the landmark branch that exists.
    """
    from ldm.config import LandmarkConfig, TextureConfig

    landmarks, texture = cfg.control.landmarks or LandmarkConfig(), cfg.control.texture or TextureConfig()
    if num_landmarks is not None:
        if cfg.control.landmarks and "landmarks" in present and num_landmarks != landmarks.num_points:
            raise ValueError(
                f"num_landmarks: got {num_landmarks}, but it has a branch for {landmarks.num_points} landmarks"
            )
        landmarks.num_points = num_landmarks
    cfg.control.landmarks = landmarks if "landmarks" in branches else None
    cfg.control.texture = texture if "texture" in branches else None


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Put the file's name in front of an error about its content."""
    try:
        yield
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}.") from error


def main(argv: Sequence[str]) -> int:
    """Return the exit status (see :class:`settings.program.Program`)."""
    with Program("tool_add_control.py", "interrupted, nothing written") as end:
        if is_asked(argv):
            print(help_text(__doc__, AddControlConfig, []))
        elif len(argv) < 2:
            end.fail(f"expected IN and OUT, got {len(argv)} argument(s)\n\n{USAGE}")
        else:
            run(*parse(argv))
    return end.status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
