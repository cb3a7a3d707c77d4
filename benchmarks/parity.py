"""Compare the results of the same weights in our networks and in the libraries that the field trusts.

    python -m benchmarks.parity [CONFIG.yaml] [key=value ...]
    python -m benchmarks.parity weights=models/control_sd15_ini.safetensors append=benchmarks/RESULTS.md

UNet, ControlNet and autoencoder of diffusers, the text encoder of transformers, fp32 on the CPU. Without `weights` a
random checkpoint in Stable Diffusion 1.5's layout is made (5.7 GB of memory), none of whose layers is zero.
The weights reach the other side through diffusers' own converters (their_networks.py), whose names are compared with
those of cldm.diffusers_folder.
"""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from benchmarks.results_file import append_section, run, table
from benchmarks.their_networks import converted, network
from cldm.config import SamplingConfig
from cldm.controlled import SD15_CONFIG, ControlledLatentDiffusion, load_model_config
from cldm.diffusers_folder.keys import their_keys, to_theirs
from ldm.checkpoint import SD_OPTIONAL, load_strict, read_state_dict
from ldm.config import ModelConfig
from ldm.schedule import schedule_buffers
from ldm.text import tokenize
from settings.base import Settings

PROMPTS = ["3D face scan,Asian male,age level 3,normal face.", ""]
STEPS = [821, 41]  # t of the two samples of a batch


class ParityConfig(Settings):
    """What is compared."""

    weights: str | None = None
    """Checkpoint with a control network in SD1.5's architecture; null takes a random one."""
    sizes: Annotated[list[Annotated[int, Field(ge=64, multiple_of=64)]], Field(min_length=1)] = [256, 512]
    """Sides of the pictures, px."""
    seed: int = 0
    """Seed of the random weights."""
    append: str | None = None
    """Markdown file that the table is added to."""


def random_state(cfg: ModelConfig, seed: int) -> dict[str, Tensor]:
    """A checkpoint's float32 tensors, drawn so that activations keep their size and no layer is zero.

    Weights have standard deviation 1 / sqrt(inputs), gains are about 1, biases and embeddings about 0.
    """
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in ControlledLatentDiffusion(cfg).state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    buffers = schedule_buffers(cfg.schedule) | {"logvar": torch.zeros(cfg.schedule.num_timesteps)}
    state: dict[str, Tensor] = {}
    for key, shape in shapes.items():
        if key in buffers:
            state[key] = buffers[key]
        elif "embedding.weight" in key:
            state[key] = torch.randn(shape, generator=generator).mul_(0.1)
        elif len(shape) > 1:
            state[key] = torch.randn(shape, generator=generator).div_(math.sqrt(math.prod(shape[1:])))
        else:
            state[key] = torch.randn(shape, generator=generator).mul_(0.1).add_(key.endswith("weight"))
    return state


def inputs(cfg: ModelConfig, size: int, seed: int) -> dict[str, Tensor]:
    """Latents x (2, 4, h, w), skulls (2, 3, H, W) in [0, 1] and a picture (1, 3, H, W) in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed + size)
    side = size // cfg.first_stage.downscale
    return {
        "x": torch.randn(2, cfg.unet.in_channels, side, side, generator=generator),
        "t": torch.tensor(STEPS),
        "skull": torch.rand(2, cfg.control.hint_channels, size, size, generator=generator),
        "picture": torch.rand(1, cfg.first_stage.in_channels, size, size, generator=generator) * 2 - 1,
    }


def control_scales(cfg: ModelConfig) -> list[float]:
    """One for each residual: ICCR-Diff's for SD1.5, as many different ones for another size."""
    num = cfg.unet.num_control_outputs
    scales = SamplingConfig().control_scales
    return scales if len(scales) == num else [0.8 + 0.1 * i for i in range(num)]


@torch.no_grad()
def our_results(
    state: Mapping[str, Tensor], cfg: ModelConfig, sizes: Sequence[int], seed: int
) -> dict[str, Tensor]:
    """Results of our networks by name and size."""
    with torch.device("meta"):
        model = ControlledLatentDiffusion(cfg)
    load_strict(model, state, allow_missing=SD_OPTIONAL, allow_unexpected=SD_OPTIONAL, assign=True)
    model.eval()
    context = model.encode_text(PROMPTS)
    results = {"text embedding": context}
    for size in sizes:
        batch = inputs(cfg, size, seed)
        x, t = batch["x"], batch["t"]
        hint = model.encode_hint(batch["skull"])
        for i, residual in enumerate(model.control_model(x, t, context, hint)):
            results[f"control residual {i}, {size} px"] = residual
        results[f"eps without control, {size} px"] = model.eps(x, t, context, None)
        results[f"eps with control, {size} px"] = model.eps(x, t, context, hint, control_scales(cfg))
        posterior = model.first_stage_model.encode(batch["picture"])
        results[f"encode: mean, {size} px"] = posterior.mean
        results[f"encode: log-variance, {size} px"] = posterior.logvar
        results[f"decode, {size} px"] = model.decode(x[:1])
    return results


