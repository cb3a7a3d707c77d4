"""Our sampler's settings for diffusers: a scheduler's config, the arguments of a call, and what has no equal there.

Source: `DDIMScheduler`, `DPMSolverMultistepScheduler` and `UniPCMultistepScheduler` of diffusers 0.36.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cldm.diffusers_folder.configs import PREDICTION_TYPES, VERSION
from cldm.sampling import TEXT, SamplingConfig
from cldm.spacing import spaced_timesteps
from ldm.latent_diffusion import ModelConfig
from ldm.schedule import ScheduleConfig, schedule_buffers


def common_settings() -> SamplingConfig:
    """What is usual for Stable Diffusion 1.5, where a checkpoint recommends nothing."""
    return SamplingConfig(steps=50, spacing="leading", eta=0.0, guidance_scale=7.5, control_scales=[1.0])


def scheduler_config(cfg: ScheduleConfig, sampling: SamplingConfig | None) -> dict[str, Any]:
    """The scheduler_config.json that comes nearest to these settings."""
    sampling = sampling or common_settings()
    content: dict[str, Any] = {
        "_diffusers_version": VERSION,
        "num_train_timesteps": cfg.num_timesteps,
        "beta_start": cfg.linear_start,
        "beta_end": cfg.linear_end,
        "beta_schedule": "scaled_linear",
        "trained_betas": None,
        "prediction_type": PREDICTION_TYPES[cfg.prediction],
        "steps_offset": 1,  # of the leading spacing only
        "timestep_spacing": sampling.spacing if sampling.spacing in ("leading", "trailing") else "leading",
    }
    if sampling.sampler == "dpmpp_2m":
        kind = "sde-dpmsolver++" if sampling.eta > 0.5 else "dpmsolver++"
        more = {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 2, "algorithm_type": kind}
    elif sampling.sampler == "unipc":
        more = {"_class_name": "UniPCMultistepScheduler", "solver_order": 2, "solver_type": "bh2"}
        more["use_karras_sigmas"] = sampling.spacing == "karras"
    else:
        more = {"_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": False}
    return content | more


def call_arguments(cfg: ModelConfig, sampling: SamplingConfig | None, with_control: bool) -> dict[str, str]:
    """Name -> Python expression, of what a pipeline's call is given to sample by these settings."""
    sampling = sampling or common_settings()
    arguments = {"num_inference_steps": str(sampling.steps)}
    if sampling.sampler == "dpmpp_2m":  # takes the steps themselves, however they are spaced
        abar = schedule_buffers(cfg.schedule)["alphas_cumprod"]
        steps = spaced_timesteps(sampling.steps, sampling.spacing, cfg.schedule.num_timesteps, abar)
        arguments = {"timesteps": str(steps.tolist())}
    elif sampling.sampler == "ddim":
        arguments["eta"] = str(sampling.eta)
    arguments["guidance_scale"] = str(sampling.guidance_scale if sampling.guidance_drops == [TEXT] else 1.0)
    if not with_control:
        return arguments | {"height": str(cfg.image_size), "width": str(cfg.image_size)}
    scales = sampling.control_scales
    arguments["controlnet_conditioning_scale"] = str(round(sum(scales) / len(scales), 4))
    if sampling.control_start > 0:
        arguments["control_guidance_start"] = str(sampling.control_start)
    if sampling.control_end < 1:
        arguments["control_guidance_end"] = str(sampling.control_end)
    return {"image": "skull", **arguments}


def without_equal(sampling: SamplingConfig, with_control: bool) -> list[str]:
    """The settings that diffusers has not, and what stands for them; one sentence each."""
    found = []
    if with_control and len(set(sampling.control_scales)) > 1:
        found.append(
            f"A control scale for each residual is recommended ({_list(sampling.control_scales)}); "
            "the pipeline has one for all, and is given their mean."
        )
    if sampling.sampler == "ddim" and sampling.spacing not in ("leading", "trailing"):
        found.append(
            f"DDIM with {sampling.spacing!r} spacing is recommended; its spacing is 'leading' there."
        )
    if sampling.sampler == "unipc":
        found.append(f"UniPC with {sampling.spacing!r} spacing is recommended; it visits other steps there.")
    if sampling.sampler == "dpmpp_2m" and sampling.eta not in (0.0, 1.0):
        nearest = round(sampling.eta)
        found.append(f"DPM-Solver++ with eta {sampling.eta:g} is recommended; eta is {nearest} there.")
    if sampling.guidance_scale < 1 and sampling.guidance_drops == [TEXT]:
        found.append(f"Guidance {sampling.guidance_scale:g} is recommended; below 1 it is off there.")
    if sampling.guidance_scale != 1 and sampling.guidance_drops != [TEXT]:
        found.append(
            f"Guidance {sampling.guidance_summary} is recommended; there it is over the text alone, and switched off."
        )
    if with_control and (sampling.control_start > 0 or sampling.control_end < 1):
        found.append("The skull may act for one step more or less there.")
    return found


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
