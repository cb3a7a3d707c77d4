"""Skull pictures to faces.

    python sample.py [CONFIG.yaml] [key=value ...]
    python sample.py skull=my_skull.png sex=female age=43 body_mass=4 num_samples=4 out=results/mine

skull is a picture, a folder of pictures, or a manifest (.json, one object a line) that says who each skull belongs to.
Without it, shipped test skulls are reconstructed. Each face becomes a PNG; contact_sheet.png shows them all, and
record.json holds what is needed to repeat them. What comes out is an approximation, not an identification.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from cldm.controlled import load_model
from cldm.record import check_overwriting, claim_folder, environment, latest_folder, unused_folder
from cldm.sampling import SamplingConfig
from cldm.spacing import spaced_timesteps
from data.cases import MANIFEST_SUFFIXES, Known, check_pictures, find_cases
from data.shards import picture_sha256
from data.sheet import NOTICE
from ldm.checkpoint import sha256
from ldm.config import parse_command_line, to_yaml
from ldm.device import choose_device, choose_precision
from muti_control.job import Job, RunFolder
from muti_control.reconstruction import recommended_sampling, reconstruct_cases
from muti_control.resume import resumed

ROOT = Path(__file__).resolve().parent
DEMO_SKULLS, DEMO_LIMIT = "data/split_data/test.json", 4
DEMO_WEIGHTS = "models/demo/iccr_demo.safetensors"


@dataclass
class SampleConfig:
    """What to reconstruct, and how.

    skull: picture, folder or manifest. images_dir: where a manifest's pictures are, if not where it expects them.
    limit: at most that many skulls, spread evenly over the list.
    sex, age (years), ethnicity, body_mass (1 very thin ... 5 slightly fat): of the person; over a manifest's.
    num_samples: faces for each skull, with seeds seed, seed + 1, ...
    weights: checkpoint. model: YAML of its architecture, where the file does not carry it.
    device: auto, cpu, cuda, cuda:1, mps. precision: auto (bf16 where the device
        computes in it, else fp32), fp32, bf16, fp16.
    batch_size: faces drawn together; each depends on its own skull, prompt and seed alone.
    max_sheets: contact sheets at most, of twelve skulls each.
    out: folder to write. Default: results/NAME, numbered if it exists. overwrite: replace an earlier run there.
    resume: continue an earlier run there (without out: the latest results/NAME), drawing the faces it lacks.
    sampling: the sampler's settings. Default: what the weights recommend.
    """

    skull: str | None = None
    images_dir: str | None = None
    limit: int | None = None
    sex: str | None = None
    age: float | None = None
    ethnicity: str | None = None
    body_mass: Any = None
    num_samples: int = 1
    seed: int = 0
    weights: str = DEMO_WEIGHTS
    model: str | None = None
    device: str = "auto"
    precision: str = "auto"
    batch_size: int = 8
    max_sheets: int = 20
    out: str | None = None
    overwrite: bool = False
    resume: bool = False
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def validate(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        for name in ("num_samples", "batch_size", "max_sheets"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if not 0 <= self.seed < 2**63 - self.num_samples:
            raise ValueError(f"seed: got {self.seed}, expected 0 or a positive number below 2^63")
        if self.overwrite and self.resume:
            raise ValueError(
                "overwrite=true replaces an earlier run and resume=true continues it; give one of them"
            )
        self.sampling.validate()


def prepare(arguments: Sequence[str]) -> Job:
    """Everything that can be wrong is found here, before anything is written.

    Raises:
        ValueError: whatever was given cannot be used; the message says what to do.
    """
    cfg = parse_command_line(SampleConfig, arguments, file_key="skull")
    cfg.validate()
    device = choose_device(cfg.device)
    dtype = choose_precision(cfg.precision, device)
    known = Known(cfg.sex, cfg.age, cfg.ethnicity, cfg.body_mass)
    skull = _shipped(DEMO_SKULLS) if cfg.skull is None else Path(cfg.skull)
    limit = DEMO_LIMIT if cfg.skull is None and cfg.limit is None else cfg.limit
    cases = find_cases(skull, known, cfg.images_dir, limit)
    is_manifest = skull.is_file() and skull.suffix.lower() in MANIFEST_SUFFIXES
    name = _name(skull) if cfg.skull is not None else "demo"
    free = latest_folder if cfg.resume else unused_folder
    folder = Path(cfg.out) if cfg.out is not None else free(Path("results") / name)
    earlier = claim_folder(folder, cfg.overwrite, cfg.resume)
    weights = _shipped(cfg.weights)
    model, metadata = load_model(weights, cfg.model, device, dtype)
    base = {"sampling": recommended_sampling(metadata, model.cfg.unet.num_control_outputs)}
    cfg = parse_command_line(SampleConfig, arguments, base=base, base_name="settings in the weights")
    cfg.validate()
    cfg.sampling.scales_for(model.cfg.unet.num_control_outputs)
    try:
        spaced_timesteps(
            cfg.sampling.steps, cfg.sampling.spacing, model.cfg.schedule.num_timesteps, model.alphas_cumprod
        )
    except ValueError as error:
        raise ValueError(f"sampling.{error}") from error
    notes = check_pictures(cases, model.cfg.image_size)
    pictures = {path for case in cases for path in (case.skull_path, case.face_path) if path is not None}
    job = Job(
        model=model,
        cases=cases,
        notes=notes,
        hashes={path: picture_sha256(path) for path in pictures},
        seeds=range(cfg.seed, cfg.seed + cfg.num_samples),
        sampling=cfg.sampling,
        batch_size=cfg.batch_size,
        max_sheets=cfg.max_sheets,
        folder=RunFolder(folder),
        weights={"file": weights.name, "sha256": sha256(weights), "step": metadata.get("step", "unknown")},
        environment=environment(device, dtype),
        config=to_yaml(cfg),
        manifest={"path": str(skull), "sha256": sha256(skull)} if is_manifest else None,
    )
    if earlier is not None:
        job = replace(job, folder=resumed(job, earlier) if cfg.resume else RunFolder(folder, earlier.files))
    inputs = [skull, weights, *(Path(argument) for argument in arguments if "=" not in argument), *pictures]
    inputs += [Path(cfg.model)] if cfg.model is not None else []
    written = [folder / file for file in job.files if file not in job.folder.done]
    check_overwriting(job.folder.outdated, written, inputs)
    return job


def _name(skull: Path) -> str:
    """What the results are called, for ``.`` and ``..`` too."""
    whole = Path(os.path.abspath(skull))  # not resolved: a link keeps the name the user knows
    return (whole.name if whole.is_dir() else whole.stem) or "skulls"


def _shipped(name: str) -> Path:
    """A file of the user's, or one that comes with this program, from any working folder."""
    return Path(name) if Path(name).exists() or not (ROOT / name).exists() else ROOT / name


