"""Inputs of every kind that a program reads: sound ones, and what is made of them."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from benchmarks.fuzz.sandbox import ROOT, Try
from cldm.controlled import ControlledLatentDiffusion, model_metadata
from ldm.config import AutoencoderConfig, ControlConfig, LandmarkConfig, ModelConfig, TextConfig, UNetConfig

# Values that are wrong wherever a JSON document has another one.
SHAPES: tuple[Any, ...] = (
    None, [], {}, "", "x", 0, -1, 1.5, 1e308, 10**30, True, [None], {"a": {}}, "\x00", "../../x", "/etc/hostname",
)  # fmt: skip


@dataclass
class Sound:
    """Inputs that work, made once.

    Attributes:
        skull, face: PNG files. metadata, tensors: of a tiny model for 64 px pictures. line: of a manifest.
        voxels: (K, J, I) int16 HU, 8 mm, no head. head: NIfTI file of a head, 5 mm.
        reader: a landmark network. result: files of a finished run of ``sample.py`` by name.
    """

    skull: bytes
    face: bytes
    metadata: dict[str, str]
    tensors: dict[str, torch.Tensor]
    line: dict[str, Any]
    voxels: np.ndarray
    head: bytes
    reader: bytes
    result: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def make(cls) -> Sound:
        torch.manual_seed(0)
        unet = UNetConfig(
            model_channels=8, channel_mult=[1, 2], num_res_blocks=1, attention_levels=[1], num_heads=2, context_dim=16,
            norm_groups=4,
        )  # fmt: skip
        cfg = ModelConfig(
            image_size=64,
            unet=unet,
            first_stage=AutoencoderConfig(ch=8, ch_mult=[1, 1, 1, 1], num_res_blocks=1, norm_groups=4),
            cond_stage=TextConfig(width=16, layers=1, heads=2, intermediate=16),
            control=ControlConfig(
                hint_widths=[4, 4, 4, 4, 8, 8, 8],
                landmarks=LandmarkConfig(num_points=106),
            ),
        )
        sampling = json.dumps({"steps": 2, "control_scales": [1.0]})
        data = ROOT / "data"
        line = json.loads((data / "split_data" / "test.json").read_text(encoding="utf-8").splitlines()[0])
        with np.load(ROOT / "tests/fixtures/phantom.npz") as stored:  # (X, Y, Z) from x left, y up, z forward
            shape = tuple(stored["shape"].tolist())
            skin, bone = (
                np.unpackbits(stored[n], count=np.prod(shape)).reshape(shape) for n in ("skin", "bone")
            )
        head = np.select([bone > 0, skin > 0], [900, 40], -1000).astype(np.int16)[::2, ::2, ::-2]
        depth = np.hypot.outer(np.hypot.outer(np.arange(-9, 9), np.arange(-10, 10)), np.arange(-11, 11))
        return cls(
            skull=(data / "pairedCS" / "skull" / line["source"]).read_bytes(),
            face=(data / "pairedCS" / "craniofacial" / line["target"]).read_bytes(),
            metadata=model_metadata(cfg) | {"sampling": sampling, "step": "1"},
            tensors=ControlledLatentDiffusion(cfg).state_dict(),
            line={key: value for key, value in line.items() if key not in ("landmarks", "texture")},
            voxels=np.select([depth > 8, depth > 6], [-1000, 900], 40).astype(np.int16),
            head=nifti_file(head.transpose(1, 2, 0), 5),
            reader=(ROOT / "models/demo/pipnet_skull.safetensors").read_bytes(),
        )

    def weights(self, metadata: Mapping[str, str] | None = None) -> bytes:
        return save(self.tensors, dict(self.metadata if metadata is None else metadata))

    @property
    def files(self) -> dict[str, Any]:
        """Return the files of a run that draws one face."""
        return {"in/tiny.safetensors": self.weights(), "in/s.png": self.skull}


def nifti_header(shape: tuple[int, ...], step: float) -> bytearray:
    """Return the header of a (K, J, I) int16 volume from right to left, front to back, bottom to top; step in mm."""
    header = bytearray(348)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *shape[::-1], 1, 1, 1, 1)
    struct.pack_into("<hh", header, 70, 4, 16)
    struct.pack_into("<8f", header, 76, 1, step, step, step, 0, 0, 0, 0)
    struct.pack_into("<f2f", header, 108, 352, 1, 0)
    struct.pack_into("<hh", header, 252, 1, 1)
    struct.pack_into("<12f", header, 280, -step, 0, 0, 80, 0, -step, 0, 80, 0, 0, step, -80)
    header[344:348] = b"n+1\0"
    return header


def nifti_file(voxels: np.ndarray, step: float) -> bytes:
    return bytes(nifti_header(voxels.shape, step)) + bytes(4) + voxels.tobytes()


Maker = Callable[[random.Random, Sound], Try]


def damaged(rng: random.Random, content: bytes, head: int = 600) -> bytes:
    """Return the bytes with one to three random changes, most of them within the first ``head``."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        reach = min(len(data), head) if rng.random() < 0.7 else len(data)
        at = rng.randrange(max(1, reach))
        what = rng.randrange(6)
        if what == 0:
            del data[at:]
        elif what == 1:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif what == 2:
            data[at : at + 4] = struct.pack("<i", rng.choice((0, -1, 2**31 - 1, 1 << 20, -(2**31))))
        elif what == 3:
            data[at:at] = rng.randbytes(rng.choice((1, 7, 300)))
        elif what == 4:
            del data[at : at + rng.choice((1, 8, 100))]
        else:
            data[at : at + 64] = bytes(len(data[at : at + 64]))
    return bytes(data)


def reshaped(rng: random.Random, document: Any) -> Any:
    """Return a JSON document with one of its values, or itself, replaced by another kind of value."""
    document = json.loads(json.dumps(document))
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        for key in (
            list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        ):
            places.append((node, key))
            visit(node[key])

    visit(document)
    if not places or rng.random() < 0.1:
        return rng.choice(SHAPES)
    node, key = rng.choice(places)
    if isinstance(node, dict) and rng.random() < 0.3:
        del node[key]
    else:
        node[key] = rng.choice(SHAPES)
    return document


def broken_json(rng: random.Random, document: Any) -> bytes:
    """Return a document that is damaged as text, as bytes, or in its shape."""
    what = rng.randrange(6)
    if what == 0:
        return damaged(rng, json.dumps(document).encode())
    if what == 1:
        depth = rng.choice((500, 3000, 100_000))
        return b'{"a":' * depth if rng.random() < 0.5 else b"[" * depth + b"]" * depth
    if what == 2:
        return rng.choice(
            (b"", b"null", b"[]", b"\xff\xfe[\x00]\x00", b"\xef\xbb\xbf{}", b"NaN", b'{"a": Infinity}')
        )
    return json.dumps(reshaped(rng, document)).encode()
