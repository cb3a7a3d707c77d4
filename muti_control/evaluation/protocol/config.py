"""Settings of ``evaluate.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from cldm.config import SamplingConfig
from data.partial import Region
from muti_control.evaluation.judges.features import FEATURE_SIZE
from muti_control.evaluation.protocol.registry import METHODS
from muti_control.sampling.config import (
    FACE_LANDMARKS,
    SKULL_LANDMARKS,
    SpgdConfig,
    expect_one_of_resume_and_overwrite,
)
from settings.base import Settings, Share, expect
from settings.reading import parse_command_line


class DataConfig(Settings):
    """root: folder with split_data/{train,valid,test}.json and pairedCS/, as ``python -m data.cohort`` makes it.

    images_dir: where the pictures are, if not where the manifests expect them.
    trained_on: manifest of the pairs that the model learnt from, if these are not root's own train list. Its subjects
        may not be among those evaluated, and its skulls are what the out-of-distribution score compares with.
    """

    root: str = "cohort"
    images_dir: str | None = None
    trained_on: str | None = None


class SweepConfig(Settings):
    """scales, modes: of SPGD; every mode is tried at every scale."""

    scales: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = [0.003, 0.01, 0.03, 0.1]
    modes: Annotated[list[Literal["plain", "warmup", "spgd"]], Field(min_length=1)] = ["plain", "spgd"]


class EvaluateConfig(Settings):
    """What is evaluated, on whom, and by which measures.

    weights: checkpoint of ours. models: more of them by name, such as {plain: runs/plain/model.safetensors}.
    pix2pix: another baseline's weights, as the pix2pix stage of train.py writes them.
    faces: folder of pictures made elsewhere. mapping: CSV with the columns probe and picture that says whose each is.
    name: of the run, and of what is evaluated in the report. Default: the weights' or the folder's name.
    split: test, or valid to make choices on. num: probes, drawn with ``seed``; 0 takes all. The gallery is always the
        whole split, one face of each subject.
    samples: faces drawn of each probe; from 2 on, coverage and diversity are measured on the first ``covered`` probes.
    edited: probes whose age and body mass are edited, where the data have true variants. told: probes that
        are told another person's attributes. 0 leaves these out.
    size: side in px at which pictures are compared, a multiple of 64; 0 takes the size of the true faces.
    methods: names of methods to run; empty means all that can. recognisers: some of dlib, landmarks, picture.
    onnx: a face recogniser in ONNX format. lpips: weights of its backbone, and lpips_heads those of its linear layers
        where they lie apart. kid: weights of its network (README says which).
    picture_distance: of the recogniser ``picture``.
    rectangle: left, top, right, bottom of the face in fractions of the side, for dlib. The default fits the cohort's
        camera; [] lets dlib's detector place each face.
    train_limit: pairs at most that the baselines learn from, spread evenly over the list; 0 takes all.
    bootstrap: draws of probes behind each interval.
    landmarks: what models with a landmark branch are shown: auto (read off the skull by ``landmark_weights``), none, or
        known (the true ones of the data, which nobody has in practice: what better landmarks could be worth).
    face_landmark_weights: the network that edits are read with, off the faces; null: dlib's points alone.
    texture: what models with a texture branch are shown: none, a picture for all, or auto (the exemplar that the
        manifest names: another person's face of the true face's own style, which no baseline is told).
    missing: bone that is taken away from every probe's skull (mandible, vault, left, right).
    spgd: of every model's faces, as for sample.py. guided: what is otherwise for some of them, by name (``weights``
        is called model), such as {plain: {mode: plain, scale: 0.01}}; one file under several names compares settings.
    sweep: SPGD settings to try on the weights, for a recommendation (configs/evaluate/sweep.yaml).
    device, precision, devices, batch_size, sampling: as for sample.py.
    out: folder of all runs; this one goes to OUT/NAME. cache: file of what the recognisers saw before.
    resume: continue this run where it broke off. overwrite: replace an earlier one.
    """

    weights: str | None = None
    models: dict[str, str] = {}
    pix2pix: str | None = None
    faces: str | None = None
    mapping: str | None = None
    name: str | None = None
    data: DataConfig = DataConfig()
    split: str = "test"
    num: NonNegativeInt = 64
    samples: Annotated[int, Field(ge=1, le=1000)] = 1
    covered: NonNegativeInt = 32
    edited: NonNegativeInt = 16
    told: NonNegativeInt = 16
    seed: NonNegativeInt = 0
    size: Annotated[int, Field(ge=0, multiple_of=FEATURE_SIZE)] = 0
    methods: list[str] = []
    recognisers: list[Literal["dlib", "landmarks", "picture"]] = ["dlib", "landmarks", "picture"]
    onnx: str | None = None
    lpips: str | None = None
    lpips_heads: str | None = None
    kid: str | None = None
    picture_distance: Literal["rms", "face_rms", "mean_absolute", "deviation"] = "mean_absolute"
    rectangle: Annotated[list[Share], Field(max_length=4)] = [0.264, 0.365, 0.735, 0.835]
    train_limit: NonNegativeInt = 6000
    bootstrap: Annotated[int, Field(ge=1, le=100_000)] = 4000
    sampling: SamplingConfig = SamplingConfig()
    spgd: SpgdConfig = SpgdConfig()
    guided: dict[str, dict[str, Any]] = {}
    sweep: SweepConfig | None = None
    landmarks: Literal["auto", "none", "known"] = "auto"
    landmark_weights: str = SKULL_LANDMARKS
    face_landmark_weights: str | None = FACE_LANDMARKS
    texture: str = "none"
    missing: Region | None = None
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    devices: str = "1"
    batch_size: PositiveInt = 8
    out: str = "results"
    cache: str = "results/recognised.sqlite"
    resume: bool = False
    overwrite: bool = False

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        expect_one_of_resume_and_overwrite(self.resume, self.overwrite)
        expect(
            self.recognisers or self.onnx, "recognisers", [], "one of dlib, landmarks, picture, or onnx=FILE"
        )
        expect(self.mapping is None or self.faces, "mapping", self.mapping, "null, or also faces=FOLDER")
        box = self.rectangle or [0, 0, 1, 1]
        ordered = len(box) == 4 and box[0] < box[2] and box[1] < box[3]
        expect(ordered, "rectangle", self.rectangle, "[left, top, right, bottom] in fractions, or []")
        for name in self.models:
            usable = name not in METHODS and name.replace("_", "").replace("-", "").isalnum()
            expect(usable, "models", name, f"letters, digits, - and _, and none of {', '.join(METHODS)}")
        strangers = sorted(set(self.guided) - {"model", *self.models})
        expect(not strangers, "guided", strangers, f"some of {', '.join(['model', *self.models])}")
        unknown = [name for name in self.methods if name not in METHODS and name not in self.models]
        expect(not unknown, "methods", unknown, f"some of {', '.join([*METHODS, *self.models])}")
        for name in self.guided:
            self.spgd_of(name)
        return self

    def spgd_of(self, name: str) -> SpgdConfig:
        """Return how a model's faces are guided. Raises: ConfigError."""
        base = self.spgd.model_dump() | self.guided.get(name, {})
        return parse_command_line(SpgdConfig, [], base=base, base_name=f"guided.{name}")

    @property
    def run_name(self) -> str:
        """Name of the run's folder."""
        if self.name is not None:
            return self.name
        for path in (self.weights, self.faces, self.pix2pix):
            if path is not None:
                return Path(path).absolute().stem
        return "baselines"