def main(arguments: Sequence[str]) -> int:
    """Run, and return the exit code: 0, 2 for what the user can mend, 130 when interrupted."""
    if any(argument in ("-h", "--help", "help") for argument in arguments):
        print(f"{__doc__}\n{SampleConfig.__doc__}\nDefaults:\n\n{to_yaml(SampleConfig)}")
        return 0
    started = time.monotonic()
    try:
        job = prepare(arguments)
    except torch.OutOfMemoryError:
        return _told("out of GPU memory while loading the weights; try precision=bf16 or device=cpu", 2)
    except (ValueError, OSError) as error:
        return _told(str(error), 2)
    except KeyboardInterrupt:
        return _told("interrupted; nothing was written", 130)
    print("\n".join(job.introduction()), flush=True)
    try:
        reconstruct_cases(job)
    except torch.OutOfMemoryError:
        return _told(f"out of GPU memory; try batch_size={max(1, job.batch_size // 2)}", 2)
    except (ValueError, OSError) as error:
        return _told(str(error), 2)
    except KeyboardInterrupt:
        return _told(f"interrupted; the faces so far are in {job.folder.path}; resume=true continues", 130)
    faces = f"{len(job.draws)} face{'s' * (len(job.draws) != 1)}"
    print(f"{faces} in {time.monotonic() - started:.1f} s: {job.folder.path}")
    print(f"Contact sheet: {job.folder.path / 'contact_sheet.png'}\n{NOTICE}")
    return 0


def _told(message: str, code: int) -> int:
    print(f"sample.py: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