class Theirs:
    """The libraries' networks, built one at a time from the same tensors."""

    def __init__(self, state: Mapping[str, Tensor], cfg: ModelConfig) -> None:
        self.state, self.cfg = state, cfg
        self.same_names: dict[str, bool] = {}  # part -> whether cldm.diffusers_folder gives the same tensors

    def network(self, part: str) -> Any:
        """Return one part; keep in ``same_names`` whether our mapping of names agrees."""
        weights, names = converted(part, self.state, self.cfg), their_keys(self.cfg)[part]
        self.same_names[part] = set(names.values()) == set(weights) and all(
            torch.equal(to_theirs(part, name, self.state[key]), weights[name]) for key, name in names.items()
        )
        return network(part, weights, self.cfg)

    @torch.no_grad()
    def results(self, ours: Mapping[str, Tensor], sizes: Sequence[int], seed: int) -> dict[str, Tensor]:
        """Return results by the names of :func:`our_results`, whose text embedding all networks read."""
        cfg, context = self.cfg, ours["text embedding"]
        result: dict[str, Tensor] = {}
        tokens = tokenize(PROMPTS, cfg.cond_stage.max_length)
        result["text embedding"] = self.network("text_encoder")(input_ids=tokens).last_hidden_state
        at = {size: inputs(cfg, size, seed) for size in sizes}
        scaled: dict[int, list[Tensor]] = {}
        net = self.network("controlnet")
        for size, g in at.items():
            down, mid = net(g["x"], g["t"], context, g["skull"], return_dict=False)
            for i, residual in enumerate([*down, mid]):
                result[f"control residual {i}, {size} px"] = residual
            scaled[size] = [r * s for r, s in zip([*down, mid], control_scales(cfg), strict=True)]
        net = None  # one network at a time is in memory
        gc.collect()
        net = self.network("unet")
        for size, g in at.items():
            *down, mid = scaled[size]
            control = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
            result[f"eps without control, {size} px"] = net(g["x"], g["t"], context).sample
            result[f"eps with control, {size} px"] = net(g["x"], g["t"], context, **control).sample
        net = None
        gc.collect()
        net = self.network("vae")
        for size, g in at.items():
            posterior = net.encode(g["picture"]).latent_dist
            result[f"encode: mean, {size} px"] = posterior.mean
            result[f"encode: log-variance, {size} px"] = posterior.logvar
            result[f"decode, {size} px"] = net.decode(g["x"][:1] / cfg.scale_factor).sample
        return result


@dataclass(frozen=True)
class Difference:
    """One row of the table: of ours from theirs, relative to theirs."""

    name: str
    largest: float  # max |ours - theirs| / max |theirs|
    rms: float  # root mean square of the difference / that of theirs
    size: float  # root mean square of theirs: that there is something to compare


def differences(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> list[Difference]:
    """A row for each result; the control residuals of one size are one row, the worst of each.

    What the control changes in eps is a row too: were it next to nothing, equal results would say nothing of it.
    """
    ours, theirs = _with_effect(ours), _with_effect(theirs)
    assert ours.keys() == theirs.keys()
    rows: dict[str, Difference] = {}
    for name, a in ours.items():
        b = theirs[name].double()
        d = a.double() - b
        label = f"control residuals, {name.split(', ')[1]}" if name.startswith("control residual") else name
        rms = float(b.square().mean().sqrt())
        largest, relative = float(d.abs().max() / b.abs().max()), float(d.square().mean().sqrt()) / rms
        worst = rows.get(label, Difference(label, 0, 0, math.inf))
        rows[label] = Difference(
            label, max(largest, worst.largest), max(relative, worst.rms), min(rms, worst.size)
        )
    return list(rows.values())


def _with_effect(results: Mapping[str, Tensor]) -> dict[str, Tensor]:
    effects = {
        name.replace("eps with control", "effect of the control on eps"): value
        - results[name.replace("with", "without")]
        for name, value in results.items()
        if name.startswith("eps with control")
    }
    return {**results, **effects}


def table_of(rows: Sequence[Difference]) -> str:
    """Return a Markdown table."""
    header = ["result", "largest difference / largest value", "RMS difference / RMS", "RMS"]
    return table(
        header, [[row.name, f"{row.largest:.1e}", f"{row.rms:.1e}", f"{row.size:.3g}"] for row in rows]
    )


def measure(cfg: ParityConfig) -> str:
    """Run the comparison; return the table and what was compared, in Markdown.

    Raises:
        CheckpointError: `weights` cannot be read or are of another architecture.
    """
    started = time.process_time()
    model_cfg = load_model_config(SD15_CONFIG)
    state = read_state_dict(cfg.weights)[0] if cfg.weights else random_state(model_cfg, cfg.seed)
    ours = our_results(state, model_cfg, cfg.sizes, cfg.seed)
    gc.collect()
    theirs = Theirs(state, model_cfg)
    rows = differences(ours, theirs.results(ours, cfg.sizes, cfg.seed))
    import diffusers
    import transformers

    agree = [part for part, same in theirs.same_names.items() if same]
    what = f"`{Path(cfg.weights).name}`" if cfg.weights else f"one random checkpoint (seed {cfg.seed})"
    return (
        f"{(time.process_time() - started) / 60:.1f} minutes of CPU time; {what}, fp32, "
        f"diffusers {diffusers.__version__}, transformers {transformers.__version__}:\n\n{table_of(rows)}\n\n"
        f"The names of `cldm.diffusers_folder` give the same tensors as diffusers' converters for {len(agree)} of "
        f"{len(theirs.same_names)} parts ({', '.join(agree) or 'none'})."
    )


def work(cfg: ParityConfig, arguments: Sequence[str]) -> None:
    """Compare, print the section, and append it to a file where that is set."""
    if cfg.append is not None and not Path(cfg.append).is_file():
        raise ValueError(f"append: {cfg.append} is no file; give an existing one")
    body = measure(cfg)
    print(body)
    if cfg.append is not None:
        command = " ".join(["python -m benchmarks.parity", *arguments])
        cpu = torch.device("cpu")
        append_section("Same weights, other libraries", command, cpu, body, Path(cfg.append))


def main(arguments: Sequence[str]) -> int:
    return run("parity", ParityConfig, arguments, lambda cfg: work(cfg, arguments), file_key="weights")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
