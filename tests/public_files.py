"""Checkpoints as others publish them: Lightning pickles, half precision, older and newer key names."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from safetensors.torch import save_file

TEXT = "cond_stage_model.transformer.text_model."
NUMPY_CORES = ("numpy.core.multiarray", "numpy._core.multiarray")


def lightning_content(weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Everything a public SD1.5 `.ckpt` holds beside its tensors."""
    return {
        "epoch": 0,
        "global_step": 470000,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": dict(weights),
        "callbacks": {
            ModelCheckpoint: {  # versions before 1.5 used the class as the key
                "monitor": "val/loss_simple_ema",
                "best_model_score": np.float64(0.25),
                "current_score": np.float32(0.5),
                "counts": [np.int64(3)],
                "best_model_path": "/somewhere/last.ckpt",
            },
            "instance": _instance(),
        },
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-4}]}],
        "lr_schedulers": [{"base_lrs": [1e-4], "_last_lr": [np.float64(1e-4)], "lr_lambdas": [{"f": 1}]}],
        "raw": b"\xff\x00bytes",  # protocol 2 pickles these through _codecs.encode
    }


def _instance() -> ModelCheckpoint:
    """A callback as an object, holding what Lightning's early versions gave it."""
    made = ModelCheckpoint.__new__(ModelCheckpoint)
    made.__dict__ = {"monitor": "val/loss_simple_ema", "save_top_k": 3, "best_model_score": np.float64(0.25)}
    return made


def write_lightning(
    path: Path, content: object, numpy_core: str = NUMPY_CORES[0], legacy: bool = False
) -> None:
    """Save with torch, and name NumPy's module as the version that wrote the file did.

    legacy: the container of torch before 1.6, no zip archive.
    """
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    old, new = (
        b"c" + name.encode() + b"\n" for name in (np.float64(0).__reduce__()[0].__module__, numpy_core)
    )
    if legacy:
        raw = path.read_bytes()
        assert old in raw
        path.write_bytes(raw.replace(old, new))
        return
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in entries if name.endswith("data.pkl"))
    assert old in entries[name]
    entries[name] = entries[name].replace(old, new)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for entry, data in entries.items():
            archive.writestr(entry, data)


def public_weights(
    state: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
    *,
    text_model: bool = True,
    ema: bool = True,
    buffers: bool = True,
) -> dict[str, torch.Tensor]:
    """Our state as one of the public files has it.

    text_model: keep that level of the text encoder's names. ema: with the
    averages under names without dots. buffers: with the schedule and `logvar`.
    """
    weights = {key: v.to(dtype) if v.is_floating_point() else v for key, v in state.items()}
    if not buffers:
        weights = {key: value for key, value in weights.items() if "." in key}
    else:
        weights["logvar"] = torch.zeros(1000)
    weights[TEXT + "embeddings.position_ids"] = torch.arange(77)[None]
    if ema:
        unet = {key: value for key, value in weights.items() if key.startswith("model.diffusion_model.")}
        weights |= {
            "model_ema." + key.removeprefix("model.").replace(".", ""): v + 1 for key, v in unet.items()
        }
        weights |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(470000)}
    if not text_model:
        weights = {key.replace("transformer.text_model.", "transformer."): v for key, v in weights.items()}
    return weights


def write_public(path: Path, weights: Mapping[str, torch.Tensor], container: str) -> None:
    """container: "safetensors", "lightning" (with all that Lightning adds), "legacy" (the same, no zip) or "bare"."""
    if container == "safetensors":
        save_file(dict(weights), path)
    elif container == "bare":
        torch.save(dict(weights), path)
    else:
        write_lightning(path, lightning_content(weights), legacy=container == "legacy")
