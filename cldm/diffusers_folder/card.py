"""The README.md of an exported folder: how to sample from it as sample.py would, and where that is not possible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cldm.sampling import SamplingConfig
from ldm.latent_diffusion import ModelConfig

_CARD = """# A model of ICCR-Diff in diffusers' layout

Craniofacial reconstruction: {what}. What comes out is an approximation, not an identification.

```python
import torch
from diffusers import {pipeline}
{imports}
pipe = {pipeline}.from_pretrained("FOLDER", torch_dtype=torch.float32)
{skull}face = pipe(
    "3D face scan,Asian male,age level 3,normal face.",
{arguments}
).images[0]
face.save("face.png")
```

{notes}
To bring it back into one file: `python -m cldm.diffusers_folder import FOLDER OUT.safetensors`
(`iccr_diff/` holds what this layout has no place for).
"""


def sampling_notes(sampling: SamplingConfig | None, with_control: bool) -> list[str]:
    """What a caller of diffusers' pipeline must know: settings the folder cannot hold, and those that have no equal.

    Args:
        sampling: what the checkpoint recommends, if anything.
        with_control: there is a ControlNet.
    """
    if sampling is None:
        return [
            "Steps, eta, guidance and the control scale are given by the caller. The checkpoint recommends none; those "
            "of the script in README.md are common for Stable Diffusion 1.5."
        ]
    notes = [
        "Steps, eta, guidance and the control scale are given by the caller: diffusers' layout does not hold them. "
        "The script in README.md gives those that the checkpoint recommends."
    ]
    if with_control and len(set(sampling.control_scales)) > 1:
        notes.append(
            f"The checkpoint recommends a control scale for each residual ({_list(sampling.control_scales)}); "
            "the pipeline has one for all: the script gives it their mean, and its pictures differ from sample.py's."
        )
    if sampling.spacing not in ("leading", "trailing"):
        notes.append(
            f"The checkpoint recommends the steps' spacing {sampling.spacing!r}, "
            "which diffusers has not: its scheduler is set to 'leading', and its pictures differ from sample.py's."
        )
    if len(notes) == 1:
        notes.append(
            "One picture at a time, the same seed gives the face that sample.py draws, but for rounding."
        )
    return notes


def model_card(cfg: ModelConfig, sampling: SamplingConfig | None, with_control: bool) -> str:
    """Text of the README.md, with a script that samples by the recommended settings."""
    chosen = sampling or SamplingConfig(
        steps=50, spacing="leading", eta=0.0, guidance_scale=7.5, control_scales=[1.0]
    )
    arguments: dict[str, Any] = {
        "num_inference_steps": chosen.steps,
        "eta": chosen.eta,
        "guidance_scale": chosen.guidance_scale,
    }
    if with_control:
        scales = chosen.control_scales
        arguments = {"image": "skull", **arguments}
        arguments["controlnet_conditioning_scale"] = round(sum(scales) / len(scales), 4)
        if chosen.control_start > 0:
            arguments["control_guidance_start"] = chosen.control_start
        if chosen.control_end < 1:
            arguments["control_guidance_end"] = chosen.control_end
    else:
        arguments |= {"height": cfg.image_size, "width": cfg.image_size}
    lines = [f"    {name}={value}," for name, value in arguments.items()]
    lines.append("    generator=torch.Generator().manual_seed(0),")
    size = cfg.image_size
    open_skull = f'skull = Image.open("skull.png").convert("RGB").resize(({size}, {size}))\n'
    return _CARD.format(
        what="from a skull and what is known of the person to the face"
        if with_control
        else "faces from text",
        pipeline="StableDiffusionControlNetPipeline" if with_control else "StableDiffusionPipeline",
        imports="from PIL import Image\n" if with_control else "",
        skull=open_skull if with_control else "",
        arguments="\n".join(lines),
        notes="".join(f"- {note}\n" for note in sampling_notes(sampling, with_control)),
    )


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
