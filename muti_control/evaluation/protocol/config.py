"""Settings of ``evaluate.py``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cldm.sampling import SamplingConfig
from muti_control.evaluation.judges.features import DISTANCES, FEATURE_SIZE
from muti_control.evaluation.protocol.registry import METHODS
from muti_control.sampling.prepare import SKULL_LANDMARKS, check_missing
from muti_control.sampling.spgd import FACE_LANDMARKS, SpgdConfig
from settings.base import Settings
from settings.messages import ConfigError
from settings.reading import parse_command_line

RECOGNISERS = ("dlib", "landmarks", "picture")
LANDMARKS = ("auto", "none", "known")


class DataConfig(Settings):
    """root: folder with split_data/{train,valid,test}.json and pairedCS/, as ``python -m data.cohort`` makes it.

    images_dir: where the pictures are, if not where the manifests expect them.
    trained_on: manifest of the pairs that the model learnt from, if these are not root's own train list. Its subjects
        may not be among those evaluated, and its skulls are what the out-of-distribution score compares with.
    """

    root: str = "cohort"
    images_dir: str | None = None
    trained_on: str | None = None


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
    num: int = 64
    samples: int = 1
    covered: int = 32
    edited: int = 16
    told: int = 16
    seed: int = 0
    size: int = 0
    methods: list[str] = []
    recognisers: list[str] = list(RECOGNISERS)
    onnx: str | None = None
    lpips: str | None = None
    lpips_heads: str | None = None
    kid: str | None = None
    picture_distance: str = "mean_absolute"
    rectangle: list[float] = [0.264, 0.365, 0.735, 0.835]
    train_limit: int = 6000
    bootstrap: int = 4000
    sampling: SamplingConfig = SamplingConfig()
    spgd: SpgdConfig = SpgdConfig()
    guided: dict[str, Any] = {}
    landmarks: str = "auto"
    landmark_weights: str = SKULL_LANDMARKS
    face_landmark_weights: str | None = FACE_LANDMARKS
    texture: str = "none"
    missing: str | None = None
    device: str = "auto"
    precision: str = "auto"
    devices: str = "1"
    batch_size: int = 8
    out: str = "results"
    cache: str = "results/recognised.sqlite"
    resume: bool = False
    overwrite: bool = False

    def validate(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        for name in ("samples", "batch_size", "bootstrap"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        for name in ("num", "covered", "edited", "told", "size", "train_limit", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 0 or more")
        if self.size % FEATURE_SIZE:
            raise ValueError(f"size: got {self.size}, expected a multiple of {FEATURE_SIZE}, such as 256")
        self._check_names()
        check_missing(self.missing)
        if self.overwrite and self.resume:
            raise ValueError("overwrite=true replaces a run and resume=true continues it; give one of them")
        if self.mapping is not None and self.faces is None:
            raise ValueError(f"mapping={self.mapping}: goes with faces=FOLDER, which is not given")
        ordered = len(self.rectangle) == 4 and all(
            0 <= low < high <= 1 for low, high in zip(self.rectangle[:2], self.rectangle[2:], strict=True)
        )
        if self.rectangle and not ordered:
            raise ValueError(
                f"rectangle: got {self.rectangle}, expected [left, top, right, bottom] in fractions, or []"
            )
        self.sampling.validate()
        for name in ("model", *self.models):
            self.guidance_of(name).validate()

    def guidance_of(self, name: str) -> SpgdConfig:
        """How a model's faces are guided. Raises: ConfigError."""
        own = self.guided.get(name, {})
        if not isinstance(own, Mapping):
            raise ConfigError(f"guided.{name}: got {own!r}, expected settings such as {{mode: plain}}")
        base = self.spgd.model_dump() | {str(key): value for key, value in own.items()}
        base["mode"] = "off" if base["mode"] is False else base["mode"]  # YAML takes off for a truth value
        return parse_command_line(SpgdConfig, [], base=base, base_name=f"guided.{name}")

    def _check_names(self) -> None:
        if not self.recognisers and self.onnx is None:
            raise ValueError(
                f"recognisers: got none, expected some of {', '.join(RECOGNISERS)}, or onnx=FILE"
            )
        for name in self.recognisers:
            if name not in RECOGNISERS:
                raise ValueError(f"recognisers: got {name!r}, expected some of {', '.join(RECOGNISERS)}")
        if self.picture_distance not in DISTANCES:
            raise ValueError(
                f"picture_distance: got {self.picture_distance!r}, expected one of {', '.join(DISTANCES)}"
            )
        if self.landmarks not in LANDMARKS:
            raise ValueError(f"landmarks: got {self.landmarks!r}, expected one of {', '.join(LANDMARKS)}")
        for name in self.models:
            if name in METHODS or not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(
                    f"models: {name!r} cannot be a name; use letters, digits, - and _, none of {list(METHODS)}"
                )
        strangers = sorted(set(self.guided) - {"model", *self.models})
        if strangers:
            raise ValueError(f"guided: {strangers} are no models; these are {['model', *self.models]}")
        unknown = [name for name in self.methods if name not in METHODS and name not in self.models]
        if unknown:
            raise ValueError(f"methods: {unknown} are none; known are {[*METHODS, *self.models]}")

    @property
    def run_name(self) -> str:
        """Name of the run's folder."""
        if self.name is not None:
            return self.name
        for given in (self.weights, self.faces, self.pix2pix):
            if given is not None:
                return Path(given).absolute().stem
        return "baselines"
