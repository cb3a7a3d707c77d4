"""Settings of a sampling run, and their check: every mistake is reported before anything is written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from cldm.config import SamplingConfig
from cldm.controlled import ControlledLatentDiffusion, architecture_of, load_model
from cldm.spacing import spaced_timesteps
from data.biometrics import Attributes
from data.cases import MANIFEST_SUFFIXES, NO_SKULL, Case, attributes_of, check_pictures, find_cases
from data.ct.as_skull import draw_scan_skull, holds_scan, is_scan
from data.ct.config import CtConfig
from data.files import picture_sha256
from data.images import png_of
from ldm.checkpoint import read_state_dict, sha256
from ldm.compiled import check_compiler, compile_blocks
from ldm.device import choose_device, choose_precision
from muti_control.case.calibration import Calibration, Population, load_calibration
from muti_control.case.repeat import repeated_settings
from muti_control.case.runs import claim_case
from muti_control.conditions.case_landmarks import StoredLandmarks, choose_landmarks, lie_in_prepared
from muti_control.conditions.case_textures import choose_textures
from muti_control.distributed import Team, find_team
from muti_control.networks.pipnet.reader import LandmarkReader
from muti_control.record import check_overwriting, environment, latest_folder, unused_folder
from muti_control.sampling.assumed import uniform_population
from muti_control.sampling.checking import check_cases, uncalibrated
from muti_control.sampling.config import SKULL_LANDMARKS, SampleConfig, SpgdConfig
from muti_control.sampling.job import Job, RunFolder
from muti_control.sampling.record import resumed
from muti_control.sampling.request import DEMO_SKULLS, check_ethnicities, shipped
from muti_control.sampling.spgd import load_spgd
from settings.messages import ConfigError
from settings.parsing import parse_json
from settings.reading import parse_command_line, to_yaml

ONE_SKULL = 8  # faces, where there is one skull and nobody says how many
SCAN = "scan"  # the name of a scan's case: that of its file may name a patient
DEMO_LIMIT = 4  # of the shipped skulls
_MOST_FACES = 10**6


def prepare(arguments: Sequence[str]) -> Job:
    """Return the checked run that the command line of ``sample.py`` asks for.

    Raises:
        ValueError: a setting or an input that cannot be used; the message says what to do.
    """
    source = "record" if any(argument.startswith("repeat=") for argument in arguments) else "weights"
    cfg = parse_command_line(
        SampleConfig,
        arguments,
        base=_recommended,
        base_name=f"settings in the {source}",
        file_key="skull",
    )
    return make_job(cfg, [Path(argument) for argument in arguments if "=" not in argument])


@dataclass(frozen=True)
class Networks:
    """A checkpoint that was loaded, and what is known of it.

    weights: file name, sha256 and step. population: what is possible where an attribute of a person is unknown.
    calibration: of ``muti_control.case.calibration``; None: these weights have none.
    """

    model: ControlledLatentDiffusion
    metadata: Mapping[str, str]
    dtype: torch.dtype
    weights: Mapping[str, str]
    population: Population
    calibration: Calibration | None

    @classmethod
    def load(cls, cfg: SampleConfig, device: torch.device, dtype: torch.dtype) -> Networks:
        """Load what the settings name. Raises: ValueError, in words for the user."""
        path = shipped(cfg.weights)
        model, metadata = load_model(path, cfg.model, device, dtype)
        if cfg.compile:
            compile_blocks(model)
        digest = sha256(path)
        calibration = load_calibration(path, digest)
        if calibration is not None:
            population = calibration.population
        else:
            skulls = shipped(cfg.landmark_weights)
            uses = cfg.landmarks == "auto" and model.has_trained("landmarks") and skulls.is_file()
            population = uniform_population(
                (uses and LandmarkReader.load(skulls).net.cfg.ethnicities) or ["Asian"]
            )
        return cls(
            model,
            metadata,
            dtype,
            {"file": path.name, "sha256": digest, "step": metadata.get("step", "unknown")},
            population,
            calibration,
        )


def make_job(cfg: SampleConfig, config_files: Sequence[Path] = ()) -> Job:
    """Load and check everything that the settings name; nothing is written yet.

    config_files: further inputs, which the run must not overwrite.

    Raises:
        ValueError: an input that cannot be used; the message says what to do.
    """
    device = choose_device(cfg.device)
    team = find_team(cfg.devices, device)
    device = team.device(device)
    dtype = choose_precision(cfg.precision, device)
    if cfg.compile:
        check_compiler()
    skull = shipped(DEMO_SKULLS) if cfg.skull is None else Path(cfg.skull)
    limit = DEMO_LIMIT if cfg.skull is None and cfg.limit is None else cfg.limit
    scanned = is_scan(skull)
    cases = [] if scanned else find_cases(skull, cfg.person, cfg.images_dir, limit)
    folder = _folder(cfg, Path(SCAN) if scanned else skull)
    earlier = claim_case(folder, cfg.overwrite, cfg.resume) if team.is_first else None
    networks = Networks.load(cfg, device, dtype)
    if scanned:
        drawn_with = cfg.ct.drawn_with(networks.model.cfg.image_size)
        cases = [draw_scan_case(skull, attributes_of(cfg.person), drawn_with)]
    job = job_of(cfg, networks, cases, folder, team)
    if not scanned and holds_scan(skull):
        left_out = (
            f"{skull}: its pictures are drawn; the scan that lies there too is not: give a folder of its own"
        )
        job = replace(job, remarks=[left_out, *job.remarks])
    if not team.is_first:
        return job
    if skull.is_file() and skull.suffix.lower() in MANIFEST_SUFFIXES:
        job = replace(job, manifest={"path": str(skull), "sha256": sha256(skull)})
    if earlier is not None:
        job = replace(job, folder=resumed(job, earlier) if cfg.resume else RunFolder(folder, earlier.files))
    exemplars = () if job.textures is None else (job.textures.path(case) for case in cases)
    inputs = [
        *([skull] if skull.exists() else []),
        shipped(cfg.weights),
        *([] if cfg.model is None else [Path(cfg.model)]),
        *config_files,
        *job.hashes,
        *(job.landmarks.files.values() if isinstance(job.landmarks, StoredLandmarks) else []),
        *([] if job.spgd is None else job.spgd.inputs),
        *(path for path in exemplars if path is not None),
    ]
    retained = set[Path]() if earlier is None else {*earlier.files} - {*job.folder.outdated}
    written = [folder / file for file in job.files if folder / file not in retained]
    check_overwriting(job.folder.outdated, written, inputs)
    return job


def draw_scan_case(path: Path, attributes: Attributes, config: CtConfig) -> Case:
    """Return the case of a scan, drawn in memory. Raises: ValueError: it is refused, or a package is missing."""
    try:
        drawn = draw_scan_skull(path, config)
    except ValueError as error:
        raise ValueError(f"skull: {error}") from error
    own = f"it is called {SCAN}, as its own name may be a patient's"
    return Case(
        SCAN,
        Path(f"{SCAN}.png"),
        attributes.biometrics,
        attributes=attributes,
        picture=png_of(drawn.skull),
        mm_per_px=drawn.mm_per_px,
        scan=drawn.record,
        remarks=[f"the scan was drawn, {drawn.mm_per_px:.3f} mm per px; {own}", *drawn.findings],
        skin=png_of(drawn.face),
    )


def job_of(
    cfg: SampleConfig, networks: Networks, cases: Sequence[Case], folder: Path, team: Team | None = None
) -> Job:
    """Return the checked run that draws some cases: of ``sample.py``, of the Python interface, of any program.

    Raises:
        ValueError: an input that cannot be used; the message says what to do.
    """
    model, team = networks.model, team or Team()
    if any(case.scan is not None for case in cases):  # its path may name a patient
        cfg = cfg.with_(skull=str(cases[0].skull_path), mm_per_px=cases[0].mm_per_px)
    cases = [replace(case, missing=cfg.missing, mm_per_px=case.mm_per_px or cfg.mm_per_px) for case in cases]
    cfg = cfg.with_(num_samples=cfg.num_samples or (ONE_SKULL if len(cases) == 1 else 1))
    if len(cases) * (cfg.num_samples or 1) > _MOST_FACES:
        raise ConfigError(
            f"num_samples: got {cfg.num_samples} for {len(cases)} skulls, expected at most {_MOST_FACES} faces in a run"
        )
    _check_steps(cfg, model)
    check_ethnicities(cases, networks.population.ethnicities)
    picture_notes = check_pictures(cases, model.cfg.image_size) if team.is_first else {}

    def may_prepare(case: Case) -> bool:  # points in px of a picture must not lie beside it
        if cfg.prepare == "off" or cfg.spgd.fixes_points:
            return False
        return cfg.landmarks in ("auto", "none") or lie_in_prepared(Path(cfg.landmarks), case)

    cases, checks = check_cases(cases, model.cfg.image_size, networks.calibration, may_prepare, cfg.force)
    skull_landmarks = shipped(cfg.landmark_weights)
    if cfg.landmark_weights != SKULL_LANDMARKS and not skull_landmarks.is_file():
        raise ValueError(
            f"landmark_weights: {skull_landmarks} not found; leave the setting out for the shipped network"
        )
    landmarks, landmark_note = choose_landmarks(cfg.landmarks, skull_landmarks, cases, model)
    spgd = load_spgd(with_shipped_networks(cfg.spgd), model, cases, landmarks, skull_landmarks)
    textures, texture_note = choose_textures(cfg.texture, cases, model)
    face_reader, face_landmarks = None, shipped(cfg.spgd.face_landmark_weights)
    if (cfg.num_samples or 1) > 1 and face_landmarks.is_file():
        face_reader = LandmarkReader.load(face_landmarks, model.device)
    remarks = [note for case in cases for note in case.remarks]
    remarks += [note for note in (landmark_note, texture_note) if note is not None]
    job = Job(
        model=model,
        cases=cases,
        notes={},
        hashes={},
        checks=checks,
        seeds=range(cfg.seed, cfg.seed + (cfg.num_samples or 1)),
        sampling=cfg.sampling,
        batch_size=cfg.batch_size,
        max_sheets=cfg.max_sheets,
        folder=RunFolder(folder),
        weights=networks.weights,
        environment=environment(model.device, networks.dtype) | {"processes": team.size},
        config=to_yaml(cfg),
        landmarks=landmarks,
        spgd=spgd,
        textures=textures,
        remarks=[*remarks, *_notes(cfg, networks, cases, bool(checks))],
        population=networks.population,
        outputs=True,
        face_reader=face_reader,
        calibration=networks.calibration,
        grid=cfg.grid.split(",") if cfg.grid else (),
        team=team,
    )
    if not team.is_first:
        return job
    return replace(job, notes=picture_notes, hashes=hashes_of(cases))


def hashes_of(cases: Sequence[Case]) -> dict[Path, str]:
    """Return the sha256 of every skull and true face, by path."""
    contents: dict[Path | None, bytes | None] = {case.face_path: None for case in cases}
    contents |= {case.skull_path: case.picture for case in cases}
    return {
        path: picture_sha256(path) if own is None else hashlib.sha256(own).hexdigest()
        for path, own in contents.items()
        if path is not None
    }


def _recommended(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sampler's settings that the weights of a run recommend; the other settings overrule them."""
    if settings["repeat"] is not None:
        return repeated_settings(str(settings["repeat"]))
    path, config = shipped(str(settings["weights"])), settings["model"]
    _, metadata = read_state_dict(path)
    outputs = architecture_of(path, metadata, config).unet.num_control_outputs
    return {"sampling": recommended_sampling(metadata, outputs)}


