"""The same weights in our networks and in the libraries the field trusts: how far do the results differ?

    python -m benchmarks.parity [CONFIG.yaml] [key=value ...]
    python -m benchmarks.parity weights=models/control_sd15_ini.safetensors append=benchmarks/RESULTS.md

UNet, ControlNet and autoencoder of diffusers, the text encoder of transformers, fp32 on the CPU. Without `weights` a
random checkpoint in Stable Diffusion 1.5's layout is made (5.7 GB, removed at the end), none of whose layers is zero.
The weights reach the other side through diffusers' own converters and configs written out here: nothing of
cldm.diffusers_folder is used, and its names are compared with theirs on the way.
"""

from __future__ import annotations

import gc
import math
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cldm.controlled import SD15_CONFIG, ControlledLatentDiffusion, load_model_config
from cldm.diffusers_folder.keys import their_keys, to_theirs
from cldm.record import environment
from cldm.sampling import sd15_control_scales
from ldm.checkpoint import SD_OPTIONAL, load_strict, read_state_dict, write_state_dict
from ldm.latent_diffusion import ModelConfig
from ldm.schedule import schedule_buffers
from ldm.text import tokenize
from settings.base import Settings
from settings.reading import parse_command_line, to_yaml

PROMPTS = ["3D face scan,Asian male,age level 3,normal face.", ""]
STEPS = [821, 41]  # t of the two samples of a batch
DOWN = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
UP = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
# Stable Diffusion 1.5 as its published config.json files describe it.
SD15: dict[str, dict[str, Any]] = {
    "unet": {
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": DOWN,
        "up_block_types": UP,
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
    },
    "controlnet": {
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": DOWN,
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
        "conditioning_embedding_out_channels": (16, 32, 96, 256),
    },
    "vae": {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
    },
    "text_encoder": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
    },
}


