"""Settings of ``sample.py``, and of SPGD, which moves its samples towards what networks measure on the face."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from cldm.config import SamplingConfig, SpgdStepConfig
from data.biometrics import ATTRIBUTES
from data.ct.config import CtConfig
from data.partial import Region
from settings.base import PathText, Settings, expect

DEMO_WEIGHTS = "models/demo/iccr_demo.safetensors"
SKULL_LANDMARKS = "models/demo/pipnet_skull.safetensors"
FACE_LANDMARKS = "models/demo/pipnet_face.safetensors"
ENERGIES = ("landmarks", "containment", "realism", "texture")


class SpgdConfig(SpgdStepConfig):
    """SPGD; off by default. ``SpgdStepConfig``, and the energies that it lowers.

    landmarks, containment, realism, texture: weights of the energies; only their ratio counts, 0 leaves one out.
    target: of the landmarks: auto (the condition's, else read off the skull), true (of the manifest: the best that
        SPGD can do), or a file or folder of points as for landmarks.
    face_landmark_weights: the network that reads landmarks off faces. discriminator: file, for realism.
    exemplar: picture of a face with the desired surface, for texture.
    decoder: file of a small decoder that serves the energies (the guidance_decoder stage of train.py); the face itself
        is always decoded by the model's own.
    at_once: faces decoded together with gradient. recompute: the decoder's blocks, in place of keeping what they need.
    trace: write what SPGD did to each face as NAME_spgd.json and a plot.
    """

    landmarks: NonNegativeFloat = 1.0
    containment: NonNegativeFloat = 1.0
    realism: NonNegativeFloat = 0.0
    texture: NonNegativeFloat = 0.0
    target: str = "auto"
    face_landmark_weights: str = FACE_LANDMARKS
    discriminator: str | None = None
    exemplar: str | None = None
    decoder: str | None = None
    at_once: PositiveInt = 2
    recompute: bool = False
    trace: bool = False

    @model_validator(mode="after")
    def _names_what_it_needs(self) -> Self:
        for name, key in (("realism", "discriminator"), ("texture", "exemplar")):
            needed = self.acts and self.weights[name] > 0
            expect(not needed or getattr(self, key), key, None, f"a file, for {name}={self.weights[name]:g}")
        return self

    @property
    def weights(self) -> dict[str, float]:
        """The weights by energy."""
        return {name: getattr(self, name) for name in ENERGIES}

    @property
    def summary(self) -> str:
        """The settings in a line, for people."""
        source = {} if self.target == "auto" else {"landmarks": f" ({self._target_source})"}
        weights = {name: weight for name, weight in self.weights.items() if weight > 0}
        energies = ", ".join(f"{name} {weight:g}{source.get(name, '')}" for name, weight in weights.items())
        inner = f", {self.num_inner} inner steps" if self.mode != "plain" else ""
        decoder = "the full decoder" if self.decoder is None else Path(self.decoder).name
        return f"{self.mode} by {self.gradient}, scale {self.scale:g}{inner}, towards {energies}, through {decoder}"

    @property
    def idle(self) -> str | None:
        """The reason why SPGD changes nothing although it is switched on, for people; else None."""
        if self.mode == "off" or self.acts:
            return None
        why = "spgd.scale is 0" if not self.scale > 0 else f"{', '.join(ENERGIES)} all have weight 0"
        return f"not guided: spgd.mode={self.mode}, but {why}"

    @property
    def _target_source(self) -> str:
        if self.target == "true":
            return "those of the true face, which nobody has in practice"
        return f"those of {Path(self.target).name}"

    @property
    def fixes_points(self) -> bool:
        """Whether a case's landmarks are pulled to points that depend on neither its skull nor its biometrics."""
        return self.acts and self.landmarks > 0 and self.target != "auto"

    @property
    def names_files(self) -> bool:
        """Whether these points lie in files named after the cases."""
        return self.fixes_points and self.target != "true"

    @property
    def acts(self) -> bool:
        """Whether SPGD changes anything at all."""
        return super().acts and any(self.weights.values())


class ScanConfig(Settings):
    """How a scan as skull is read: settings of ``data.ct.config.CtConfig``, where the pictures do not fix them."""

    series: str = ""
    pose: str = "auto"
    bone_hu: float = 220.0
    offset: float = 0.0
    rescale: str = "header"
    max_gib: float = 1.5

    def drawn_with(self, size: int) -> CtConfig:
        """Return the settings of ``data.ct`` for pictures of ``size`` px. Raises: ConfigError."""
        return CtConfig.of(size=size, meshes=False, **dict(self))


def _grid(text: str) -> str:
    names = [name.strip() for name in text.strip("[]").split(",")]
    if not 1 <= len({*names} & {*ATTRIBUTES}) == len(names) <= 2:
        raise ValueError(
            f"got {text!r}, expected one or two of {', '.join(ATTRIBUTES)}, such as age,body_mass"
        )
    return ",".join(names)