def _check_steps(cfg: SampleConfig, model: ControlledLatentDiffusion) -> None:
    """Raise ValueError for sampler settings that the model's network or schedule does not have."""
    sampling = cfg.sampling
    sampling.scales_for(model.cfg.unet.num_control_outputs)
    try:
        spaced_timesteps(
            sampling.steps, sampling.spacing, model.cfg.schedule.num_timesteps, model.alphas_cumprod
        )
    except ValueError as error:
        raise ValueError(f"sampling.{error}") from error
    cfg.spgd.guided_steps(sampling.steps)


class _Skull(BaseModel):
    dropout: float = 0


class _Conditions(BaseModel):
    skull: _Skull = _Skull()


def _notes(cfg: SampleConfig, networks: Networks, cases: Sequence[Case], checked: bool) -> Iterator[str]:
    """Yield what the user should know of the weights, and of settings that change nothing."""
    if untrained := ", ".join(sorted(networks.model.untrained_branches)):
        yield f"these weights were never trained on {untrained}: these do not change the faces"
    if any(case.skull_path is None for case in cases):
        text = networks.metadata.get("conditions", "{}")
        trained = parse_json(text, "weights: 'conditions'", _Conditions).skull.dropout > 0
        lacking = "no skull, and these weights were not trained to do without (skull.dropout): expect little"
        yield "no skull: what else is given draws the face" if trained else lacking
    if cfg.spgd.idle is not None:
        yield cfg.spgd.idle
    if networks.calibration is None and any(not case.biometrics and case.attributes.known for case in cases):
        yield (
            "these weights have no calibration file: all that is unknown is taken as equally frequent, among adults, "
            f"ethnicity {' or '.join(networks.population.ethnicities)}"
        )
    if checked and (note := uncalibrated(networks.calibration, cfg.weights)):
        yield note


