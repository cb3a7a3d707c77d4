"""The configuration of a training run: typed, composed, read from YAML and ``key=value`` overrides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from omegaconf import MISSING

from cldm.sampling import SamplingConfig
from data.partial import REGIONS
from ldm.config import ConfigError, parse_command_line
from ldm.latent_diffusion import ModelConfig
from muti_control.memory import MemoryConfig
from muti_control.patchgan import PatchGan, PatchGanConfig
from muti_control.pipnet.config import PipNetStageConfig
from muti_control.pix2pix.network import GeneratorConfig

STAGES = ("autoencoder", "base", "control", "pipnet", "pix2pix")
WITHOUT_MODEL = ("pipnet", "pix2pix")  # stages whose architecture stands in their own part of the config
PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")
LOSS_WEIGHTINGS = ("eps", "x0")
EXPORT_DTYPES = ("float32", "float16", "bfloat16")


@dataclass
class DataConfig:
    """Where the pairs are.

    root: folder with ``pairedCS/`` (pictures) and ``split_data/`` (manifests).
    train, valid: names of the manifests in ``split_data``.
    skull_folder, face_folder: names of the two folders in ``pairedCS``; null takes the usual names.
    num_workers: loader processes; 0 reads in the main process.
    how_to_get: what to tell a user whose ``root`` is missing.
    """

    root: str = "data"
    train: str = "train.json"
    valid: str = "valid.json"
    skull_folder: str | None = None
    face_folder: str | None = None
    num_workers: int = 0
    how_to_get: str = "python -m data.cohort OUT makes a synthetic cohort; then pass data.root=OUT"


@dataclass
class OptimConfig:
    """AdamW with warm-up.

    lr: peak learning rate. warmup_steps: linear ramp up to it. schedule: after it, "constant" or "cosine" to
    ``final_lr_ratio`` of the peak at ``train.max_steps``. clip_norm: gradient norm limit, 0 for none.
    ema_decay: of the averaged weights that are validated and exported; it ramps up from (1 + n) / (10 + n).
    """

    lr: float = 1e-4
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    warmup_steps: int = 100
    schedule: str = "constant"
    final_lr_ratio: float = 0.05
    clip_norm: float = 1.0
    ema_decay: float = 0.999


@dataclass
class TrainConfig:
    """How long, how large, how often.

    max_steps: optimizer steps. batch_size: pictures per device and micro-batch. accumulate: micro-batches per
    step. val_every, save_every: optimizer steps between validations (with pictures) and between checkpoints.
    save_minutes: a checkpoint at least so often, 0 for save_every alone. keep_best: how many of the best validations
    keep their weights. log_every: steps between lines of the logs, 0 for a tenth of val_every, at most 10.
    num_valid: validation pairs looked at. precision: auto is bf16-mixed where the hardware has it, else 32-true;
    16-mixed is for GPUs older than that. accelerator: as Lightning names them. devices: how many on this machine (under
    torchrun and srun as many as they start). num_threads: of torch on the CPU, 0 for its own choice.
    export: which averaged weights the exported file holds, those of the best validation or the last ones.
    export_dtype: precision of the weights in the exported file (float32, float16 or bfloat16).
    """

    max_steps: int = 1000
    batch_size: int = 8
    accumulate: int = 1
    val_every: int = 500
    save_every: int = 250
    save_minutes: float = 30.0
    keep_best: int = 3
    log_every: int = 0
    num_valid: int = 16
    seed: int = 0
    precision: str = "auto"
    accelerator: str = "auto"
    devices: int = 1
    num_threads: int = 0
    export: str = "best"
    export_dtype: str = "float32"


@dataclass
class WatchConfig:
    """When a run warns, and when it gives up.

    max_skipped: so many steps in a row may have a gradient that is not finite (they are skipped); one more stops
    the run. flat_effect, flat_after: from that step on it warns if another skull changes the predicted noise by less
    than that share. waiting_share: of the time, spent on waiting for pictures, above which it warns of the loader.
    """

    max_skipped: int = 10
    flat_effect: float = 0.01
    flat_after: int = 1000
    waiting_share: float = 0.2


@dataclass
class DiscriminatorConfig:
    """The discriminator that realism and feature matching need; it learns beside what it judges.

    init: its weights (a discriminator.safetensors); null: fresh ones. every: steps from one of its turns to the next.
    network: its architecture, without ``init``. optim: its own optimizer.
    """

    init: str | None = None
    every: int = 1
    network: PatchGanConfig = field(default_factory=PatchGanConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=1e-4, beta1=0.5, warmup_steps=0, clip_norm=0.0, ema_decay=0.0)
    )

    def validate(self, in_channels: int) -> None:
        """Of one for pictures of that many channels.

        Raises: ValueError naming the field, what was got and what is expected.
        """
        if self.every < 1:
            raise ValueError(f"every: got {self.every!r}, expected at least 1")
        if not 0 < self.optim.lr < math.inf:
            raise ValueError(f"optim.lr: got {self.optim.lr!r}, expected a positive number")
        if self.network.in_channels != in_channels:
            raise ValueError(
                f"network.in_channels: got {self.network.in_channels!r}, expected {in_channels} in this stage"
            )
        try:
            self.network.validate()
        except ValueError as error:
            raise ValueError(f"network.{error}") from error

    def build(self, seed: int) -> PatchGan:
        """The network to be trained; fresh weights follow from ``seed``.

        Raises:
            ValueError: ``init`` is made for pictures of other channels. CheckpointError: it cannot be read.
        """
        if self.init is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                return PatchGan(self.network)
        found = PatchGan.load(self.init)
        if found.cfg.in_channels != self.network.in_channels:
            raise ValueError(
                f"discriminator.init: {self.init} takes {found.cfg.in_channels} channels, expected "
                f"{self.network.in_channels}"
            )
        return found.train().requires_grad_(True)


@dataclass
class AutoencoderStageConfig:
    """Loss of the autoencoder stage: |x - x_hat| + edge_weight |grad x - grad x_hat| + kl_weight KL / pixels, and

    texture_weight: of how much rougher or smoother the surface comes back (``autoencoder_losses.texture_loss``);
    without it and gan, grain and noise are wiped out.
    gan: realism (LSGAN): how hard its gradient pulls at the decoder's last layer, relative to all other terms; 0: no
    discriminator. gan_ramp_steps: over which it rises to that. discriminator: its own; it sees single pictures.
    With either of them the error by pixels no longer says what is best: set train.export=last and look at the pictures.
    crop_size: side in px of the random crops it trains on, 0 for whole pictures (it validates on whole ones).
    on_skulls: train on the skull pictures too, not on the faces alone.
    """

    crop_size: int = 0
    edge_weight: float = 1.0
    kl_weight: float = 1e-6
    texture_weight: float = 0.0
    gan: float = 0.0
    gan_ramp_steps: int = 0
    discriminator: DiscriminatorConfig = field(
        default_factory=lambda: DiscriminatorConfig(network=PatchGanConfig(in_channels=3))
    )
    on_skulls: bool = False

    def validate(self) -> None:
        """Raises: ValueError naming the field, what was got and what is expected."""
        for key in ("edge_weight", "kl_weight", "texture_weight", "gan", "gan_ramp_steps", "crop_size"):
            if not 0 <= getattr(self, key) < math.inf:
                raise ValueError(f"{key}: got {getattr(self, key)!r}, expected 0 or a positive number")
        try:
            self.discriminator.validate(in_channels=3)
        except ValueError as error:
            raise ValueError(f"discriminator.{error}") from error


@dataclass
class DiffusionStageConfig:
    """Of the base and control stages.

    prompt_dropout: chance that a prompt is replaced by the empty one (what guidance needs).
    train_text_encoder: let the base stage train the text encoder as well.
    loss_weighting: "eps" weighs the noise error alike at every t; "x0" turns it into the error of the clean latent,
    min(1 / SNR(t), max_loss_weight) times as much, and so towards the noisy steps, where the skull decides.
    """

    prompt_dropout: float = 0.1
    loss_weighting: str = "eps"
    max_loss_weight: float = 25.0
    train_text_encoder: bool = True


@dataclass
class LandmarkConditionConfig:
    """Of the control stage, for a model with a landmark branch (tool_add_control.py landmarks=N).

    predicted: files of landmarks that networks read off the skulls, of training and validation pairs.
    known_share: of the pairs that have known and predicted landmarks, how often the known ones are shown.
    dropout: chance that a pair's landmarks are left out, so that the model also works without.
    """

    predicted: list[str] = field(default_factory=list)
    known_share: float = 0.5
    dropout: float = 0.2


@dataclass
class TextureConditionConfig:
    """Of the control stage, for a model with a texture branch (tool_add_control.py texture=true).

    dropout: chance that a pair's exemplar is left out, so that the model also works without.
    """

    dropout: float = 0.2


@dataclass
class SkullConditionConfig:
    """Of the control stage: dropout: chance that a pair's skull is left out, so that the model also works without.

    What is left draws the face: landmarks, texture and text, or the text alone.
    """

    dropout: float = 0.0


@dataclass
class LossesConfig:
    """Of the control stage: losses of the face that the predicted clean latent decodes to, beside the noise loss.

    gan, fm, lm: realism (LSGAN), feature matching in the discriminator, landmarks; 0 switches a term off.
    by: "ratio": they say how large the norm of the term's gradient on the control network is to be, relative to the
    noise loss's; the weights follow from measurement. "weight": they are the weights.
    noise: weight of the noise loss. ramp_steps: over which gan, fm and lm rise to what they are.
    min_t, max_t: only samples whose t is within are decoded. sub_batch: at most so many of a micro-batch, drawn.
    chunk: of these at a time; it changes memory and nothing else. recompute: of the decoder, compute activations a
    second time in the backward pass instead of keeping them.
    real: what a face is compared with, the "picture" or the true latent "decoded" as well: so nothing is
    asked of the control network that the frozen autoencoder cannot draw.
    pipnet: file of the frozen network that reads landmarks off faces. measure_every: steps between measurements of the
    gradients' norms (and in the first ones, until each was seen a few times); 0: none, with by=weight.
    """

    gan: float = 0.0
    fm: float = 0.0
    lm: float = 0.0
    by: str = "ratio"
    noise: float = 1.0
    ramp_steps: int = 0
    min_t: int = 0
    max_t: int = 500
    sub_batch: int = 4
    chunk: int = 4
    recompute: bool = True
    real: str = "decoded"
    pipnet: str = "models/demo/pipnet_face.safetensors"
    measure_every: int = 50
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)

    @property
    def on(self) -> bool:
        """Whether any face is decoded."""
        return bool(self.gan or self.fm or self.lm)

    @property
    def wanted(self) -> dict[str, float]:
        """Ratio or weight of each term that is on."""
        terms = {"gan": self.gan, "fm": self.fm, "lm": self.lm}
        return {name: value for name, value in terms.items() if value}

    def validate(self) -> None:
        """Raises: ValueError naming the field, what was got and what is expected."""
        checks = [
            *(
                (0 <= getattr(self, key) < math.inf, key, getattr(self, key), "0 (off) or a positive number")
                for key in ("gan", "fm", "lm")
            ),
            (0 < self.noise < math.inf, "noise", self.noise, "a positive number"),
            (self.by in ("ratio", "weight"), "by", self.by, "ratio or weight"),
            (self.real in ("decoded", "picture"), "real", self.real, "decoded or picture"),
            (self.ramp_steps >= 0, "ramp_steps", self.ramp_steps, "0 or more"),
            (0 <= self.min_t <= self.max_t, "min_t", self.min_t, f"0 to max_t={self.max_t}"),
            *(
                (getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
                for key in ("sub_batch", "chunk")
            ),
            (
                self.measure_every >= (1 if self.by == "ratio" else 0),
                "measure_every",
                self.measure_every,
                "at least 1 with by=ratio" if self.by == "ratio" else "0 (never) or more",
            ),
        ]
        for good, key, got, expected in checks:
            if not good:
                raise ValueError(f"{key}: got {got!r}, expected {expected}")
        try:
            self.discriminator.validate(in_channels=6)  # skull and face
        except ValueError as error:
            raise ValueError(f"discriminator.{error}") from error


@dataclass
class PartialSkullConfig:
    """Of the control stage: skulls of which bone is missing, so that a damaged skull still gives a face.

    share: of the training skulls. regions: which part then, each as often (mandible, vault, left, right).
    """

    share: float = 0.0
    regions: list[str] = field(default_factory=lambda: list(REGIONS))


@dataclass
class Pix2PixStageConfig:
    """Of the pix2pix stage, a baseline that needs no 'model:'. Loss of the generator: gan_weight LSGAN + l1_weight L1.

    generator, discriminator: the architectures. discriminator_optim: of its own optimizer; ``optim`` is the
    generator's. Source: arXiv 1611.07004, eq. 4; the squares in place of its logarithms are arXiv 1611.04076's.
    """

    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: PatchGanConfig = field(default_factory=PatchGanConfig)
    discriminator_optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=2e-4, weight_decay=0.0, beta1=0.5, ema_decay=0.0)
    )
    l1_weight: float = 100.0
    gan_weight: float = 1.0

    def validate(self) -> None:
        """Raises: ValueError naming the field, what was got and what is expected."""
        for key in ("l1_weight", "gan_weight"):
            if not 0 <= getattr(self, key) < math.inf:
                raise ValueError(f"{key}: got {getattr(self, key)!r}, expected 0 or a positive number")
        if self.discriminator.in_channels != 6:
            raise ValueError(
                f"discriminator.in_channels: got {self.discriminator.in_channels}, expected 6, of skull and face"
            )
        if not 0 < self.discriminator_optim.lr < math.inf:
            raise ValueError(
                f"discriminator_optim.lr: got {self.discriminator_optim.lr!r}, expected a positive number"
            )
        for part, settings in (("generator", self.generator), ("discriminator", self.discriminator)):
            try:
                settings.validate()
            except ValueError as error:
                raise ValueError(f"{part}.{error}") from error


@dataclass
class ExperimentConfig:
    """One training run.

    stage: autoencoder, base, control, pipnet or pix2pix. name: the run's folder below ``out``.
    init: checkpoint to start from (none: fresh weights). how_to_get_init: what to tell a user who lacks it.
    model: the architecture; with ``init`` it may be left out, the file carries it.
    """

    stage: str = MISSING
    name: str = MISSING
    out: str = "runs"
    init: str | None = None
    how_to_get_init: str = ""
    resume: bool = True
    model: ModelConfig | None = None
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    autoencoder: AutoencoderStageConfig = field(default_factory=AutoencoderStageConfig)
    diffusion: DiffusionStageConfig = field(default_factory=DiffusionStageConfig)
    skull: SkullConditionConfig = field(default_factory=SkullConditionConfig)
    landmarks: LandmarkConditionConfig = field(default_factory=LandmarkConditionConfig)
    texture: TextureConditionConfig = field(default_factory=TextureConditionConfig)
    losses: LossesConfig = field(default_factory=LossesConfig)
    partial: PartialSkullConfig = field(default_factory=PartialSkullConfig)
    pipnet: PipNetStageConfig = field(default_factory=PipNetStageConfig)
    pix2pix: Pix2PixStageConfig = field(default_factory=Pix2PixStageConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    @property
    def run_dir(self) -> Path:
        """Folder of everything the run writes."""
        return Path(self.out) / self.name

    def validate(self) -> None:
        """Raises ConfigError for values that no run could use."""
        train, optim, dropout = self.train, self.optim, self.diffusion.prompt_dropout
        positive = {
            "train.max_steps": train.max_steps,
            "train.batch_size": train.batch_size,
            "train.accumulate": train.accumulate,
            "train.val_every": train.val_every,
            "train.save_every": train.save_every,
            "train.keep_best": train.keep_best,
            "train.devices": train.devices,
            "optim.lr": optim.lr,
            "diffusion.max_loss_weight": self.diffusion.max_loss_weight,
        }
        schedules = ("constant", "cosine")
        checks = [
            (self.stage in STAGES, "stage", self.stage, f"one of {', '.join(STAGES)}"),
            (
                train.precision in PRECISIONS,
                "train.precision",
                train.precision,
                f"one of {', '.join(PRECISIONS)}",
            ),
            (
                train.export_dtype in EXPORT_DTYPES,
                "train.export_dtype",
                train.export_dtype,
                f"one of {', '.join(EXPORT_DTYPES)}",
            ),
            (
                self.diffusion.loss_weighting in LOSS_WEIGHTINGS,
                "diffusion.loss_weighting",
                self.diffusion.loss_weighting,
                f"one of {', '.join(LOSS_WEIGHTINGS)}",
            ),
            (train.export in ("best", "last"), "train.export", train.export, "best or last"),
            *((value > 0, key, value, "a positive number") for key, value in positive.items()),
            (bool(self.name.strip()), "name", self.name, "a name for the run's folder"),
            (math.isfinite(optim.lr), "optim.lr", optim.lr, "a finite number"),
            (optim.clip_norm >= 0, "optim.clip_norm", optim.clip_norm, "0 (no limit) or more"),
            (0 <= train.seed < 2**31, "train.seed", train.seed, "0 or a positive number below 2^31"),
            (train.save_minutes >= 0, "train.save_minutes", train.save_minutes, "0 (none) or minutes"),
            (train.log_every >= 0, "train.log_every", train.log_every, "0 or more"),
            (self.watch.max_skipped >= 0, "watch.max_skipped", self.watch.max_skipped, "0 or more"),
            (
                math.isfinite(self.memory.card) and self.memory.card >= 0,
                "memory.card",
                self.memory.card,
                "a card's memory in GB, or 0 (no plan)",
            ),
            (self.data.num_workers >= 0, "data.num_workers", self.data.num_workers, "0 or more"),
            (optim.warmup_steps >= 0, "optim.warmup_steps", optim.warmup_steps, "0 or more"),
            (train.num_valid > 1, "train.num_valid", train.num_valid, "at least 2"),
            (optim.schedule in schedules, "optim.schedule", optim.schedule, " or ".join(schedules)),
            (0 <= optim.ema_decay < 1, "optim.ema_decay", optim.ema_decay, "a number in [0, 1)"),
            (0 <= dropout <= 1, "diffusion.prompt_dropout", dropout, "a number in [0, 1]"),
            *(
                (0 <= value <= 1, key, value, "a number in [0, 1]")
                for key, value in (
                    ("landmarks.known_share", self.landmarks.known_share),
                    ("landmarks.dropout", self.landmarks.dropout),
                    ("texture.dropout", self.texture.dropout),
                    ("skull.dropout", self.skull.dropout),
                    ("partial.share", self.partial.share),
                )
            ),
            (
                bool(self.partial.regions) and set(self.partial.regions) <= set(REGIONS),
                "partial.regions",
                list(self.partial.regions),
                f"some of {', '.join(REGIONS)}",
            ),
            (
                self.init or self.model or self.stage in WITHOUT_MODEL,
                "init",
                None,
                "a checkpoint, or a 'model:' to start afresh",
            ),
            (
                self.model is None or self.stage not in WITHOUT_MODEL,
                "model",
                "an architecture",
                f"none: the {self.stage} stage's stands under {self.stage}:",
            ),
            (
                self.stage == "control" or not self.losses.on,
                "losses",
                self.losses.wanted,
                f"none: stage {self.stage} decodes no faces, only control does",
            ),
            (self.stage != "control" or self.init, "init", None, "a checkpoint made by tool_add_control.py"),
        ]
        for good, key, got, expected in checks:
            if not good:
                raise ConfigError(f"{key}: got {got!r}, expected {expected}")
        parts = {
            "pipnet": self.pipnet,
            "losses": self.losses,
            "pix2pix": self.pix2pix,
            "autoencoder": self.autoencoder,
        }
        for part, settings in parts.items():
            try:
                settings.validate()
            except ValueError as error:
                raise ConfigError(f"{part}.{error}") from error
        try:
            self.sampling.validate()
            if self.model is not None:
                self.model.validate()
        except ValueError as error:
            raise ConfigError(str(error)) from error


def load_experiment(arguments: Sequence[str]) -> ExperimentConfig:
    """The configuration of a command line ``CONFIG.yaml [key=value ...]``, checked.

    Raises:
        ConfigError: missing file, an unknown key, a wrong type or value; the message names the key.
    """
    cfg = parse_command_line(ExperimentConfig, arguments)
    cfg.validate()
    return cfg
