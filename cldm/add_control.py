"""The state of a controlled model from that of its base model, with a fresh control network or a ready-made one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cldm.branches import fresh_branches
from cldm.controlled import ControlledLatentDiffusion
from cldm.controlnet import ControlNet
from ldm.autoencoder import fresh_grain
from ldm.checkpoint import DAMAGED, SD_OPTIONAL, CheckpointError, check_size, is_finite
from ldm.config import ModelConfig
from ldm.foreign import CONTROL, MODEL_PARTS, UNET, recognise
from ldm.schedule import schedule_buffers


@dataclass
class AddedControl:
    """The new state and, for each kind of key, its names: passed through, copied, ready-made, new, ignored."""

    state: dict[str, Tensor]
    kinds: dict[str, list[str]]


def add_control(
    base: Mapping[str, Tensor],
    cfg: ModelConfig,
    seed: int = 0,
    replace: bool = False,
    control: Mapping[str, Tensor] | None = None,
) -> AddedControl:
    """Build the state of a `ControlledLatentDiffusion` from that of its base model.

    Tensors of the base are passed on, not copied in memory; only the control network is really built
    (1.4 GiB for SD1.5), seeded without touching the global generator. Fresh layers take the UNet's dtype.
    A control network in `base` that still adds nothing (zero layers at zero) is ignored and made anew.

    Args:
        base: tensors by checkpoint key.
        cfg: the architecture.
        seed: draws the hint encoder.
        replace: leave out a trained control network of `base`.
        control: of :func:`control_network`: taken as it is, in place of the copy.

    Raises:
        CheckpointError: `base` is not a model of this architecture, or has a trained control network
            (unless `replace`).
    """
    left_out = _control_to_leave_out(base, replace)
    grain = fresh_grain(base, cfg.first_stage, seed)
    base = {key: value for key, value in base.items() if not key.startswith(CONTROL)}
    target = _shapes(cfg)
    optional = re.compile("|".join(SD_OPTIONAL))
    extra = [key for key in base if key not in target]
    foreign = [key for key in extra if key.startswith(MODEL_PARTS) and not optional.search(key)]
    needed = {
        key: shape
        for key, shape in target.items()
        if not key.startswith(CONTROL) and (key in base or not (key in grain or optional.search(key)))
    }
    _check(base, needed, foreign, "name the right model with config=YAML")

    check_size(
        "control", [target[key] for key in target if key.startswith(CONTROL) and _source(key) not in base]
    )
    fresh = _fresh_control(base, cfg, seed) if control is None else fresh_branches(control, cfg, seed)
    fresh |= grain | schedule_buffers(cfg.schedule) | {"logvar": torch.zeros(cfg.schedule.num_timesteps)}
    passed = [key for key in extra if optional.search(key) and key.startswith(MODEL_PARTS)]
    kinds: dict[str, list[str]] = {"passed through": passed, "copied": [], "ready-made": [], "new": []}
    state: dict[str, Tensor] = {key: base[key] for key in passed}
    for key in target:
        source = _source(key)
        if control is not None and key in control:
            state[key], kind = control[key], "ready-made"
        elif source in base:
            state[key], kind = base[source], "passed through" if source == key else "copied"
        else:
            state[key], kind = fresh[key], "new"
        kinds[kind].append(key)
    kinds["ignored"] = [key for key in extra if key not in passed] + left_out
    return AddedControl(state, kinds)


def control_network(state: Mapping[str, Tensor], cfg: ModelConfig) -> dict[str, Tensor]:
    """Return the control network in a public ControlNet file, or in a whole model's; hint encoder included.

    Branches of ``cfg`` that it lacks are not in the result: :func:`add_control` makes them.

    Args:
        state: tensors by checkpoint key.
        cfg: the architecture of the base model it is to work with.

    Raises:
        CheckpointError: there is none, or it is one for another base model.
    """
    control = {key: value for key, value in state.items() if key.startswith(CONTROL)}
    kind = recognise(state)
    if not control or "difference" in state:
        raise CheckpointError(
            f"it has no control network{f': it is {kind}' if kind else ''}; expected {CONTROL}* keys, as the "
            "public ControlNet files for Stable Diffusion 1.5 have them"
        )
    new = fresh_branches(control, cfg)
    target = {key: shape for key, shape in _shapes(cfg).items() if key.startswith(CONTROL) and key not in new}
    unknown = [key for key in control if key not in target]
    _check(control, target, unknown, "give a control network for this base model")
    return control


def _shapes(cfg: ModelConfig) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {key: value.shape for key, value in ControlledLatentDiffusion(cfg).state_dict().items()}


def _fresh_control(base: Mapping[str, Tensor], cfg: ModelConfig, seed: int) -> dict[str, Tensor]:
    """The control network's layers that the base model lacks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ControlNet(cfg.unet, cfg.control).state_dict()
    dtype = base[UNET + "input_blocks.0.0.weight"].dtype
    names = {CONTROL + key: value for key, value in network.items()}
    return {key: value.to(dtype) for key, value in names.items() if _source(key) not in base}


def _source(key: str) -> str:
    """The base model's key that a key of the controlled model is copied from."""
    return UNET + key.removeprefix(CONTROL) if key.startswith(CONTROL) else key


def has_trained_control(base: Mapping[str, Tensor]) -> bool:
    """Return whether there is a control network that adds anything."""
    controls = [key for key in base if key.startswith(CONTROL)]
    ends = [
        key for key in controls if key.startswith((CONTROL + "zero_convs.", CONTROL + "middle_block_out."))
    ]
    return bool(controls) and (not ends or any(bool(base[key].any()) for key in ends))


def _control_to_leave_out(base: Mapping[str, Tensor], replace: bool) -> list[str]:
    """Keys of the control network in `base`; CheckpointError if it was trained and is not to be replaced."""
    controls = [key for key in base if key.startswith(CONTROL)]
    if controls and not any(key.startswith(MODEL_PARTS) for key in base):
        raise CheckpointError(
            "it is a control network alone: give its base model as IN, and this file as control=FILE"
        )
    if has_trained_control(base) and not replace:
        raise CheckpointError(
            f"it has a trained control network ({len(controls)} {CONTROL}* keys): use it as it is, "
            "or add replace=true to leave that one out"
        )
    return controls


def _check(
    state: Mapping[str, Tensor], target: Mapping[str, torch.Size], unknown: list[str], remedy: str
) -> None:
    """Raise CheckpointError, in one line, unless `state` has every key of `target` in its shape and as fractions."""
    missing = [key for key in target if key not in state]
    present = [key for key in target if key in state]
    other = [
        f"{key} is {list(state[key].shape)}, expected {list(target[key])}"
        for key in present
        if state[key].shape != target[key]
    ]
    integers = [f"{key} is {state[key].dtype}" for key in present if not state[key].is_floating_point()]
    damaged = [key for key in present if not is_finite(state[key])]
    kinds = {
        "of another shape": other,
        "missing": missing,
        "unknown": unknown,
        "not floating-point": integers,
        "not finite": damaged,
    }
    problems = [
        f"{len(keys)} {kind} ({keys[0]}{', ...' if len(keys) > 1 else ''})"
        for kind, keys in kinds.items()
        if keys
    ]
    if problems:
        what = "its weights do not have the expected architecture"
        if name := recognise(state):
            what = f"it is {name}; expected Stable Diffusion 1.5"
        if damaged:
            what, remedy = "its weights are damaged", DAMAGED.rstrip(".")
        raise CheckpointError(f"{what}: {'; '.join(problems)}; {remedy}")
