"""SPGD of sampling runs: its settings, the networks behind its energies, and the hook of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cldm.controlled import ControlledLatentDiffusion
from cldm.spgd import Spgd
from cldm.texture import TextureError
from data.cases import Case
from data.images import read_image
from data.landmarks import LandmarksError
from ldm.checkpoint import sha256
from muti_control.conditions.case_landmarks import (
    CaseLandmarks,
    ReadOffSkull,
    StoredLandmarks,
    given_landmarks,
    skull_reader,
    true_landmarks,
)
from muti_control.losses.decoding import decoder_layout
from muti_control.networks.guidance_decoder import load_guidance_decoder
from muti_control.networks.match import load_match, sexes
from muti_control.networks.patchgan import PatchGan
from muti_control.networks.pipnet.reader import LandmarkReader
from muti_control.sampling.config import SpgdConfig
from muti_control.sampling.energies import (
    ContainmentEnergy,
    DecodedEnergies,
    Energy,
    LandmarkEnergy,
    MatchEnergy,
    RealismEnergy,
    TextureEnergy,
    check_exemplar,
)

ENERGY_OF = {
    "face_landmark_weights": "landmarks",
    "discriminator": "realism",
    "exemplar": "texture",
    "match_weights": "match",
}


@dataclass(frozen=True)
class SpgdRun:
    """The settings of a run with the networks that they name.

    decode: latents to pictures, with gradient. energies: by name, each made from the cases and the skulls
    (B, 3, H, W) in [0, 1] of a batch. targets: of the landmarks. files: sha256 by setting.
    """

    cfg: SpgdConfig
    decode: Callable[[Tensor], Tensor]
    energies: Mapping[str, Callable[[Sequence[Case], Tensor], Energy]]
    targets: CaseLandmarks | None
    files: Mapping[str, str]

    @property
    def inputs(self) -> list[Path]:
        """Files that a run reads and must not overwrite."""
        points = list(self.targets.files.values()) if isinstance(self.targets, StoredLandmarks) else []
        return [*(Path(getattr(self.cfg, name)) for name in self.files), *points]

    def describe(self, case: Case | None = None) -> dict[str, Any]:
        """Return all settings that shape a picture, files by their sha256, for the records; the target is a case's."""
        settings = self.cfg.model_dump(exclude={"trace", "at_once", "recompute"})
        for name in ("face_landmark_weights", "discriminator", "exemplar", "match_weights", "decoder"):
            used = name in self.files
            settings[name] = {"file": Path(settings[name]).name, "sha256": self.files[name]} if used else None
        settings["target"] = self.target(case)
        return settings

    def target(self, case: Case | None = None) -> dict[str, str] | str | None:
        """Return the source of a case's target landmarks, for its record; without a case the setting."""
        if self.targets is None:
            return None
        choice = self.cfg.target
        if case is None:
            return choice if choice in ("auto", "true") else Path(choice).name
        return {"chosen": "file" if self.cfg.names_files else choice, **self.targets.describe(case)}

    def of(self, model: ControlledLatentDiffusion, cases: Sequence[Case], skulls: Tensor) -> Spgd:
        """Return the hook of one batch; skulls: (B, 3, H, W) in [0, 1]."""
        skulls, weights = skulls.to(model.device), self.cfg.weights
        terms = {name: (weights[name], energy(cases, skulls)) for name, energy in self.energies.items()}
        return Spgd(self.cfg, DecodedEnergies(self.decode, terms, self.cfg.at_once), self.cfg.trace)


def load_spgd(
    cfg: SpgdConfig,
    model: ControlledLatentDiffusion,
    cases: Sequence[Case],
    condition: CaseLandmarks | None,
    skull_landmarks: Path,
) -> SpgdRun | None:
    """Read and check every file that the settings name; None where they change nothing.

    Args:
        condition: source of the landmark branch's points, if the model has one. skull_landmarks: file of the network
            that reads landmarks off skulls.

    Raises:
        ValueError: a file that is missing or does not fit; the message says what to do.
    """
    if not cfg.acts:
        return None
    files: dict[str, str] = {}

    def file(key: str) -> Path:
        path = Path(getattr(cfg, key))
        if not path.is_file():
            raise ValueError(
                f"spgd.{key}: {path} is no file; give one, or spgd.{ENERGY_OF[key]}=0 leaves the energy out"
            )
        files[key] = sha256(path)
        return path

    energies: dict[str, Callable[[Sequence[Case], Tensor], Energy]] = {}
    targets = None
    if cfg.landmarks > 0:
        reader = LandmarkReader.load(file("face_landmark_weights"), model.device)
        if reader.role != "face":
            raise ValueError(
                f"spgd.face_landmark_weights: {cfg.face_landmark_weights} reads landmarks off a {reader.role}, "
                "expected a network for faces"
            )
        num_points = reader.net.cfg.num_landmarks
        points = targets = _targets(cfg.target, cases, condition, skull_landmarks, num_points, model)
        energies["landmarks"] = lambda cases, skulls: LandmarkEnergy(reader, points.of(cases, skulls))
    _check_skulls(cfg, cases, targets)
    if cfg.containment > 0:
        energies["containment"] = lambda cases, skulls: ContainmentEnergy(skulls)
    if cfg.realism > 0:
        discriminator = PatchGan.load(file("discriminator"), model.device)
        if discriminator.cfg.in_channels != 6:
            raise ValueError(
                f"spgd.discriminator: {cfg.discriminator} takes {discriminator.cfg.in_channels} channels, "
                "expected 6 (skull and face); the control stage with losses.gan writes one"
            )
        energies["realism"] = lambda cases, skulls: RealismEnergy(discriminator, skulls)
    if cfg.texture > 0:
        exemplar = _exemplar(file("exemplar"), model.cfg.image_size)
        energies["texture"] = lambda cases, skulls: TextureEnergy(exemplar.to(skulls).expand_as(skulls))
    if cfg.match > 0:
        net = load_match(file("match_weights"), model.device)
        energies["match"] = lambda cases, skulls: MatchEnergy(
            net, skulls, sexes([_sex(one) for one in cases])
        )
    if cfg.decoder is None:
        return SpgdRun(cfg, decoder_of(model, cfg.recompute), energies, targets, files)
    decoder = load_guidance_decoder(cfg.decoder, model)
    files["decoder"] = sha256(Path(cfg.decoder))
    return SpgdRun(cfg, decoder, energies, targets, files)


