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
MATCH_WEIGHTS = "models/demo/match.safetensors"
ENERGIES = ("landmarks", "containment", "realism", "texture", "match")


class SpgdConfig(SpgdStepConfig):
    """SPGD moves the samples towards what can be measured on the face; off by default."""

    landmarks: NonNegativeFloat = 1.0
    """Weight of the landmarks. Only the ratio of the weights counts; 0 leaves one out."""
    containment: NonNegativeFloat = 1.0
    """Weight of "no bone outside the face"."""
    realism: NonNegativeFloat = 0.0
    """Weight of realism, with discriminator=FILE."""
    texture: NonNegativeFloat = 0.0
    """Weight of the surface, with exemplar=FACE."""
    match: NonNegativeFloat = 0.0
    """Weight of how well the face fits the skull, as the matching network sees it."""
    target: str = "auto"
    """Landmarks to reach: auto (the condition's, or read off the skull), true (of the list), or a file or
    folder of points."""
    face_landmark_weights: str = FACE_LANDMARKS
    """Network that reads landmarks off faces."""
    discriminator: str | None = None
    """File of a discriminator, for realism."""
    exemplar: str | None = None
    """Picture of a face with the desired surface, for texture."""
    match_weights: str = MATCH_WEIGHTS
    """Matching network (the match stage), for match."""
    decoder: str | None = None
    """File of a small decoder for the energies (the guidance_decoder stage); null takes the model's own."""
    at_once: PositiveInt = 2
    """Faces decoded together with gradient."""
    recompute: bool = False
    """Compute the decoder's activations again: less memory, more time."""
    trace: bool = False
    """Write what SPGD did to each face as NAME_spgd.json and a plot."""

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
    """How a head CT given as skull is read, as by data.ct."""

    series: str = ""
    """SeriesNumber or SeriesInstanceUID to take; empty takes the best."""
    pose: str = "auto"
    """auto, "yaw,pitch,roll" in degrees, or a JSON file with landmarks in LPS mm."""
    bone_hu: float = 220.0
    """Density at which bone begins, HU, 100 to 800."""
    offset: float = 0.0
    """Added to every value, for volumes stored without their rescaling (-1024 is usual), HU."""
    rescale: str = "header"
    """header, or auto: bring air to -1000 and soft tissue to 40 HU where the values are no HU."""
    max_gib: float = 1.5
    """Largest volume that is read, GiB."""

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
    """What to reconstruct, and how."""

    often = (
        "skull", "sex", "age", "ethnicity", "body_mass", "num_samples", "seed", "out", "weights", "sampling.steps",
    )  # fmt: skip
    headings = {
        "skull": "The skull",
        "sex": "The person",
        "landmarks": "The other conditions",
        "num_samples": "What is drawn",
        "weights": "The model and the machine",
        "out": "The results",
    }

    skull: PathText | None = None
    """Picture, folder, list (.csv, .json), head CT, or none; null takes the shipped test skulls."""
    images_dir: PathText | None = None
    """Folder of a list's pictures, if not where it expects them."""
    limit: PositiveInt | None = None
    """At most that many skulls, spread evenly over the list; null takes all."""
    mm_per_px: PositiveFloat | None = None
    """Scale of the skull pictures, for lengths in mm; those of data.ct have 1.094."""
    prepare: Literal["auto", "off"] = "auto"
    """auto mends a skull that is turned, shifted, off scale, inverted or on a bright background."""
    force: bool = False
    """Draw what is no skull, too."""
    missing: Region | None = None
    """Bone that is taken away first."""
    sex: Any = None
    """male or female; null draws it for each face."""
    age: Any = None
    """Years, or a range such as 35-50; null draws it."""
    ethnicity: Any = None
    """A word that the weights know (the demo: Asian, African, Caucasian); null draws it."""
    body_mass: Any = None
    """1 very thin, 2 thin, 3 slightly thin, 4 normal, 5 slightly fat; null draws it."""
    landmarks: PathText = "auto"
    """auto (read off the skull), none, or a file or folder of points in px of the skull picture."""
    landmark_weights: PathText = SKULL_LANDMARKS
    """Network that reads the face's landmarks off skulls."""
    texture: PathText = "auto"
    """A face whose look of the skin is wanted; auto (what a list names, else none) or none."""
    num_samples: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Faces of each skull; null draws 8 of one skull, 1 each of many."""
    seed: NonNegativeInt = 0
    """Seed of the first face. The others have seed + 1, seed + 2, and so on."""
    grid: Annotated[str, AfterValidator(_grid)] | None = None
    """One or two of sex, age, ethnicity, body_mass: also draw the skull with other values of these."""
    repeat: PathText | None = None
    """record.json of a finished run: draw it again into a new folder, and compare."""
    weights: PathText = DEMO_WEIGHTS
    """Checkpoint of the model."""
    model: PathText | None = None
    """YAML of the architecture, where weights do not carry it."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto takes bf16 where the device is faster by it, else fp32."""
    devices: str = "1"
    """GPUs (on the CPU: processes) that share the work: a number, or auto for all."""
    batch_size: PositiveInt = 8
    """Faces drawn together."""
    compile: bool = False
    """Compile the network first: minutes, repaid by many faces on a GPU."""
    out: PathText | None = None
    """Folder of this run; null takes results/NAME, numbered if it exists."""
    overwrite: bool = False
    """Replace an earlier run in that folder."""
    resume: bool = False
    """Continue an earlier run in that folder, drawing the faces it lacks."""
    max_sheets: PositiveInt = 20
    """Contact sheets at most, of twelve skulls each."""
    report: Literal["pdf", "html"] | None = None
    """Write a report of the case; pdf writes a page (HTML), too."""
    case_number: str = ""
    """Printed in the report."""
    examiner: str = ""
    """Printed in the report."""
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
