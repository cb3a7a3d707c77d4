"""Does the face follow its landmarks, and does an edit of the body mass still act while the landmark branch is on?

    python -m benchmarks.model.landmark_edits weights=MODEL cohort=cohort [key=value ...]

Test subjects, the same seed throughout, landmarks read off the skull. Three questions: the chin's landmarks moved down
(how far does the drawn chin go, and does the rest stay?), body mass raised with the landmarks read anew for it (how
much wider is the jaw?), and the same without landmarks. Judged by dlib's own 68 points, which are in no loss and no
condition; intervals are bootstrapped over subjects.

With guidance (guidance.mode=spgd guidance.scale=0.03), the first two are asked of guided faces too, whose energy wants
the very landmarks that the branch is shown.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import MISSING
from torch import Tensor

from benchmarks.model.landmarks import interval
from cldm.branches import Landmarks
from cldm.controlled import ControlledLatentDiffusion, load_model
from cldm.record import write_json
from cldm.sampling import SamplingConfig, reconstruct
from data.biometrics import BODY_MASS_WORDS
from data.cases import Case, cases_of, read_skull
from data.manifest import read_manifest
from ldm.checkpoint import git_revision, sha256
from ldm.config import ConfigError, parse_command_line
from ldm.device import choose_device, choose_precision
from muti_control.conditions.case_landmarks import CaseLandmarks, choose_landmarks
from muti_control.evaluation.judges.dlib_recogniser import Recogniser
from muti_control.sampling.prepare import recommended_sampling, shipped_networks
from muti_control.sampling.spgd import Guidance, GuidanceConfig, load_guidance
from muti_control.training.pictures import write_grid

Floats = NDArray[np.floating]
CHIN, JAW = 8, (4, 12)  # of dlib's points: the tip of the chin, and the sides of the jaw
EYES = range(36, 48)
NEAR = 0.12  # of the picture's side: points within this distance of the chin's tip move with it


@dataclass
class EditsConfig:
    """What is measured.

    weights: a model with a landmark branch. landmark_weights: the network that reads skulls.
    cohort: folder of `python -m data.cohort`. num: test subjects whose body mass leaves room for the edit.
    down: px (of 256) that the chin's landmarks are moved. levels: of body mass that are added.
    out: OUT.json and OUT.png. device, precision, batch_size: as for sample.py.
    """

    weights: str = MISSING
    landmark_weights: str = "models/demo/pipnet_skull.safetensors"
    cohort: str = "cohort"
    num: int = 32
    down: float = 6.0
    levels: int = 2
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    seed: int = 0
    batch_size: int = 16
    resamples: int = 10_000
    device: str = "auto"
    precision: str = "auto"
    out: str = "benchmarks/results/landmark_edits"

    def check(self) -> None:
        """Raises: ConfigError naming the setting."""
        for name in ("num", "batch_size", "levels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if self.levels >= len(BODY_MASS_WORDS):
            raise ConfigError(f"levels: got {self.levels}, expected 1 to {len(BODY_MASS_WORDS) - 1}")
        self.guidance.validate()


def chin_moved(landmarks: Landmarks, down: float) -> Landmarks:
    """The same with the lowest point of each face moved down by ``down``, a fraction, and those around it less."""
    points = landmarks.points.clone()
    tips = points[torch.arange(len(points)), points[..., 1].argmax(1)]  # (B, 2)
    away = (points - tips[:, None]).norm(dim=-1)  # (B, N)
    share = 0.5 + 0.5 * (away / NEAR).clamp(max=1).mul(torch.pi).cos()
    points[..., 1] += down * share
    return replace(landmarks, points=points)


def heavier(cases: Sequence[Case], levels: int) -> list[Case]:
    """The same people, that many levels of body mass up."""
    return [
        replace(case, biometrics=replace(case.biometrics, body_mass=case.biometrics.body_mass + levels))
        for case in cases
        if case.biometrics is not None
    ]


@dataclass(frozen=True)
class Wanted:
    """A source of landmarks that has been asked already."""

    landmarks: Landmarks

    def of(self, cases: Sequence[Case], skulls: Tensor) -> Landmarks:
        return self.landmarks

    def describe(self, case: Case) -> dict[str, str]:
        return {"source": "given"}


class Drawer:
    """Draws cases with the landmarks it is given, the same seed for each case whatever is asked."""

    def __init__(self, model: ControlledLatentDiffusion, sampling: SamplingConfig, cfg: EditsConfig) -> None:
        self.model, self.sampling, self.cfg = model, sampling, cfg

    def __call__(
        self,
        cases: Sequence[Case],
        skulls: Tensor,
        landmarks: Landmarks | None,
        guidance: Guidance | None = None,
    ) -> Tensor:
        """Faces (B, 3, H, W) in [0, 1]; guidance pulls them to the landmarks."""
        found, size = [], self.cfg.batch_size
        for start in range(0, len(cases), size):
            rows = slice(start, start + size)
            shown = guide = None
            if landmarks is not None:
                shown = Landmarks(landmarks.points[rows], landmarks.confidence[rows], landmarks.present[rows])
            if guidance is not None and shown is not None:
                guide = replace(guidance, targets=Wanted(shown)).of(self.model, cases[rows], skulls[rows])
            prompts = [case.prompt for case in cases[rows]]
            seeds = [self.cfg.seed + start + i for i in range(len(prompts))]
            found.append(
                reconstruct(
                    self.model, skulls[rows], prompts, seeds, self.sampling, landmarks=shown, guide=guide
                )
            )
            print(f"drew {min(start + size, len(cases))} of {len(cases)}", flush=True)
        return torch.cat(found)


def seen_by_dlib(faces: Tensor) -> Floats:
    """dlib's points (B, 68, 2) in px of 256."""
    pictures = (faces * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    judge = Recogniser()
    return np.stack([judge.look(picture)[1] for picture in pictures]) * (256 / faces.shape[-1])


def changes(before: Floats, after: Floats) -> dict[str, Floats]:
    """What an edit moved, in px of 256, one value per subject."""
    jaw = [np.linalg.norm(p[:, JAW[1]] - p[:, JAW[0]], axis=-1) for p in (before, after)]
    eyes = [p[:, EYES] for p in (before, after)]
    return {
        "chin, down": after[:, CHIN, 1] - before[:, CHIN, 1],
        "jaw, wider": jaw[1] - jaw[0],
        "eyes, any way": np.linalg.norm(eyes[1] - eyes[0], axis=-1).mean(1),
    }


def guidance_of(
    cfg: EditsConfig, model: ControlledLatentDiffusion, cases: Sequence[Case], source: CaseLandmarks
) -> Guidance | None:
    """Guidance of the settings; its targets are those that a batch is shown. Raises: ValueError."""
    return load_guidance(shipped_networks(cfg.guidance), model, cases, source, Path(cfg.landmark_weights))


def draw_all(
    cfg: EditsConfig,
    draw: Drawer,
    cases: Sequence[Case],
    more: Sequence[Case],
    skulls: Tensor,
    source: CaseLandmarks,
    guidance: Guidance | None,
) -> dict[str, Tensor]:
    """Faces (N, 3, H, W) by what they show; more: the same people with more body mass."""
    read, anew = source.of(cases, skulls), source.of(more, skulls)
    moved = chin_moved(read, cfg.down / 256)
    faces = {
        "as read": draw(cases, skulls, read),
        "chin moved": draw(cases, skulls, moved),
        "heavier": draw(more, skulls, anew),
        "no landmarks": draw(cases, skulls, None),
        "heavier, no landmarks": draw(more, skulls, None),
    }
    if guidance is not None:
        faces |= {
            "as read, guided": draw(cases, skulls, read, guidance),
            "chin moved, guided": draw(cases, skulls, moved, guidance),
            "heavier, guided": draw(more, skulls, anew, guidance),
        }
    return faces


def comparisons(cfg: EditsConfig, guided: bool) -> dict[str, tuple[str, str]]:
    """Which faces of :func:`draw_all` tell of an edit, before and after it."""
    chin, mass = f"chin's landmarks {cfg.down:g} px down", f"body mass +{cfg.levels}"
    found = {
        chin: ("as read", "chin moved"),
        f"{mass}, landmarks read anew": ("as read", "heavier"),
        f"{mass}, no landmarks": ("no landmarks", "heavier, no landmarks"),
    }
    if guided:
        found[f"{chin}, guided"] = ("as read, guided", "chin moved, guided")
        found[f"{mass}, landmarks read anew, guided"] = ("as read, guided", "heavier, guided")
    return found


def measure(cfg: EditsConfig) -> dict[str, Any]:
    """Draw, judge and write the results. Raises: ValueError for what cannot be measured."""
    cfg.check()
    device = choose_device(cfg.device)
    model, metadata = load_model(cfg.weights, device=device, dtype=choose_precision(cfg.precision, device))
    sampling = SamplingConfig(**recommended_sampling(metadata, model.cfg.unet.num_control_outputs))
    records = read_manifest(Path(cfg.cohort) / "split_data" / "test.json")
    room = len(BODY_MASS_WORDS) - cfg.levels
    cases = cases_of([r for r in records if r.biometrics.body_mass <= room])[: cfg.num]
    source, lacking = choose_landmarks("auto", Path(cfg.landmark_weights), cases, model)
    if source is None:
        raise ConfigError(lacking or f"weights: {cfg.weights} has no landmark branch")
    guidance = guidance_of(cfg, model, cases, source)
    side = model.cfg.image_size
    skulls = torch.stack([torch.from_numpy(read_skull(c, side)).permute(2, 0, 1) for c in cases])
    more, draw = heavier(cases, cfg.levels), Drawer(model, sampling, cfg)
    faces = draw_all(cfg, draw, cases, more, skulls, source, guidance)
    points = {name: seen_by_dlib(drawn) for name, drawn in faces.items()}
    results = {}
    for name, (before, after) in comparisons(cfg, guidance is not None).items():
        results[name] = {
            what: {"mean": float(v.mean()), "interval": interval(v, cfg.resamples, cfg.seed)}
            for what, v in changes(points[before], points[after]).items()
        }
    shown = [skulls[:8], *(drawn[:8] for drawn in faces.values())]
    write_grid(Path(f"{cfg.out}.png"), shown)
    return {
        "config": asdict(cfg),
        "git": git_revision(),
        "weights": sha256(Path(cfg.weights)),
        "subjects": len(cases),
        "rows of the picture": ["skull", *faces],
        "px of 256": results,
    }


def main(arguments: Sequence[str]) -> int:
    """The command. Returns the exit code."""
    if not arguments or any(word in ("-h", "--help") for word in arguments):
        print(f"{__doc__}\n{EditsConfig.__doc__}")
        return 0
    try:
        cfg = parse_command_line(EditsConfig, arguments)
        Path(cfg.out).parent.mkdir(parents=True, exist_ok=True)
        found = measure(cfg)
    except (ValueError, OSError) as error:
        print(f"landmark_edits: {error}", file=sys.stderr)
        return 2
    write_json(Path(f"{cfg.out}.json"), found)
    for edit, moved in found["px of 256"].items():
        print(edit)
        for what, value in moved.items():
            low, high = value["interval"]
            print(f"  {what:15s} {value['mean']:6.2f} px [{low:.2f}, {high:.2f}]")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
