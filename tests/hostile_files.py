"""Makes one folder of files that are broken, foreign or malicious, for every entry point to be fed with."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import tiny_model_config, write_pairs
from PIL import Image

from cldm.controlled import ControlledLatentDiffusion, model_metadata
from ldm.checkpoint import write_state_dict

CFG = tiny_model_config()
CFG.cond_stage.vocab_size = 64  # no prompt is ever read, and the files are small
UNET, CONTROL = "model.diffusion_model.", "control_model."
MARKER = "it-ran"  # what the malicious files would make


class Bomb:
    """Runs a call when unpickled naively."""

    def __init__(self, call: Callable[..., Any], *args: object) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.call, self.args


def make_hostile_files(root: Path) -> None:
    """Fill ``root`` with checkpoints, pictures, manifests, YAML files and cohorts."""
    for make in (_checkpoints, _damaged_containers, _pictures, _data, _texts):
        make(root)


def _checkpoints(root: Path) -> None:
    torch.manual_seed(0)
    model = ControlledLatentDiffusion(CFG)
    state = dict(model.state_dict())
    metadata = model_metadata(CFG) | {"sampling": json.dumps({"steps": 2, "control_scales": [1.0]})}
    control = {key: value for key, value in state.items() if key.startswith(CONTROL)}
    base = {key: value for key, value in state.items() if key not in control}
    first, some = UNET + "input_blocks.0.0.weight", UNET + "input_blocks.0.0.bias"
    write_state_dict(root / "whole.safetensors", state, metadata)
    write_state_dict(root / "base.safetensors", base, metadata)
    write_state_dict(root / "base.ckpt", base, metadata)
    os.link(root / "base.ckpt", root / "link.ckpt")
    small = {
        "control": control,
        "sd2": base | {"cond_stage_model.model.ln_final.weight": torch.ones(1024)},
        "inpainting": base | {first: torch.zeros(8, 9, 3, 3)},
        "int8": base | {some: base[some].to(torch.int8)},
        "resumable": {"net." + key: value for key, value in base.items()},
        "missing": {key: value for key, value in base.items() if key != some},
        "sdxl": {"conditioner.embedders.0.x": torch.ones(1), first: base[first]},
        "diffusers": {"down_blocks.0.resnets.0.conv1.weight": torch.ones(1)},
        "lora": {"lora_unet_down.weight": torch.ones(1)},
        "nan": base | {some: torch.full_like(base[some], torch.nan)},
        "ema": {f"model_ema.{key.removeprefix('model.').replace('.', '')}": x for key, x in base.items()},
        "vae": {"first_stage_model.encoder.conv_in.weight": torch.ones(1)},
    }
    for name, weights in small.items():
        write_state_dict(root / f"{name}.safetensors", weights, metadata)
    write_state_dict(root / "unknown_make.safetensors", base, {})
    sparse = torch.sparse_coo_tensor(torch.zeros(1, 0, dtype=torch.long), [], (8,), check_invariants=True)
    torch.save({"metadata": metadata, **base, some: sparse}, root / "sparse.ckpt")
    configs: dict[str, Any] = {
        "list": [1, 2],
        "unknown_key": {"unte": 3},
        "negative": {"unet": {"model_channels": -8}},
        "no_groups": {"unet": {"norm_groups": 0}},
        "no_heads": {"unet": {"num_heads": 0}},
        "endless": {"unet": {"num_res_blocks": 10**9}},
        "gigantic": {"unet": {"model_channels": 2**40}},
        "points": {"control": {"landmarks": {"num_points": 1_500_000}}},
        "side": {"image_size": 2**20},
        "wide": {"control": {"landmarks": {"widths": [2**19, 2**19]}}},
        "no_levels": {"unet": {"channel_mult": [], "attention_levels": []}},
        "no_steps": {"schedule": {"num_timesteps": 0}},
        "text_in_numbers": {"image_size": "wide"},
    }
    texts = {"no_json": "{", **{name: json.dumps(config) for name, config in configs.items()}}
    for name, text in texts.items():
        weights = {"control_model.x": torch.ones(1), first: torch.ones(1)}
        write_state_dict(root / f"config_{name}.safetensors", weights, {"config": text})
    write_state_dict(root / "bad_advice.safetensors", state, metadata | {"sampling": "{"})


def _damaged_containers(root: Path) -> None:
    for suffix in ("ckpt", "safetensors"):
        whole = (root / f"base.{suffix}").read_bytes()
        (root / f"cut.{suffix}").write_bytes(whole[: len(whole) // 2])
    content = {"state_dict": {"a": torch.ones(1)}, "x": Bomb(os.system, f"touch {root / MARKER}")}
    torch.save(content, root / "evil.ckpt")
    torch.save(content, root / "evil_legacy.ckpt", _use_new_zipfile_serialization=False)
    (root / "evil.pkl.ckpt").write_bytes(pickle.dumps(Bomb(eval, f"open({str(root / MARKER)!r}, 'w')")))
    with zipfile.ZipFile(root / "document.ckpt", "w") as archive:
        archive.writestr("word/document.xml", "<w/>")
    entries = {
        "beyond": ("F32", [100], [0, 400]),
        "type": ("F99", [2], [0, 8]),
        "shape": ("F32", [2**62, 2**62], [0, 8]),
        "backwards": ("F32", [2], [8, 0]),
        "overlap": ("F32", [2], [0, 8]),
    }
    for name, (dtype, shape, offsets) in entries.items():
        entry = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        text = json.dumps(dict.fromkeys("ab" if name == "overlap" else "a", entry)).encode()
        (root / f"lying_{name}.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    (root / "lying_length.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}" + bytes(8))
    (root / "lying_json.safetensors").write_bytes(struct.pack("<Q", 4) + b"{no}" + bytes(8))
    torch.save([torch.ones(1)], root / "list.ckpt")
    torch.save({"epoch": 3, "name": "x"}, root / "tensorless.ckpt")
    torch.save({"state_dict": "x"}, root / "text_state.ckpt")
    (root / "empty.ckpt").touch()
    (root / "page.ckpt").write_text("<html><body>404</body></html>")
    (root / "pointer.ckpt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    os.mkfifo(root / "pipe.ckpt")
    (root / "loop.ckpt").symlink_to("loop.ckpt")
    (root / "nowhere.ckpt").symlink_to("gone.ckpt")
    (root / "folder.ckpt").mkdir()


def _pictures(root: Path) -> None:
    Image.fromarray(np.full((64, 64), 90, np.uint8)).save(root / "skull.png")
    whole = (root / "skull.png").read_bytes()
    (root / "empty.png").touch()
    (root / "cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "text.png").write_text("not a picture")
    (root / "scan.dcm").write_bytes(bytes(128) + b"DICM")
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    chunk = whole[12:16] + header
    (root / "bomb.png").write_bytes(whole[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + whole[33:])
    Image.fromarray(np.full((8, 8), -1, np.float32)).save(root / "float.tif")
    os.mkfifo(root / "pipe.png")
    (root / "no_pictures").mkdir()
    (root / "no_pictures" / "notes.txt").write_text("x")


def _data(root: Path) -> None:
    pairs = write_pairs(root / "pairs", train=4, valid=2, test=3)
    line = json.loads((pairs / "split_data/train.json").read_text().splitlines()[0])
    texts = {
        "no_json": "{,}",
        "no_lines": "\n\n",
        "lost": json.dumps(line | {"source": "lost.png"}),
        "absolute": json.dumps(line | {"source": "/etc/hostname"}),
        "outside": json.dumps(line | {"source": "../../secret.png"}),
        "ancient": json.dumps(line | {"age": 900}),
        "infinite": json.dumps(line).replace(f'"age": {line["age"]}', '"age": 1e999'),
        "digits": json.dumps(line).replace(f'"age": {line["age"]}', '"age": ' + "9" * 5000),
        "nested": '{"age":' * 100_000,
        "twice": json.dumps(line)[:-1] + ', "age": 30}',
        "array": json.dumps([line], indent=1),
        "sex": json.dumps(line | {"gender": "robot"}),
    }
    for name, text in texts.items():
        (pairs / "split_data" / f"{name}.json").write_text(text)
    (pairs / "split_data" / "binary.json").write_bytes(b"\xff\x00\x80" * 9)
    cut = shutil.copytree(pairs, root / "cut_pairs")
    (cut / "pairedCS/craniofacial/train_2.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for name, text in {"broken": "{", "list": "[]", "other": '{"seed": 99}'}.items():
        (root / f"cohort_{name}").mkdir()
        (root / f"cohort_{name}" / "cohort.json").write_text(text)
    for name, change in {
        "broken": "{",
        "fieldless": "{}",
        "unaged": json.dumps(line | {"age": "old"}),
        "lost": json.dumps(line | {"landmarks": "landmarks/lost.json"}),
        "outside": json.dumps(line | {"landmarks": "../../../skull.png"}),
    }.items():
        made = shutil.copytree(pairs, root / f"made_{name}")
        for split in ("valid", "test"):
            path = made / "split_data" / f"{split}.json"
            lines = [json.loads(one) | {"landmarks": "any.json"} for one in path.read_text().splitlines()]
            path.write_text("\n".join(json.dumps(one) for one in lines))
        (made / "pairedCS/any.json").touch()
        (made / "split_data/train.json").write_text(change)
        (made / "cohort.json").write_text("{}")


def _texts(root: Path) -> None:
    start = f"stage: control\nname: run\ninit: {root / 'whole.safetensors'}\n"
    texts = {
        "list": "[1, 2]",
        "broken": "unet: [1, 2",
        "tag": f"name: !!python/object/apply:os.system ['touch {root / MARKER}']",
        "reference": "name: ${nowhere.at.all}",
        "unknown": "trian: {max_steps: 3}",
        "nested": "unet: 3",
        "demo": (
            f"{start}data: {{root: {root / 'pairs'}}}\nsampling: {{steps: 2, control_scales: [1.0]}}\n"
            "train: {max_steps: 1, batch_size: 2, num_valid: 2, device: cpu}\n"
        ),
    }
    for name, text in texts.items():
        (root / f"{name}.yaml").write_text(text)
    (root / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01" * 9)
    (root / "folder.yaml").mkdir()
    torch.save({"state_dict": {"a": torch.ones(1)}}, root / "other_run.ckpt")
    runs = {
        "broken": b"PK\x03\x04",
        "evil": (root / "evil.ckpt").read_bytes(),
        "list": (root / "list.ckpt").read_bytes(),
    }
    for name, content in (runs | {"other": (root / "other_run.ckpt").read_bytes()}).items():
        folder = root / "runs" / name / "checkpoints"
        folder.mkdir(parents=True)
        (folder / "last.ckpt").write_bytes(content)
    (root / "a_file").write_text("mine")
