"""A UNet that puts out v instead of the noise: the formulas, diffusers' own, and files that say which it is."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers_folders import CFG, PROMPT, SAMPLING, edit, exported_as, imported, perturbed_model

from cldm.config import SamplingConfig
from cldm.controlled import ControlledLatentDiffusion, load_model, model_config_from_metadata, model_metadata
from cldm.sampling import reconstruct
from ldm.config import ScheduleConfig
from ldm.schedule import eps_from_v, predict_x0, q_sample, schedule_buffers

ABAR = schedule_buffers(ScheduleConfig())["alphas_cumprod"]
V_CFG = CFG.with_(schedule=ScheduleConfig(prediction="v"))


def v_model() -> ControlledLatentDiffusion:
    """The weights of `perturbed_model`, taken to put out v."""
    model = perturbed_model()
    model.cfg = V_CFG
    return model


@pytest.mark.parametrize("t", [0, 400, 999])
def test_noise_and_clean_latent_come_back_from_v(t: int) -> None:
    x_0, eps = torch.randn(2, 3, 4, 8, 8)
    steps = torch.full((3,), t)
    x_t = q_sample(x_0, steps, eps, ABAR)
    v = ABAR[t].sqrt() * eps - (1 - ABAR[t]).sqrt() * x_0
    converted = eps_from_v(x_t, steps, v, ABAR)
    assert torch.allclose(converted, eps, atol=1e-5)
    assert torch.allclose(predict_x0(x_t, steps, converted, ABAR), x_0, atol=1e-4)


@pytest.mark.parametrize("t", [1, 500, 999])
def test_the_conversion_is_diffusers(t: int) -> None:
    x_t, v = torch.randn(2, 2, 4, 8, 8)
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction"
    )
    scheduler.alphas_cumprod = ABAR
    scheduler.set_timesteps(1000)
    scheduler.config.clip_sample = False
    theirs = scheduler.step(v, t, x_t).pred_original_sample
    steps = torch.full((2,), t)
    ours = predict_x0(x_t, steps, eps_from_v(x_t, steps, v, ABAR), ABAR)
    assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3)


def test_eps_is_computed_from_what_the_unet_puts_out() -> None:
    plain, model = perturbed_model(), v_model()
    x_t, t, context = torch.randn(2, 4, 8, 8), torch.tensor([40, 990]), torch.randn(2, 77, 24)
    hint = model.encode_hint(torch.rand(2, 3, 64, 64))
    for skull in (None, hint):
        output = plain.eps(x_t, t, context, skull)
        assert torch.equal(
            model.eps(x_t, t, context, skull), eps_from_v(x_t, t, output, model.alphas_cumprod)
        )


def test_the_pipeline_draws_our_picture_and_the_folder_comes_back(tmp_path: Path) -> None:
    model = v_model()
    metadata = {**model_metadata(V_CFG), "sampling": json.dumps(SAMPLING)}
    folder = exported_as(tmp_path, model.state_dict(), metadata)
    pipeline = diffusers.StableDiffusionControlNetPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    skulls = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    loaded, _ = load_model(tmp_path / "model.safetensors")
    ours = reconstruct(loaded, skulls, [PROMPT], [11], SamplingConfig(**SAMPLING))
    theirs = pipeline(
        PROMPT,
        image=skulls,
        num_inference_steps=SAMPLING["steps"],
        eta=SAMPLING["eta"],
        guidance_scale=1.0,
        controlnet_conditioning_scale=SAMPLING["control_scales"][0],
        generator=torch.Generator().manual_seed(11),
        output_type="pt",
    ).images
    noise = reconstruct(perturbed_model(), skulls, [PROMPT], [11], SamplingConfig(**SAMPLING))
    assert float(theirs.std()) > 0.02
    assert float((ours - theirs).abs().max()) < 1e-4
    assert float((ours - noise).abs().max()) > 1e-2  # taken for noise, the same weights draw something else
    edit(folder / "vae/config.json", lambda c: c.update(scaling_factor=0.5))  # so that configs are read
    _, metadata = imported(folder, tmp_path / "back.safetensors")
    config = model_config_from_metadata(metadata)
    assert config is not None
    assert config.schedule.prediction == "v"
