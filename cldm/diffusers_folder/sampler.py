"""Our sampler's settings for diffusers: a scheduler, the arguments of a call, and the settings without an equal there.

Source: `DDIMScheduler`, `DPMSolverMultistepScheduler` and `UniPCMultistepScheduler` of diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

from cldm.config import SamplingConfig
from cldm.spacing import spaced_timesteps
from ldm.config import ModelConfig
from ldm.schedule import schedule_buffers

# Usual for Stable Diffusion 1.5, where a checkpoint recommends nothing.
COMMON = SamplingConfig(steps=50, spacing="leading", eta=0.0, guidance_scale=7.5, control_scales=[1.0])


def scheduler_for(schedule: Mapping[str, Any], sampling: SamplingConfig | None) -> Any:
    """Return the scheduler that comes nearest to these settings; schedule: its arguments of the noise schedule."""
    sampling = sampling or COMMON
    spacing = sampling.spacing if sampling.spacing in ("leading", "trailing") else "leading"
    # The offset is the leading spacing's.
    options = {**schedule, "steps_offset": 1, "timestep_spacing": spacing}
    if sampling.sampler == "dpmpp_2m":
        kind = "sde-dpmsolver++" if sampling.eta > 0.5 else "dpmsolver++"
        return DPMSolverMultistepScheduler(**options, algorithm_type=kind)
    if sampling.sampler == "unipc":
        return UniPCMultistepScheduler(**options, use_karras_sigmas=sampling.spacing == "karras")
    return DDIMScheduler(**options, clip_sample=False, set_alpha_to_one=False)


def call_arguments(cfg: ModelConfig, sampling: SamplingConfig | None, with_control: bool) -> dict[str, str]:
    """Return the arguments of a pipeline's call that samples by these settings: name -> Python expression."""
    sampling = sampling or COMMON
    arguments = {"num_inference_steps": str(sampling.steps)}
    if sampling.sampler == "dpmpp_2m":  # takes the steps themselves, however they are spaced
        abar = schedule_buffers(cfg.schedule)["alphas_cumprod"]
        steps = spaced_timesteps(sampling.steps, sampling.spacing, cfg.schedule.num_timesteps, abar)
        arguments = {"timesteps": str(steps.tolist())}
    elif sampling.sampler == "ddim":
        arguments["eta"] = str(sampling.eta)
    arguments["guidance_scale"] = str(sampling.guidance_scale if sampling.guidance_drops == ["text"] else 1.0)
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
    """Return a sentence for each setting that diffusers does not have: which one, and what stands for it."""
    text_only = sampling.guidance_drops == ["text"]
    scales = ", ".join(f"{value:g}" for value in sampling.control_scales)
    sentences = {
        f"A control scale for each residual is recommended ({scales}); the pipeline has one for all, their mean.": (
            with_control and len(set(sampling.control_scales)) > 1
        ),
        f"DDIM with {sampling.spacing!r} spacing is recommended; its spacing is 'leading' there.": (
            sampling.sampler == "ddim" and sampling.spacing not in ("leading", "trailing")
        ),
        f"UniPC with {sampling.spacing!r} spacing is recommended; it visits other steps there.": (
            sampling.sampler == "unipc"
        ),
        f"DPM-Solver++ with eta {sampling.eta:g} is recommended; eta is {round(sampling.eta)} there.": (
            sampling.sampler == "dpmpp_2m" and sampling.eta not in (0.0, 1.0)
        ),
        f"Guidance {sampling.guidance_scale:g} is recommended; below 1 it is off there.": (
            sampling.guidance_scale < 1 and text_only
        ),
        f"Guidance {sampling.guidance_summary} is recommended; there it is over the text alone, and switched off.": (
            sampling.guidance_scale != 1 and not text_only
        ),
        "The skull may act for one step more or less there.": (
            with_control and (sampling.control_start > 0 or sampling.control_end < 1)
        ),
    }
    return [sentence for sentence, applies in sentences.items() if applies]