class SampleConfig(Settings):
    """What to reconstruct, and how.

    skull: picture, folder or manifest, or a head CT (DICOM folder, NIfTI, NRRD, MetaImage, zip), which is drawn as
        data.ct does it; ct: its settings. none: the other conditions draw the face.
    images_dir: folder of a manifest's pictures, if they are not where it expects them.
    limit: at most that many skulls, spread evenly over the list.
    sex, age (years, or a range such as 35-50), ethnicity, body_mass (1 very thin ... 5 slightly fat): of the person;
        over a manifest's. What is unknown, or left out, is drawn: each face assumes values that are possible.
    mm_per_px: of the skull pictures, for lengths in mm; those of data.ct and data.cohort have 280 mm / 256 px = 1.094.
    num_samples: faces for each skull, with seeds seed, seed + 1, ... Default: 8 of one skull, 1 each of many.
    landmarks: for weights with a landmark branch: auto (read off the skull), none, or a file of points in px of the
    skull picture, or a folder of them, such as an earlier run wrote and you have edited. landmark_weights: the network
    that reads them off skulls.
    prepare: auto (a skull that is turned, shifted, off scale, inverted or on a bright background is brought to what the
        weights know; NAME_prepared.png shows it) or off. force: draw what is no skull, too.
    texture: for weights with a texture branch: a face whose look of the skin (and nothing else) is wanted; auto (what a
    manifest names, else none) or none. missing: bone to take away first: mandible, vault, left or right.
    weights: checkpoint. model: YAML of its architecture, where the file does not carry it.
    device: auto, cpu, cuda, cuda:1, mps. precision: auto (bf16 where the device is
        faster by it, else fp32), fp32, bf16, fp16.
    compile: compile the network's blocks first: minutes, repaid by many faces on a GPU.
    devices: how many GPUs to use side by side (on the CPU: processes); auto: all. torchrun and srun work too.
    batch_size: faces drawn together; each depends on its own skull, prompt and seed alone.
    max_sheets: contact sheets at most, of twelve skulls each.
    grid: one or two of sex, age, ethnicity, body_mass: also draw this skull with other values of these, with one seed.
    repeat: record.json of a finished run: draw it again into a new folder, and compare. Exit code 0: all the same.
    out: folder to write. Default: results/NAME, numbered if it exists. overwrite: replace an earlier run there.
    resume: continue an earlier run there (without out: the latest results/NAME), drawing the faces it lacks.
    report: pdf (and a page) or html: a report of the case, in ``out``. case_number, examiner: printed in it.
    sampling: the sampler's settings. Default: what the weights recommend.
    spgd: moves the samples towards what can be measured on the face; spgd.mode=spgd switches it on.
    """

    skull: PathText | None = None
    images_dir: PathText | None = None
    limit: PositiveInt | None = None
    sex: Any = None
    age: Any = None
    ethnicity: Any = None
    body_mass: Any = None
    mm_per_px: PositiveFloat | None = None
    num_samples: Annotated[int, Field(ge=1, le=10_000)] | None = None
    seed: NonNegativeInt = 0
    landmarks: PathText = "auto"
    landmark_weights: PathText = SKULL_LANDMARKS
    texture: PathText = "auto"
    prepare: Literal["auto", "off"] = "auto"
    force: bool = False
    missing: Region | None = None
    weights: PathText = DEMO_WEIGHTS
    model: PathText | None = None
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: bool = False
    devices: str = "1"
    batch_size: PositiveInt = 8
    max_sheets: PositiveInt = 20
    out: PathText | None = None
    overwrite: bool = False
    resume: bool = False
    report: Literal["pdf", "html"] | None = None
    case_number: str = ""
    examiner: str = ""
    grid: Annotated[str, AfterValidator(_grid)] | None = None
    repeat: PathText | None = None
    sampling: SamplingConfig = SamplingConfig()
    spgd: SpgdConfig = SpgdConfig()
    ct: ScanConfig = ScanConfig()

    @property
    def person(self) -> dict[str, Any]:
        """The attributes of the person, None where nothing is stated."""
        return {name: getattr(self, name) for name in ATTRIBUTES}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        last = 2**63 - (self.num_samples or 1000)
        expect(self.seed < last, "seed", self.seed, f"a number below {last}")
        expect_one_of_resume_and_overwrite(self.resume, self.overwrite)
        return self


def expect_one_of_resume_and_overwrite(resume: bool, overwrite: bool) -> None:
    """Refuse settings that both continue and replace an earlier run."""
    expect(not (resume and overwrite), "resume", True, "false, since overwrite=true replaces the earlier run")
