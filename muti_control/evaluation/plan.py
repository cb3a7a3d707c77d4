"""An evaluation before it begins: settings, people, weights and judges, checked as a whole."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cldm.config import SamplingConfig
from data.cases import Case
from data.files import picture_sha256
from ldm.checkpoint import sha256
from ldm.device import choose_device, choose_precision
from muti_control.distributed import Team, find_team
from muti_control.evaluation.judges.onnx_recogniser import onnx_judge
from muti_control.evaluation.judges.photo_networks import Backbone, Lpips
from muti_control.evaluation.judges.recognisers import EditReader, Eye, Judge, edit_readers, judges_of
from muti_control.evaluation.methods.controls import Donors, shuffled_donors, with_skull_of
from muti_control.evaluation.methods.elsewhere import find_faces
from muti_control.evaluation.methods.sampled import ShownLandmarks, Weights
from muti_control.evaluation.methods.translated import Translator
from muti_control.evaluation.protocol.config import EvaluateConfig
from muti_control.evaluation.protocol.inputs import InputError, Inputs, read_inputs
from muti_control.evaluation.protocol.registry import (
    METHODS,
    OF_PIX2PIX,
    OF_THE_MODEL,
    OF_TRAINING,
    MethodInfo,
)
from muti_control.evaluation.protocol.run_folder import OPERATION
from muti_control.evaluation.report.page import check_installed
from muti_control.evaluation.request import check_request, with_preset
from muti_control.evaluation.results.results import HashedFile, NotRun
from muti_control.evaluation.results.summary import Resampling
from muti_control.sampling.config import SpgdConfig
from muti_control.sampling.prepare import with_shipped_networks
from muti_control.sampling.request import shipped
from settings.reading import parse_command_line

PRESETS = ("quick", "full")
_SUBJECT = {"weights", "models", "pix2pix", "faces", "mapping", "data", "onnx", "lpips", "lpips_heads", "kid"}
# settings that a preset leaves open: what is evaluated, and where it runs
_LEAVES_PRESET = {*_SUBJECT, *OPERATION, "precision"}


@dataclass(frozen=True)
class Plan:
    """The whole of an evaluation, checked before it begins.

    preset: quick, full or custom. command: what repeats the run.
    methods: in the order of the table; not_run: the others, with the reason.
    weights, sampling, guidance: by name of the model. landmarks: what models with a landmark branch are shown.
    pinned: models whose landmarks no edit of the person moves, so that these are not asked for edits.
    pix2pix: that baseline's network. elsewhere: the folder's pictures of every probe.
    readers: networks that edits are measured with, the best first. donors: who lends each probe a skull.
    """

    cfg: EvaluateConfig
    preset: str
    command: str
    inputs: Inputs
    methods: Sequence[MethodInfo]
    not_run: Sequence[NotRun]
    weights: Mapping[str, Weights]
    sampling: Mapping[str, SamplingConfig]
    guidance: Mapping[str, SpgdConfig]
    landmarks: ShownLandmarks
    pinned: Sequence[str]
    pix2pix: Translator | None
    elsewhere: Sequence[tuple[Path, ...]]
    judges: Sequence[Judge]
    readers: Sequence[EditReader]
    backbone: Backbone | None
    lpips: Lpips | None
    donors: Donors
    team: Team
    device: torch.device
    dtype: torch.dtype

    @property
    def names(self) -> list[str]:
        """Names of the methods."""
        return [info.name for info in self.methods]

    @property
    def eyes(self) -> list[Eye]:
        """The eyes of all judges, each once."""
        return list({judge.eye.name: judge.eye for judge in self.judges}.values())

    @property
    def resampling(self) -> Resampling:
        """How intervals are made."""
        return Resampling(self.cfg.bootstrap, self.cfg.seed)

    @property
    def subject(self) -> MethodInfo:
        """The method that the report is about: the model, else the folder, else the first baseline."""
        by_name = {info.name: info for info in self.methods}
        order = ("model", "folder", *self.cfg.models, "pix2pix", "ridge")
        return next((by_name[name] for name in order if name in by_name), self.methods[0])

    @property
    def files(self) -> list[HashedFile]:
        """The files that the figures depend on."""
        cfg = self.cfg
        hashes = [(str(weights.path), weights.sha256) for weights in self.weights.values()]
        if self.pix2pix is not None:
            hashes.append((str(self.pix2pix.path), self.pix2pix.sha256))
        if cfg.mapping is not None:
            hashes.append((cfg.mapping, picture_sha256(Path(cfg.mapping))))
        hashes += [(path, sha256(path)) for path in (cfg.onnx, cfg.kid, cfg.lpips, cfg.lpips_heads) if path]
        ours = {path: digest for w in self.weights.values() for path, digest in w.networks.items()}
        if (digest := _network_of(self.readers)) is not None:
            ours[str(cfg.face_landmark_weights)] = digest
        return [HashedFile(path, digest) for path, digest in (*hashes, *ours.items())]


def make_plan(arguments: Sequence[str]) -> Plan:
    """Return the evaluation that a command line of ``evaluate.py`` asks for.

    Raises:
        ValueError: an input that cannot be used; the message says what to do. OSError: a file that cannot be read.
    """
    file, settings = with_preset(arguments)
    cfg = check_request(arguments)
    check_installed()
    device = choose_device(cfg.device)
    team = find_team(cfg.devices, device)
    device = team.device(device)
    judges = judges_of(cfg)
    if cfg.onnx is not None:
        judges.append(onnx_judge(Path(cfg.onnx), cfg.rectangle))

    inputs = read_inputs(cfg)
    elsewhere = [] if cfg.faces is None else find_faces(Path(cfg.faces), cfg.mapping, inputs.probes)
    donors = shuffled_donors(inputs.probes, inputs.gallery, inputs.train, cfg.seed)
    people = {r.skull_path: r for r in (*donors.records, *inputs.gallery) if r is not None}
    landmarks = ShownLandmarks(cfg.landmarks, shipped(cfg.landmark_weights), people)

    paths = {**({"model": cfg.weights} if cfg.weights is not None else {}), **cfg.models}
    guidance = {name: with_shipped_networks(cfg.spgd_of(name)) for name in paths}
    weights = {
        name: Weights.look(
            Path(path), landmarks, cfg.texture, _guided_cases(cfg, inputs, donors, name), guidance[name]
        )
        for name, path in paths.items()
    }
    sampling = {name: _sampling(settings, own) for name, own in weights.items()}
    for name, how in guidance.items():
        try:  # guidance that is switched on and would guide no step
            how.guided_steps(sampling[name].steps)
        except ValueError as error:
            raise InputError(f"{name}: {error}") from error
    if "model" in sampling:
        cfg.sampling = sampling["model"]
    pinned = [
        name
        for name, own in weights.items()
        if guidance[name].fixes_points or (cfg.landmarks == "known" and own.shown_landmarks)
    ]
    readers = _readers(cfg, inputs, judges)
    remarks = [
        *inputs.remarks,
        *_of_guidance(guidance, cfg),
        *landmarks.remarks([name for name, own in weights.items() if own.shown_landmarks]),
        *_of_texture(cfg.texture, weights),
        *_of_edits(pinned if cfg.edited and inputs.variants else [], readers, guidance),
    ]
    pix2pix = None if cfg.pix2pix is None else Translator.look(Path(cfg.pix2pix))
    if pix2pix is not None:
        pix2pix.check(record.biometrics for record in (*inputs.probes, *inputs.variants))
    methods, not_run = _methods(cfg, inputs)
    return Plan(
        cfg=cfg,
        preset=_preset(file, arguments),
        command=shlex.join(["python", "evaluate.py", *arguments]),
        inputs=replace(inputs, remarks=tuple(remarks)),
        methods=methods,
        not_run=not_run,
        weights=weights,
        sampling=sampling,
        guidance=guidance,
        landmarks=landmarks,
        pinned=pinned,
        pix2pix=pix2pix,
        elsewhere=elsewhere,
        judges=judges,
        readers=readers,
        backbone=None if cfg.kid is None else Backbone(Path(cfg.kid)),
        lpips=None if cfg.lpips is None else Lpips(cfg.lpips, cfg.lpips_heads),
        donors=donors,
        team=team,
        device=device,
        dtype=choose_precision(cfg.precision, device),
    )


def _readers(cfg: EvaluateConfig, inputs: Inputs, judges: Sequence[Judge]) -> list[EditReader]:
    """Return the networks that edits are measured with. Raises: InputError, CheckpointError."""
    if not (cfg.edited and inputs.variants):
        return []
    network = None if cfg.face_landmark_weights is None else shipped(cfg.face_landmark_weights)
    if network is not None and not network.is_file():
        raise InputError(
            f"face_landmark_weights: {network} not found; give the network that edits are read with, or "
            "face_landmark_weights=null to read them by dlib's points, which are too unsteady for most edits"
        )
    return edit_readers(network, judges)


def _network_of(readers: Sequence[EditReader]) -> str | None:
    """Return the hash of the landmark network among the readers."""
    return next((r.eye.identity["pipnet"] for r in readers if "pipnet" in r.eye.identity), None)


def _guided_cases(cfg: EvaluateConfig, inputs: Inputs, donors: Donors, name: str) -> list[Case]:
    """Return the cases that a model's guidance needs targets for: the probes, and for true landmarks those with others'
    skulls.
    """
    cases = inputs.probe_cases
    shuffled = name == "model" and (not cfg.methods or "shuffled" in cfg.methods)
    if cfg.spgd_of(name).target != "true" or not shuffled:
        return cases
    pairs = zip(cases, donors.records, strict=True)
    return cases + [with_skull_of(case, donor) for case, donor in pairs if donor is not None]


# ---------------------------------------------------------------- remarks for the reader of the report
def _of_guidance(guidance: Mapping[str, SpgdConfig], cfg: EvaluateConfig) -> list[str]:
    acting = {name: how for name, how in guidance.items() if how.acts}
    remarks = [f"{name} is {why}." for name, how in guidance.items() if (why := how.idle) is not None]
    if acting:
        remarks.append(f"Guided: {'; '.join(f'{name}: {how.summary}' for name, how in acting.items())}.")
    if "model" in acting and acting["model"].names_files and (not cfg.methods or "shuffled" in cfg.methods):
        remarks.append(
            "The faces with another's skull are not guided: the points in spgd.target are the probes' own."
        )
    return remarks


def _of_edits(
    pinned: Sequence[str], readers: Sequence[EditReader], guidance: Mapping[str, SpgdConfig]
) -> list[str]:
    network = _network_of(readers)
    flattered = [
        name
        for name, how in guidance.items()
        if how.acts and how.landmarks > 0 and sha256(how.face_landmark_weights) == network
    ]
    fixed = "their landmarks are fixed points, which no edit of the person moves"
    read = "are read by the network that guided their landmarks: it flatters them"
    remarks = [f"No edits of {', '.join(pinned)}: {fixed}."] if pinned else []
    return remarks + ([f"Edits of {', '.join(flattered)} {read}."] if flattered else [])


def _of_texture(choice: str, weights: Mapping[str, Weights]) -> list[str]:
    """Raise InputError where an exemplar is given and no model has a branch for it."""
    names = ", ".join(name for name, own in weights.items() if own.shown_texture)
    if names and choice == "auto":
        return [
            "Drawn with the look of the skin of another person of the same style, as the manifest says: "
            f"{names}. Choosing it takes knowing the true face's surface, and no baseline is told that."
        ]
    if names:
        return [f"Drawn with the look of the skin of {Path(choice).name}: {names}."]
    if choice not in ("auto", "none"):
        raise InputError(
            f"texture={choice}: none of the weights has a texture branch; add one and train it (python "
            "tool_add_control.py IN OUT), or leave texture out"
        )
    return []


def _preset(file: Path, arguments: Sequence[str]) -> str:
    keys = {argument.partition("=")[0].split(".")[0] for argument in arguments if "=" in argument}
    return file.stem if file.stem in PRESETS and keys <= _LEAVES_PRESET else "custom"


def _sampling(arguments: Sequence[str], weights: Weights) -> SamplingConfig:
    """What the weights recommend, where the settings say nothing else."""
    base = {"sampling": weights.recommended}
    cfg = parse_command_line(EvaluateConfig, arguments, base=base, base_name=f"settings in {weights.path}")
    return cfg.sampling


def _methods(cfg: EvaluateConfig, inputs: Inputs) -> tuple[list[MethodInfo], list[NotRun]]:
    """Return the methods that run, and the others with the reason.

    Raises:
        InputError: one that was asked for by name cannot run, or none can.
    """
    extra = {
        name: MethodInfo(name, name, "model", f"Another model: {path}, told what the prompt tells.")
        for name, path in cfg.models.items()
    }
    infos = {"model": METHODS["model"], **extra, **METHODS}
    reasons = {name: reason for name in infos if (reason := _obstacle(name, cfg, inputs))}
    for name in cfg.methods:
        if name in reasons:
            raise InputError(f"methods: {name} cannot run: {reasons[name]}")
    names = cfg.methods or list(infos)
    running = [infos[name] for name in infos if name in names and name not in reasons]
    if not [info for info in running if info.name != "permuted"]:
        raise InputError(
            "methods: none can run; give weights=FILE or faces=FOLDER, or data with a train list"
        )
    not_run = [
        NotRun(name, info.label, reasons.get(name, "not among the methods asked for"))
        for name, info in infos.items()
        if name in reasons or name not in names
        if name != "folder" or cfg.faces is not None or "model" in reasons
    ]
    lacking = "no weights of its network were given"
    for name, label, source, reason in (
        (
            "plain",
            "plain ControlNet",
            cfg.models,
            "no weights of it were given: models={plain: FILE} adds it",
        ),
        ("lpips", "LPIPS", cfg.lpips, f"{lacking} (lpips=FILE: torchvision's AlexNet)"),
        ("kid", "KID", cfg.kid, f"{lacking} (kid=FILE: torchvision's Inception v3 or ResNet-50)"),
    ):
        not_run += [] if source else [NotRun(name, label, reason)]
    return running, not_run


def _obstacle(name: str, cfg: EvaluateConfig, inputs: Inputs) -> str | None:
    """Return why a method cannot run; None where it can."""
    if name in OF_THE_MODEL and cfg.weights is None:
        return "no weights of ours were given (weights=FILE)"
    if name in OF_PIX2PIX and cfg.pix2pix is None:
        return "no weights of it were given (pix2pix=FILE: what configs/demo/pix2pix.yaml trains)"
    if name == "folder" and cfg.faces is None:
        return "no pictures from elsewhere were given (faces=FOLDER)"
    if name in OF_TRAINING and not inputs.train:
        return f"{inputs.root} has no split_data/train.json to learn from"
    if name == "ridge" and not inputs.valid:
        return f"{inputs.root} has no split_data/valid.json to choose its penalty on"
    if name in ("ceiling", "ceiling_shuffled") and not inputs.expected["ceiling"]:
        return f"{inputs.root} has no expected faces; a synthetic cohort gets them by ceiling=true"
    if name == "ceiling_neutral" and not inputs.expected[name]:
        return (
            f"{inputs.root} has no expected faces in a neutral style; a synthetic cohort gets them by "
            "ceiling=true (an older one by the same command once more)"
        )
    if name == "turned" and not inputs.turned:
        return f"{inputs.root} has no other views of these people; a synthetic cohort gets them by views=1"
    return None