class ParityConfig(Settings):
    """What is compared.

    weights: a checkpoint with a control network in SD1.5's architecture; null: a random one from `seed`.
    sizes: sides of the pictures, px. scratch: where the random checkpoint lies meanwhile (the system's folder for
    temporary files if null). append: a Markdown file that the table is added to.
    """

    weights: str | None = None
    sizes: list[int] = [256, 512]
    seed: int = 0
    scratch: str | None = None
    append: str | None = None

    def validate(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        if not self.sizes or any(size < 64 or size % 64 for size in self.sizes):
            raise ValueError(f"sizes: got {self.sizes}, expected multiples of 64 px")
        if self.append is not None and not Path(self.append).is_file():
            raise ValueError(f"append: {self.append} is no file; give an existing one")


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
    scales = sd15_control_scales()
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
        given = inputs(cfg, size, seed)
        x, t = given["x"], given["t"]
        hint = model.encode_hint(given["skull"])
        for i, residual in enumerate(model.control_model(x, t, context, hint)):
            results[f"control residual {i}, {size} px"] = residual
        results[f"eps without control, {size} px"] = model.eps(x, t, context, None)
        results[f"eps with control, {size} px"] = model.eps(x, t, context, hint, control_scales(cfg))
        posterior = model.first_stage_model.encode(given["picture"])
        results[f"encode: mean, {size} px"] = posterior.mean
        results[f"encode: log-variance, {size} px"] = posterior.logvar
        results[f"decode, {size} px"] = model.decode(x[:1])
    return results


class Theirs:
    """The libraries' networks, built one at a time from the same tensors."""

    def __init__(
        self,
        state: Mapping[str, Tensor],
        cfg: ModelConfig,
        arguments: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self._state, self._cfg, self._arguments = state, cfg, arguments
        self._names = their_keys(cfg)
        self.same_names: dict[
            str, bool
        ] = {}  # by part: cldm.diffusers_folder's mapping gives the same tensors

    def network(self, part: str) -> nn.Module:
        """One part, filled through diffusers' converters."""
        import diffusers
        from diffusers.loaders import single_file_utils as convert

        arguments = dict(self._arguments[part])
        config = {"layers_per_block": 2, "class_embed_type": None, "addition_embed_type": None, **arguments}
        state = {key: value for key, value in self._state.items() if not key.startswith("model_ema.")}
        if part == "text_encoder":
            return self._text_encoder(convert.convert_ldm_clip_checkpoint(state), arguments)
        classes: dict[str, tuple[Any, Callable[..., dict[str, Tensor]]]] = {
            "unet": (diffusers.UNet2DConditionModel, convert.convert_ldm_unet_checkpoint),
            "controlnet": (diffusers.ControlNetModel, convert.convert_controlnet_checkpoint),
            "vae": (diffusers.AutoencoderKL, convert.convert_ldm_vae_checkpoint),
        }
        build, converter = classes[part]
        converted = converter(state, config=config)
        self._compare_names(part, converted)
        with torch.device("meta"):
            net = build(**arguments)
        net.load_state_dict(converted, assign=True)
        return net.eval()

    def _text_encoder(self, converted: dict[str, Tensor], arguments: Mapping[str, Any]) -> nn.Module:
        from transformers import CLIPTextConfig, CLIPTextModel

        converted = {key: value for key, value in converted.items() if not key.endswith("position_ids")}
        self._compare_names("text_encoder", converted)
        net = CLIPTextModel(CLIPTextConfig(hidden_act="quick_gelu", eos_token_id=49407, **arguments))
        inner = getattr(net, "text_model", net)  # transformers before 5 nests it
        weights = {key.removeprefix("text_model."): value for key, value in converted.items()}
        missing, unexpected = inner.load_state_dict(weights, strict=True)
        assert not missing and not unexpected
        return net.eval()

    def _compare_names(self, part: str, converted: Mapping[str, Tensor]) -> None:
        names = self._names[part]
        self.same_names[part] = set(names.values()) == set(converted) and all(
            torch.equal(to_theirs(part, name, self._state[key]), converted[name])
            for key, name in names.items()
        )

    @torch.no_grad()
    def results(self, ours: Mapping[str, Tensor], sizes: Sequence[int], seed: int) -> dict[str, Tensor]:
        """Results by the same names as :func:`our_results`, which give the text embedding that all networks read."""
        cfg = self._cfg
        found: dict[str, Tensor] = {}
        net: Any = self.network("text_encoder")
        found["text embedding"] = net(
            input_ids=tokenize(PROMPTS, cfg.cond_stage.max_length)
        ).last_hidden_state
        context = ours["text embedding"]
        given = {size: inputs(cfg, size, seed) for size in sizes}
        net = self.network("controlnet")
        residuals: dict[int, tuple[list[Tensor], Tensor]] = {}
        for size, g in given.items():
            down, mid = net(g["x"], g["t"], context, g["skull"], return_dict=False)
            for i, residual in enumerate([*down, mid]):
                found[f"control residual {i}, {size} px"] = residual
            *scales, last = control_scales(cfg)
            residuals[size] = ([r * s for r, s in zip(down, scales, strict=True)], mid * last)
        net = None
        gc.collect()
        net = self.network("unet")
        for size, g in given.items():
            down, mid = residuals[size]
            found[f"eps without control, {size} px"] = net(g["x"], g["t"], context).sample
            found[f"eps with control, {size} px"] = net(
                g["x"],
                g["t"],
                context,
                down_block_additional_residuals=down,
                mid_block_additional_residual=mid,
            ).sample
        net = None
        gc.collect()
        net = self.network("vae")
        for size, g in given.items():
            posterior = net.encode(g["picture"]).latent_dist
            found[f"encode: mean, {size} px"] = posterior.mean
            found[f"encode: log-variance, {size} px"] = posterior.logvar
            found[f"decode, {size} px"] = net.decode(g["x"][:1] / cfg.scale_factor).sample
        return found


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
    rows: dict[str, list[Difference]] = {}
    for name, a in ours.items():
        b = theirs[name].double()
        d = a.double() - b
        label = f"control residuals, {name.split(', ')[1]}" if name.startswith("control residual") else name
        rms = float(b.square().mean().sqrt())
        row = Difference(
            label, float(d.abs().max() / b.abs().max()), float(d.square().mean().sqrt()) / rms, rms
        )
        rows.setdefault(label, []).append(row)
    return [
        Difference(
            label, max(r.largest for r in found), max(r.rms for r in found), min(r.size for r in found)
        )
        for label, found in rows.items()
    ]


def _with_effect(results: Mapping[str, Tensor]) -> dict[str, Tensor]:
    effects = {
        name.replace("eps with control", "effect of the control on eps"): value
        - results[name.replace("with", "without")]
        for name, value in results.items()
        if name.startswith("eps with control")
    }
    return {**results, **effects}


def table(rows: Sequence[Difference]) -> str:
    """Markdown."""
    lines = [
        "| result | largest difference / largest value | RMS difference / RMS | RMS |",
        "|---|---|---|---|",
    ]
    lines += [f"| {row.name} | {row.largest:.1e} | {row.rms:.1e} | {row.size:.3g} |" for row in rows]
    return "\n".join(lines)


def measure(cfg: ParityConfig, command: str) -> str:
    """Run the comparison; returns a section in Markdown.

    Raises:
        CheckpointError: `weights` cannot be read or are of another architecture.
    """
    started = time.process_time()
    model_cfg = load_model_config(SD15_CONFIG)
    with tempfile.TemporaryDirectory(dir=cfg.scratch) if cfg.weights is None else nullcontext() as folder:
        path = cfg.weights
        if folder is not None:
            path = str(Path(folder) / "random.safetensors")
            write_state_dict(path, random_state(model_cfg, cfg.seed), {})
            gc.collect()
        assert path is not None
        state = read_state_dict(path)[0]
        ours = our_results(state, model_cfg, cfg.sizes, cfg.seed)
        gc.collect()
        theirs = Theirs(state, model_cfg, SD15)
        rows = differences(ours, theirs.results(ours, cfg.sizes, cfg.seed))
        del state, theirs._state
    machine = environment(torch.device("cpu"), torch.float32)
    import diffusers
    import transformers

    agree = [part for part, same in theirs.same_names.items() if same]
    what = f"`{Path(cfg.weights).name}`" if cfg.weights else f"one random checkpoint (seed {cfg.seed})"
    return (
        f"`{command}`, {(time.process_time() - started) / 60:.1f} minutes of CPU time on {machine['threads']} threads "
        f"({machine['device_name']}); {what}, fp32, torch {machine['torch']}, diffusers {diffusers.__version__}, "
        f"transformers {transformers.__version__}:\n\n{table(rows)}\n\n"
        f"The names of `cldm.diffusers_folder` give the same tensors as diffusers' converters for {len(agree)} of "
        f"{len(theirs.same_names)} parts ({', '.join(agree) or 'none'})."
    )


def main(arguments: Sequence[str]) -> int:
    """The command. Returns the exit code: 0, or 2 (130: interrupted) with one message on stderr."""
    if any(argument in ("-h", "--help") for argument in arguments):
        print(f"{__doc__}\n{ParityConfig.__doc__}\nDefaults:\n\n{to_yaml(ParityConfig)}")
        return 0
    try:
        cfg = parse_command_line(ParityConfig, arguments, file_key="weights")
        cfg.validate()
        section = measure(cfg, " ".join(["python -m benchmarks.parity", *arguments]))
        print(section)
        if cfg.append is not None:
            with Path(cfg.append).open("a", encoding="utf-8") as file:
                file.write(f"\n## Same weights, other libraries\n\n{section}\n")
    except (ValueError, OSError) as error:
        print(f"parity: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nparity: interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
