"""The README.md of an exported folder: how to sample from it as sample.py would, and where that is not possible."""

from __future__ import annotations

import textwrap
from collections.abc import Collection

from cldm.config import SamplingConfig
from cldm.diffusers_folder.sampler import call_arguments, without_equal
from ldm.config import ModelConfig

_CARD = """# A model of ICCR-Diff in diffusers' layout

Craniofacial reconstruction: {what}. What comes out is an approximation, not an identification.

```python
import torch
from diffusers import {pipeline}
{imports}
pipe = {pipeline}.from_pretrained("FOLDER").to(torch.float32)
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


NO_GRAIN = "The grain head of its autoencoder is left out: diffusers' has none, and faces come without grain."
NO_BRANCHES = (
    "The {names} of its ControlNet are left out: diffusers' knows one picture as a condition. "
    "Faces are those of sample.py with landmarks=none texture=none."
)


def sampling_notes(
    sampling: SamplingConfig | None, with_control: bool, lacking: Collection[str] = ()
) -> list[str]:
    """What a caller of diffusers' pipeline must know: settings the folder cannot hold, and those that have no equal.

    Args:
        sampling: what the checkpoint recommends, if anything.
        with_control: there is a ControlNet.
        lacking: what the model has and the folder has not, some of "grain", "landmarks", "texture".
    """
    caller = "Steps, eta, guidance and the control scale are given by the caller: diffusers' layout does not hold them."
    branches = [name for name in ("landmarks", "texture") if name in lacking]
    without = [NO_BRANCHES.format(names=f"{' and '.join(branches)} branches")] if branches else []
    if "grain" in lacking and (sampling is None or sampling.grain):
        without.append(NO_GRAIN)
    if sampling is None:
        common = "The checkpoint recommends none; those in the README.md are common for Stable Diffusion 1.5."
        return [f"{caller} {common}", *without]
    first = f"{caller} The script in the README.md gives those recommended by the checkpoint."
    if differing := without_equal(sampling, with_control) + without:
        return [first, *differing, "Its pictures differ from sample.py's for that."]
    equal = "One picture at a time, the same seed gives sample.py's face of precision=fp32, but for rounding."
    return [first, equal]


def model_card(
    cfg: ModelConfig, sampling: SamplingConfig | None, with_control: bool, lacking: Collection[str] = ()
) -> str:
    """Text of the README.md, with a script that samples by the recommended settings; lacking: what is left out."""
    arguments = call_arguments(cfg, sampling, with_control)
    arguments["generator"] = "torch.Generator().manual_seed(0)"
    lines = [
        textwrap.fill(f"{name}={value},", 100, initial_indent="    ", subsequent_indent="        ")
        for name, value in arguments.items()
    ]
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
        notes="".join(f"- {note}\n" for note in sampling_notes(sampling, with_control, lacking)),
    )
