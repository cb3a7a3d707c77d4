"""How far a guidance can be driven before faces break: the share of sane ones at multiples of each mode's own scale.

    python -m benchmarks.sampling.spgd_stability weights=FILE skulls=cohort/split_data/valid.json num=32 \\
        scales='{plain: 0.02, spgd: 0.01}'

A face is sane if every value of it is finite, hardly any leaves the range of pictures before it is clipped, and dlib
finds a face in it. Beside it stands in how many finished pictures each energy is lower than in the unguided face of the
same skull and noise (a zero that stays one counts as lower). All modes draw the same skulls from the same noise;
unguided faces stand first. The clip of the step, which is part of guidance here, is guidance.clip; guidance.clip=1000
shows what happens without it.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.results_file import append_section, machine, table
from cldm.controlled import ControlledLatentDiffusion, load_model
from cldm.record import check_creatable, write_json
from cldm.sampling import SamplingConfig, reconstruct
from cldm.spgd import MODES
from data.cases import Case, Known, find_cases
from data.images import to_uint8, write_png
from ldm.config import parse_command_line
from ldm.device import choose_device, choose_precision
from muti_control.evaluation.judges.dlib_recogniser import NoFaceError, Recogniser, RecogniserConfig
from muti_control.sampling.draw import read_skulls
from muti_control.sampling.prepare import (
    DEMO_SKULLS,
    DEMO_WEIGHTS,
    SKULL_LANDMARKS,
    recommended_sampling,
    shipped,
    shipped_networks,
)
from muti_control.sampling.spgd import Guidance, GuidanceConfig, load_guidance

OUTSIDE, MANY = (
    1.5,
    0.01,
)  # a value beyond +-1.5, where pictures lie in [-1, 1]; sane faces have fewer than 1 % of these


@dataclass
class StabilityConfig:
    """What is tried.

    weights, skulls: as for sample.py; num: skulls at most, spread evenly. scales: by mode, what ``times`` multiplies.
    guidance: the other settings, of all modes. sampling_steps: 0 takes what the weights recommend.
    shown: faces of each on the sheet. out: folder. append: add the table to benchmarks/RESULTS.md.
    """

    weights: str = DEMO_WEIGHTS
    skulls: str = DEMO_SKULLS
    num: int = 32
    scales: dict[str, float] = field(default_factory=lambda: {"plain": 0.02, "spgd": 0.02})
    times: list[float] = field(default_factory=lambda: [1.0, 3.0, 10.0, 30.0])
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    sampling_steps: int = 0
    shown: int = 4
    seed: int = 0
    batch_size: int = 8
    device: str = "auto"
    precision: str = "auto"
    out: str = "benchmarks/results/guidance_stability"
    append: bool = False

    def validate(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        for name in ("num", "batch_size", "shown"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        for mode, scale in self.scales.items():
            if mode not in MODES[1:] or not 0 < scale < float("inf"):
                raise ValueError(
                    f"scales: got {mode}: {scale}, expected positive numbers by {', '.join(MODES[1:])}"
                )
        if not self.scales or not self.times or min(self.times) <= 0:
            raise ValueError(f"scales, times: got {self.scales} and {self.times}, expected positive numbers")
        self.guidance.validate()


@dataclass(frozen=True)
class Drawn:
    """Faces of all skulls. pixels: (N, H, W, 3) uint8; finite, in_range: (N,) bool; energies: (N,) each, by name."""

    pixels: NDArray[np.uint8]
    finite: NDArray[np.bool_]
    in_range: NDArray[np.bool_]
    energies: dict[str, NDArray[np.float64]]


def draw(
    model: ControlledLatentDiffusion,
    cases: Sequence[Case],
    sampling: SamplingConfig,
    guidance: Guidance | None,
    cfg: StabilityConfig,
    judge: Guidance,
) -> Drawn:
    """The face of every case, what was decoded before it was clipped, and the energies as ``judge`` has them."""
    unclipped: list[torch.Tensor] = []

    def watch(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
        if not torch.is_grad_enabled():  # with gradient it is guidance that looks
            unclipped.append(output.float().cpu())

    pixels, values = [], []
    energies: list[dict[str, torch.Tensor]] = []
    handle = model.first_stage_model.decoder.register_forward_hook(watch)
    try:
        for first in range(0, len(cases), cfg.batch_size):
            part = cases[first : first + cfg.batch_size]
            skulls = read_skulls([(case, 0, 0) for case in part], model.cfg.image_size)
            guide = None if guidance is None else guidance.of(model, part, skulls)
            seeds = range(cfg.seed + first, cfg.seed + first + len(part))
            faces = reconstruct(model, skulls, [c.prompt for c in part], seeds, sampling, guide=guide)
            pixels += [to_uint8(face) for face in faces.nan_to_num().permute(0, 2, 3, 1).numpy()]
            values += list(torch.cat(unclipped))
            unclipped.clear()
            seen = judge.of(model, part, skulls).energy.of_pictures(
                faces.to(model.device).nan_to_num() * 2 - 1
            )
            energies.append({name: found.double().cpu() for name, found in seen.items()})
    finally:
        handle.remove()
    finite = np.array([bool(v.isfinite().all()) for v in values])
    in_range = np.array([float((v.abs() > OUTSIDE).float().mean()) < MANY for v in values])
    by_name = {name: torch.cat([part[name] for part in energies]).numpy() for name in energies[0]}
    return Drawn(np.stack(pixels), finite, in_range & finite, by_name)


def share_lower(after: NDArray[np.float64], before: NDArray[np.float64]) -> float:
    """The share of samples whose energy went down, or was 0 and still is; both (N,)."""
    return float(((after < before) | ((before == 0) & (after == 0))).mean())


def found_faces(pixels: NDArray[np.uint8], recogniser: Recogniser) -> NDArray[np.bool_]:
    """Whether dlib finds a face in each of (N, H, W, 3): (N,)."""

    def sees(picture: NDArray[np.uint8]) -> bool:
        try:
            recogniser.look(picture)
        except NoFaceError:
            return False
        return True

    return np.array([sees(picture) for picture in pixels])


def shares_of(drawn: Drawn, unguided: Drawn, faces: NDArray[np.bool_]) -> list[str]:
    """A row of the table: in per cent; faces: (N,) in which dlib found one."""
    shares = [float(s.mean()) for s in (drawn.finite, drawn.in_range, faces, drawn.in_range & faces)]
    lower = [share_lower(values, unguided.energies[name]) for name, values in drawn.energies.items()]
    told = [f"{100 * share:.1f} %" for share in (*shares, *lower)]
    return told if drawn is not unguided else [*told[: len(shares)], *[""] * len(lower)]


def main(argv: Sequence[str]) -> int:
    """Exit status: 0, or 2 for what the user can mend."""
    if any(argument in ("-h", "--help") for argument in argv):
        print(f"{__doc__}\n{StabilityConfig.__doc__}")
        return 0
    try:
        cfg = parse_command_line(StabilityConfig, argv)
        cfg.validate()
        check_creatable(Path(cfg.out))
        device = choose_device(cfg.device)
        cases = find_cases(shipped(cfg.skulls), Known(), limit=cfg.num)
        model, metadata = load_model(
            shipped(cfg.weights), None, device, choose_precision(cfg.precision, device)
        )
        sampling = SamplingConfig(**recommended_sampling(metadata, model.cfg.unet.num_control_outputs))
        sampling = replace(sampling, steps=cfg.sampling_steps) if cfg.sampling_steps else sampling
        recogniser = Recogniser(RecogniserConfig(detect=True))
        ways = [("off", 0.0, 0.0)]
        ways += [(mode, scale, x) for mode, scale in cfg.scales.items() for x in cfg.times]
        base = shipped_networks(cfg.guidance)
        prepared = [
            load_guidance(
                replace(base, mode=mode, scale=scale * x), model, cases, None, shipped(SKULL_LANDMARKS)
            )
            for mode, scale, x in ways
        ]
    except (ValueError, OSError) as error:
        print(f"benchmarks.sampling.spgd_stability: {error}", file=sys.stderr)
        return 2
    judge = next(guidance for guidance in prepared if guidance is not None)
    lines, sheet, unguided = [], [], None
    for (mode, scale, x), guidance in zip(tqdm(ways, file=sys.stderr), prepared, strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of gradients left out: they are what is counted
            drawn = draw(model, cases, sampling, guidance, cfg, judge)
        unguided = unguided or drawn
        name = "unguided" if mode == "off" else f"{mode}, {x:g} x {scale:g}"
        lines.append([name, *shares_of(drawn, unguided, found_faces(drawn.pixels, recogniser))])
        sheet.append(np.concatenate(list(drawn.pixels[: cfg.shown]), axis=1))
    text = f"{len(cases)} skulls, {sampling.steps} steps, clip {cfg.guidance.clip:g}:\n\n"
    header = ["guidance", "finite", "in range", "a face to dlib", "sane"]
    text += table([*header, *(f"{energy} lower" for energy in drawn.energies)], lines)
    print(f"{machine(device)}\n\n{text}")
    folder = Path(cfg.out)
    folder.mkdir(parents=True, exist_ok=True)
    write_png(folder / "faces.png", np.concatenate(sheet))
    write_json(folder / "stability.json", {"arguments": list(argv), "table": lines})
    if cfg.append:
        command = " ".join(["python -m benchmarks.sampling.spgd_stability", *argv])
        append_section("How far guidance can be driven", command, device, text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