def _check_skulls(cfg: SpgdConfig, cases: Sequence[Case], targets: CaseLandmarks | None) -> None:
    """Raise ValueError for an energy that needs the skull of a case without one."""
    name = next((case.name for case in cases if case.skull_path is None), None)
    energies = [energy for energy in ("containment", "realism", "match") if cfg.weights[energy] > 0]
    energies += ["landmarks"] if isinstance(targets, ReadOffSkull) else []
    if name is not None and energies:
        remedy = " ".join(f"spgd.{energy}=0" for energy in energies)
        points = ", and spgd.target=PATH gives the landmarks" if "landmarks" in energies else ""
        raise ValueError(
            f"spgd: {name} has no skull, expected one for {', '.join(energies)}; {remedy} goes without{points}"
        )


def _sex(case: Case) -> str | None:
    """Return the sex of whom a face is drawn, None where it is unknown."""
    sex: str | None = case.attributes.sex if case.biometrics is None else case.biometrics.sex
    return sex


def _exemplar(path: Path, size: int) -> Tensor:
    """(3, size, size) in [0, 1]. Raises: ImageError, TextureError: it cannot be used."""
    picture = torch.from_numpy(read_image(path, size)[0]).permute(2, 0, 1)
    try:
        check_exemplar(picture)
    except TextureError as error:
        raise TextureError(f"spgd.exemplar: {path}: {error}") from error
    return picture


def _targets(
    choice: str,
    cases: Sequence[Case],
    condition: CaseLandmarks | None,
    skull_landmarks: Path,
    num_points: int,
    model: ControlledLatentDiffusion,
) -> CaseLandmarks:
    """Return the source of the target landmarks. Raises: ValueError."""
    if choice == "true":
        return true_landmarks(cases, num_points, "spgd.target=true")
    if choice != "auto":
        if not Path(choice).exists():
            near = get_close_matches(choice, ("auto", "true"), 1)
            hint = f"did you mean {near[0]}? Expected" if near else "expected"
            raise LandmarksError(
                f"spgd.target: there is no {choice}; {hint} auto (read off the skull), true (known of the true face, "
                "from the manifest), or a file of points in px of the skull picture or a folder of them"
            )
        return given_landmarks(Path(choice), cases, num_points, "spgd.target")
    branch = model.cfg.control.landmarks
    if condition is not None and branch is not None:
        if branch.num_points == num_points:
            return condition
        raise ValueError(
            f"spgd: the model's landmarks have {branch.num_points} points, the network for faces {num_points}; "
            "spgd.landmarks=0 leaves this energy out"
        )
    if not skull_landmarks.is_file():
        raise ValueError(
            f"spgd: no landmark network for skulls at {skull_landmarks}; landmark_weights=FILE gives one, "
            "spgd.target=PATH the points, and spgd.landmarks=0 leaves this energy out"
        )
    return skull_reader(skull_landmarks, num_points, model.device)


def decoder_of(model: ControlledLatentDiffusion, recompute: bool) -> Callable[[Tensor], Tensor]:
    """Latents (n, z, h, w) float32 -> pictures (n, 3, H, W) about [-1, 1], by the model's own decoder.

    It is copied where it lies as it decodes fastest but not as it is differentiated fastest: a face of the demo and its
    gradient take 0.19 s of the processor instead of 0.28 s, in bf16.
    """
    first_stage, layout = model.first_stage_model, decoder_layout(model.device)
    decoder = first_stage.decoder
    if not decoder.conv_in.weight.is_contiguous(memory_format=layout):
        decoder = deepcopy(decoder).to(memory_format=layout)
    decoder.recompute(recompute)

    def decode(z: Tensor) -> Tensor:
        latents = first_stage.post_quant_conv(z.to(model.dtype) / model.cfg.scale_factor)
        return decoder(latents.contiguous(memory_format=layout))

    return decode
