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
    """The people."""

    root: str = "cohort"
    """Folder with split_data/ (lists) and pairedCS/ (pictures), as data.cohort makes it."""
    images_dir: str | None = None
    """Folder of the pictures, if not where the lists expect them."""
    trained_on: str | None = None
    """List of the pairs that the model learnt from, if not root's train list."""


class SweepConfig(Settings):
    """SPGD settings to try: every mode at every scale."""

    scales: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = [0.003, 0.01, 0.03, 0.1]
    """Values of spgd.scale."""
    modes: Annotated[list[Literal["plain", "warmup", "spgd"]], Field(min_length=1)] = ["plain", "spgd"]
    """Values of spgd.mode."""


class EvaluateConfig(Settings):
    """What is evaluated, on whom, and by which measures."""

    often = (
        "weights", "faces", "name", "data.root", "split", "num_probes", "num_samples", "sampling.steps", "devices",
        "resume",
    )  # fmt: skip
    headings = {
        "weights": "What is evaluated",
        "split": "On whom",
        "recognisers": "By which measures",
        "landmarks": "What the models are shown",
        "device": "The machine",
        "out": "The results",
    }

    weights: str | None = None
    """Checkpoint of a model."""
    models: dict[str, str] = {}
    """More models by name, such as {plain: runs/plain/model.safetensors}."""
    pix2pix: str | None = None
    """Weights of the Pix2Pix baseline, as train.py writes them."""
    faces: str | None = None
    """Folder of pictures made elsewhere."""
    mapping: str | None = None
    """CSV with the columns probe and picture: whose each picture is."""
    name: str | None = None
    """Name of the run; null takes the weights' or the folder's."""
    methods: list[str] = []
    """Methods to run; [] takes all that can."""
    split: str = "test"
    """List in split_data: test, or valid to make choices on."""
    num_probes: NonNegativeInt = 64
    """People to draw; 0 takes all. The gallery is always the whole split."""
    num_samples: Annotated[int, Field(ge=1, le=1000)] = 1
    """Faces of the first covered probes; from 2 on, their spread counts."""
    covered: NonNegativeInt = 32
    """Probes with num_samples faces; the others have one."""
    edited: NonNegativeInt = 16
    """Probes whose age and body mass are edited; it needs data with variants."""
    told: NonNegativeInt = 16
    """Probes that are told another person's attributes; 0 leaves it out."""
    seed: NonNegativeInt = 0
    """Seed of the probes, the faces and the intervals."""
    missing: Region | None = None
    """Bone that is taken away from every probe's skull."""
    recognisers: list[Literal["dlib", "landmarks", "picture"]] = ["dlib", "landmarks", "picture"]
    """Judges of identity."""
    onnx: str | None = None
    """A face recogniser in ONNX format."""
    lpips: str | None = None
    """Weights of torchvision's AlexNet, for LPIPS."""
    lpips_heads: str | None = None
    """Weights of LPIPS's linear layers, where they lie apart."""
    kid: str | None = None
    """Weights of Inception v3 or ResNet-50, for KID."""
    picture_distance: Literal["rms", "face_rms", "mean_absolute", "deviation"] = "mean_absolute"
    """Distance of the judge picture."""
    rectangle: Annotated[list[Share], Field(max_length=4)] = [0.264, 0.365, 0.735, 0.835]
    """Place of the face for dlib: left, top, right, bottom, as shares of the side; [] lets dlib find it."""
    size: Annotated[int, Field(ge=0, multiple_of=FEATURE_SIZE)] = 0
    """Side at which pictures are compared, px; 0 takes the true faces' size."""
    train_limit: NonNegativeInt = 6000
    """Pairs at most that the baselines learn from; 0 takes all."""
    bootstrap: Annotated[int, Field(ge=1, le=100_000)] = 4000
    """Draws of probes behind each interval."""
    landmarks: Literal["auto", "none", "known"] = "auto"
    """auto (read off the skull), none, or known: the true ones, which nobody has in practice."""
    landmark_weights: str = SKULL_LANDMARKS
    """Network that reads the face's landmarks off skulls."""
    face_landmark_weights: str | None = FACE_LANDMARKS
    """Network that edits are read with, off the faces; null takes dlib's points alone."""
    texture: str = "none"
    """none, a picture for all, or auto: another person's face of the true face's style."""
    guided: dict[str, dict[str, Any]] = {}
    """spgd settings of some models, such as {plain: {mode: plain, scale: 0.01}}; weights is called model."""
    sweep: SweepConfig | None = None
    """SPGD settings to try, for a recommendation (configs/evaluate/sweep.yaml)."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto takes bf16 where the device is faster by it, else fp32."""
    devices: str = "1"
    """GPUs (on the CPU: processes) that share the work: a number, or auto for all."""
    batch_size: PositiveInt = 8
    """Faces drawn together."""
    out: str = "results"
    """Folder of all runs. This one goes to OUT/NAME."""
    cache: str = "results/recognised.sqlite"
    """File of what the recognisers saw before."""
    resume: bool = False
    """Continue this run where it broke off."""
    overwrite: bool = False
    """Replace an earlier run of this name."""
    data: DataConfig = DataConfig()
    sampling: SamplingConfig = SamplingConfig()
    spgd: SpgdConfig = SpgdConfig()

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
