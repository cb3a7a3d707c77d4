"""From skulls, prompts and conditions to faces."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from cldm.branches import Landmarks
from cldm.conditions import Acting, Conditions, Encoded, encode
from cldm.config import SamplingConfig
from cldm.controlled import ControlledLatentDiffusion, ProjectedText
from cldm.ddim import BeforeStep, EpsFn, sample_ddim
from cldm.guidance import classifier_free, classifier_free_apart
from cldm.multistep import sample_multistep
from cldm.spacing import spaced_timesteps
from cldm.spgd import Spgd
from cldm.texture import Texture

DECODED_AT_ONCE = 8 * 512 * 512  # pixels of one pass of the decoder: its memory does not grow with B

Preview = Callable[[Callable[[], Tensor]], None]
"""Takes a function that returns faces, (B, 3, H, W) in [0, 1]."""

SAMPLERS: dict[str, Callable[..., Tensor]] = {  # all are called as cldm.ddim.sample_ddim is
    "ddim": sample_ddim,
    "dpmpp_2m": sample_multistep,
    "unipc": partial(sample_multistep, corrector=True),
}


class SampleNoise:
    """Standard normal noise with one generator per sample, so that a picture does not depend on its batch."""

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], device: torch.device) -> None:
        self.generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        self.shape = tuple(shape)
        self.device = device

    def __call__(self) -> Tensor:
        """Return the next draw, (B, *shape) float32; it comes from the CPU and is the same on every device."""
        noise = torch.stack([torch.randn(self.shape, generator=g) for g in self.generators])
        if self.device.type == "cuda":
            noise = noise.pin_memory()  # the copy then does not wait until the device is idle
        return noise.to(self.device, non_blocking=noise.is_pinned())


@torch.no_grad()  # not inference_mode: a hook may switch gradients on
def reconstruct(
    model: ControlledLatentDiffusion,
    skulls: Tensor | None,
    prompts: Sequence[str],
    seeds: Sequence[int],
    cfg: SamplingConfig,
    *,
    landmarks: Landmarks | None = None,
    texture: Texture | None = None,
    skull_present: Tensor | None = None,
    negative_prompt: str = "",
    spgd: Spgd | None = None,
    progress: Callable[[int, int], None] | None = None,
    preview: Preview | None = None,
    on_device: bool = False,
) -> Tensor:
    """Return faces (B, 3, H, W) in [0, 1], float32 on the CPU, for skulls (B, 3, H, W) in [0, 1] and prompts.

    Picture i depends on its own skull, prompt, landmarks, texture and seed alone. Without skulls (None) landmarks,
    texture and text draw the face, and without these the base model draws it from the text.

    Args:
        landmarks, texture: of the faces; None for a model that has no branch for them, or to leave it out.
        skull_present: (B,) bool; False leaves a sample's skull out. None: all are present.
        spgd: moves the latents before each step. progress: called as (steps done, steps in all).
        preview: called at each step, before ``progress``, with a function that decodes the faces as x_0 now is.
        on_device: leave the faces on the model's device, so that nothing waits for them here.

    Raises:
        ValueError: lengths that disagree, or control scales that do not fit the model.
    """
    conditions = Conditions(skulls, skull_present, landmarks, texture)
    numbers = {**conditions.numbers, "prompts": len(prompts), "seeds": len(seeds)}
    if len(set(numbers.values())) > 1:
        got = ", ".join(f"{number} {name}" for name, number in numbers.items())
        raise ValueError(f"reconstruct: got {got}; expected as many of each")
    num, device, f = len(seeds), model.device, model.cfg.first_stage.downscale
    timesteps = spaced_timesteps(
        cfg.steps, cfg.spacing, model.cfg.schedule.num_timesteps, model.alphas_cumprod
    )
    # Computed once, as it does not depend on t: the hints, the texts, and the attentions' keys and values of the texts.
    height, width = (model.cfg.image_size,) * 2 if skulls is None else skulls.shape[-2:]
    encoded = encode(model, conditions, num, height, width).scaled(cfg.landmark_scale, cfg.texture_scale)
    noise = SampleNoise(seeds, (model.cfg.first_stage.z_channels, height // f, width // f), device)
    predicted = guided_eps(model, encoded, prompts, negative_prompt, cfg)
    before_step: BeforeStep | None = None
    if spgd is not None:
        spgd.attach(predicted, model.alphas_cumprod, len(timesteps))
        predicted, before_step = spgd.eps, spgd.before_step

    def pictures(latents: Tensor) -> Tensor:
        to = device if on_device else torch.device("cpu")
        faces = torch.cat([face.float().to(to) for face in _decode(model, latents, seeds, texture, cfg)])
        return ((faces + 1) / 2).clamp(0, 1)

    if preview is not None:
        predicted = _watched(predicted, model.alphas_cumprod, lambda x_0: preview(partial(pictures, x_0)))
    latents = SAMPLERS[cfg.sampler](
        predicted,
        noise(),
        timesteps,
        model.alphas_cumprod,
        eta=cfg.eta,
        randn=noise,
        before_step=before_step,
        progress=progress,
    )
    return pictures(latents)


def _watched(eps_fn: EpsFn, alphas_cumprod: Tensor, watch: Callable[[Tensor], None]) -> EpsFn:
    """Return ``eps_fn``, which then passes each estimate of x_0 (equation 1 of ``ddim_step``) to ``watch``."""

    def watched(x_t: Tensor, t: Tensor, i: int) -> Tensor:
        eps = eps_fn(x_t, t, i)
        abar = alphas_cumprod[t].view(-1, 1, 1, 1)
        watch((x_t - (1 - abar).sqrt() * eps) / abar.sqrt())
        return eps

    return watched


def guided_eps(
    model: ControlledLatentDiffusion,
    encoded: Encoded,
    prompts: Sequence[str],
    negative_prompt: str,
    cfg: SamplingConfig,
) -> EpsFn:
    """Return the noise predictor of a batch, with classifier-free guidance if the settings ask for it."""
    scales = cfg.scales_for(model.cfg.unet.num_control_outputs)

    def eps_of(encoded: Encoded, text: ProjectedText) -> EpsFn:
        def eps_fn(x_t: Tensor, t: Tensor, i: int) -> Tensor:
            acting = acting_at(encoded, i, cfg)
            if acting is None:
                return model.eps(x_t, t, text, None)
            return model.eps(x_t, t, text, acting.hint, scales, acting.texture, acting.active)

        return eps_fn

    context = model.encode_text(list(prompts))
    acts = cfg.control_end > cfg.control_start
    drops = [n for n in cfg.guidance_drops if n == "text" or (acts and getattr(encoded, n) is not None)]
    if cfg.guidance_scale == 1.0 or not drops:  # both branches would be the same
        return eps_of(encoded, model.project_text(context))
    uncond = context
    if "text" in drops:
        uncond = model.encode_text([negative_prompt]).expand(len(prompts), -1, -1)
    without = encoded.without(drops)
    if without.acting() is None and encoded.acting() is not None:  # the base model needs no control network
        eps_u, eps_c = (
            eps_of(e, model.project_text(text)) for e, text in ((without, uncond), (encoded, context))
        )
        return classifier_free_apart(eps_u, eps_c, cfg.guidance_scale)
    eps_both = eps_of(encoded.doubled(drops), model.project_text(torch.cat([uncond, context])))
    return classifier_free(eps_both, cfg.guidance_scale)


def acting_at(encoded: Encoded, i: int, cfg: SamplingConfig) -> Acting | None:
    """Return the conditions that act at step ``i``; None: the base model alone."""

    def within(start: float, end: float) -> bool:
        return start * cfg.steps <= i < end * cfg.steps

    if not within(cfg.control_start, cfg.control_end):
        return None
    return encoded.acting(
        within(cfg.landmark_start, cfg.landmark_end), within(cfg.texture_start, cfg.texture_end)
    )


def _decode(
    model: ControlledLatentDiffusion,
    latents: Tensor,
    seeds: Sequence[int],
    texture: Texture | None,
    cfg: SamplingConfig,
) -> Iterator[Tensor]:
    """Yield the pictures of latents (B, z, h, w), some at a time; an exemplar decides the grain where there is one."""
    at_once = max(1, DECODED_AT_ONCE // (latents[0, 0].numel() * model.cfg.first_stage.downscale**2))
    texture = texture if cfg.texture_scale > 0 else None
    for first in range(0, len(latents), at_once):
        rows = slice(first, first + at_once)
        grain_of = (None, None) if texture is None else (texture.features[rows], texture.present[rows])
        yield model.draw(latents[rows].to(model.dtype), seeds[rows], cfg.grain, *grain_of)