def _folder(cfg: SampleConfig, skull: Path) -> Path:
    """Return the folder to write. By default it is called after the skull, for ``.`` and ``..`` too."""
    if cfg.out is not None:
        return Path(cfg.out)
    if cfg.repeat is not None:
        run = Path(cfg.repeat).absolute()
        run = run if run.is_dir() else run.parent
        return unused_folder(run.with_name(f"{run.name}-repeat"))
    whole = Path(os.path.abspath(skull))  # not resolved: a link keeps the name the user knows
    if str(skull) == NO_SKULL and not whole.exists():
        whole = Path("no_skull")
    name = ((whole.name if whole.is_dir() else whole.stem) or "skulls") if cfg.skull is not None else "demo"
    return (latest_folder if cfg.resume else unused_folder)(Path("results") / name)


def recommended_sampling(metadata: Mapping[str, str], num_control_outputs: int) -> dict[str, Any]:
    """Return the sampler settings that a checkpoint recommends (JSON under ``sampling`` in its metadata).

    Without any: SD1.5's, but with all control scales 1 if the network does not have SD1.5's thirteen residuals.

    Raises:
        ValueError: the entry is no JSON object.
    """
    if "sampling" not in metadata:
        standard = len(SamplingConfig().control_scales) == num_control_outputs
        return {} if standard else {"control_scales": [1.0]}
    entry = "weights: their metadata entry 'sampling'"
    return dict(parse_json(metadata["sampling"], entry, dict[str, Any]))


def with_shipped_networks(cfg: SpgdConfig) -> SpgdConfig:
    """Return the settings with the full paths of the files that come with this program."""
    names = ("face_landmark_weights", "match_weights")
    return cfg.with_(**{name: str(shipped(getattr(cfg, name))) for name in names})
