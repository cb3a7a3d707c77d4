"""Make the state of a controlled model out of a base model's: what training a ControlNet starts from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cldm.controlled import ControlledLatentDiffusion
from cldm.controlnet import ControlNet
from ldm.checkpoint import SD_OPTIONAL, CheckpointError
from ldm.latent_diffusion import ModelConfig
from ldm.schedule import schedule_buffers

UNET, CONTROL = "model.diffusion_model.", "control_model."
MODEL_PARTS = (UNET, "first_stage_model.", "cond_stage_model.")


@dataclass
class AddedControl:
    """The new state and, for each kind of key, its names: copied, new, ignored, mismatched."""

    state: dict[str, Tensor]
    kinds: dict[str, list[str]]


def add_control(
    base: Mapping[str, Tensor], cfg: ModelConfig, seed: int = 0, replace: bool = False
) -> AddedControl:
    """Build the state of a `ControlledLatentDiffusion` from that of its base model.

    Tensors of the base are passed on, not copied in memory; only the control network is really built
    (1.4 GiB for SD1.5), seeded without touching the global generator. Fresh layers take the UNet's dtype.
    A control network in `base` that still adds nothing (zero layers at zero) is ignored and made anew.

    Args:
        base: tensors by checkpoint key.
        cfg: the architecture.
        seed: draws the hint encoder.
        replace: leave out a trained control network of `base` and make a fresh one.

    Raises:
        CheckpointError: `base` is not a model of this architecture, or has a trained control network
            (unless `replace`).
    """
    left_out = _control_to_leave_out(base, replace)
    base = {key: value for key, value in base.items() if not key.startswith(CONTROL)}
    with torch.device("meta"):
        target = {key: value.shape for key, value in ControlledLatentDiffusion(cfg).state_dict().items()}
    optional = re.compile("|".join(SD_OPTIONAL))
    wanted = [key for key in target if not key.startswith(CONTROL)]
    missing = [key for key in wanted if key not in base and not optional.search(key)]
    mismatched = [key for key in wanted if key in base and base[key].shape != target[key]]
    extra = [key for key in base if key not in target]
    foreign = [key for key in extra if key.startswith(MODEL_PARTS) and not optional.search(key)]
    _check_base(base, target, missing, mismatched, foreign)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = {
            CONTROL + key: value for key, value in ControlNet(cfg.unet, cfg.control).state_dict().items()
        }
    dtype = base[UNET + "input_blocks.0.0.weight"].dtype
    fresh = {key: value.to(dtype) for key, value in fresh.items() if _source(key) not in base}
    fresh |= schedule_buffers(cfg.schedule) | {"logvar": torch.zeros(cfg.schedule.num_timesteps)}

    passed = [key for key in extra if key.endswith("position_ids")]
    state: dict[str, Tensor] = {key: base[key] for key in passed}
    kinds: dict[str, list[str]] = {
        "passed through": passed,
        "copied": [],
        "new": [],
        "ignored": [],
        "mismatched": [],
    }
    for key in target:
        source = _source(key)
        if source in base:
            state[key] = base[source]
            kinds["passed through" if source == key else "copied"].append(key)
        else:
            state[key] = fresh[key]
            kinds["new"].append(key)
    kinds["ignored"] = [key for key in extra if key not in passed] + left_out
    return AddedControl(state, kinds)


def _source(key: str) -> str:
    """Where in the base model a key of the controlled one comes from."""
    return UNET + key.removeprefix(CONTROL) if key.startswith(CONTROL) else key


def _control_to_leave_out(base: Mapping[str, Tensor], replace: bool) -> list[str]:
    """Keys of the control network in `base`; CheckpointError if it was trained and is not to be replaced."""
    controls = [key for key in base if key.startswith(CONTROL)]
    outputs = [
        key for key in controls if key.removeprefix(CONTROL).startswith(("zero_convs.", "middle_block_out."))
    ]
    trained = bool(controls) and (not outputs or any(bool(base[key].any()) for key in outputs))
    if trained and not replace:
        raise CheckpointError(
            f"it has a trained control network ({len(controls)} {CONTROL}* keys): use it as it is, "
            "or add replace=true to begin with a fresh one on the same base model"
        )
    return controls


def _check_base(
    base: Mapping[str, Tensor],
    target: Mapping[str, torch.Size],
    missing: list[str],
    mismatched: list[str],
    foreign: list[str],
) -> None:
    """Raise CheckpointError, in one line, unless `base` is exactly the base model of `target`."""
    problems = []
    if mismatched:
        key = mismatched[0]
        shapes = f"{key} is {list(base[key].shape)}, expected {list(target[key])}"
        problems.append(f"{len(mismatched)} of another shape ({shapes})")
    for kind, keys in (("missing", missing), ("unknown", foreign)):
        if keys:
            problems.append(f"{len(keys)} {kind} ({keys[0]}{', ...' if len(keys) > 1 else ''})")
    if problems:
        diffusers = any(key.startswith(("down_blocks.", "unet.down_blocks.")) for key in base)
        hint = (
            " (it looks like a diffusers export: convert it to the single-file layout)" if diffusers else ""
        )
        raise CheckpointError(
            f"its weights do not have the expected architecture{hint}: {'; '.join(problems)}; "
            "name the right model with config=YAML"
        )
