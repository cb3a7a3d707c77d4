"""The configuration of a training run: typed, composed, read from YAML and ``key=value`` overrides."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from cldm.config import SamplingConfig
from ldm.config import ModelConfig
from muti_control.conditions.config import (
    LandmarkConditionConfig,
    PartialSkullConfig,
    SkullConditionConfig,
    TextureConditionConfig,
)
from muti_control.losses.config import AutoencoderStageConfig, GrainStageConfig, LossesConfig
from muti_control.networks.config import (
    GuidanceDecoderStageConfig,
    MatchStageConfig,
    PipNetStageConfig,
    Pix2PixStageConfig,
)
from muti_control.optim import OptimConfig
from settings.base import Settings, Share, expect
from settings.messages import ConfigError

StageName = Literal[
    "autoencoder", "base", "control", "pipnet", "pix2pix", "guidance_decoder", "grain", "match"
]
WITHOUT_MODEL = (
    "pipnet",
    "pix2pix",
    "match",
)  # stages whose architecture stands in their own part of the config
FROM_INIT = {  # stages that need one, and of which kind
    "control": "a checkpoint made by tool_add_control.py",
    "guidance_decoder": "a checkpoint with the autoencoder whose decoder is to be imitated",
    "grain": "a checkpoint with the autoencoder whose faces are to get grain",
}


class DataConfig(Settings):
    """The training pairs."""

    root: str = "data"
    """Folder with pairedCS/ (pictures) and split_data/ (lists)."""
    train: str = "train.json"
    """Name of the training list in split_data."""
    valid: str = "valid.json"
    """Name of the validation list in split_data."""
    skull_folder: str | None = None
    """Name of the skulls' folder in pairedCS; null takes the usual names."""
    face_folder: str | None = None
    """Name of the faces' folder in pairedCS; null takes the usual names."""
    num_workers: Annotated[int, Field(ge=0, le=256)] = 0
    """Processes that read; 0 reads in the main process."""
    augment: Annotated[float, Field(ge=0, le=2)] = 0.0
    """Strength at which skulls (in the match stage faces too) are altered as users' pictures are; 1 is usual."""
    how_to_get: str = "python -m data.cohort OUT makes a synthetic cohort; then pass data.root=OUT"
    """The remedy that is printed where root is missing."""


class TrainConfig(Settings):
    """How long, how large, how often, and on what."""

    max_steps: PositiveInt = 1000
    """Optimizer steps."""
    batch_size: Annotated[int, Field(ge=1, le=2**16)] = 8
    """Pictures of a micro-batch, on each device."""
    accumulate: PositiveInt = 1
    """Micro-batches of a step."""
    val_every: PositiveInt = 500
    """Steps between validations, with pictures."""
    save_every: PositiveInt = 250
    """Steps between checkpoints."""
    save_minutes: NonNegativeFloat = 30.0
    """A checkpoint at least so often, minutes; 0 leaves it to save_every."""
    keep_best: PositiveInt = 3
    """Best validations whose weights are kept."""
    log_every: NonNegativeInt = 0
    """Steps between lines of the logs; 0 takes a tenth of val_every, at most 10."""
    num_valid: Annotated[int, Field(ge=2)] = 16
    """Validation pairs that are looked at."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the weights and of every batch."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto takes bf16 where that is faster, else fp32; fp16 is for older GPUs."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    devices: PositiveInt = 1
    """GPUs on this machine. Under torchrun and srun, as many as they start."""
    strategy: str = "auto"
    """auto is ddp where there are several devices."""
    logger: Literal["tensorboard", "csv", "wandb"] = "tensorboard"
    """Where the curves go beside the CSV files; wandb stays offline."""
    num_threads: NonNegativeInt = 0
    """Threads of torch on the CPU; 0 leaves it to torch."""
    export: Literal["best", "last"] = "best"
    """Which averaged weights are exported: those of the best validation or the last ones."""
    export_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Precision of the exported file."""

    @model_validator(mode="after")
    def _ddp_or_nothing(self) -> Self:
        why = "auto or ddp: others split the network, and its averages and checkpoints are of the whole one"
        expect(self.strategy in ("auto", "ddp"), "strategy", self.strategy, why)
        return self


class MemoryConfig(Settings):
    """What saves the GPU's memory in the control stage; configs/sd15 has one config each for 12, 24 and 80 GB."""

    recompute_control: bool = False
    """Compute its activations twice: less memory, an eighth more work."""
    recompute_unet: bool = False
    """The same for the frozen UNet's decoder: a quarter more work."""
    ema_on_cpu: bool = False
    """Keep the averaged weights in main memory; a copy at every step."""
    half_unet: bool = True
    """Hold a locked UNet in bf16, where training is bf16."""
    compile: bool = False
    """torch.compile the repeated blocks. The first steps then take minutes."""


class WatchConfig(Settings):
    """Limits at which a run warns or gives up."""

    max_skipped: NonNegativeInt = 10
    """Steps in a row that may be skipped for a gradient that is not finite; one more stops the run."""
    flat_effect: float = 0.01
    """Warn if another skull changes the predicted noise by less than this share."""
    flat_after: int = 1000
    """The step from which on flat_effect warns."""
    waiting_share: float = 0.2
    """Warn if the loader takes more than this share of the time."""


class DiffusionStageConfig(Settings):
    """The noise loss of the base and control stages."""

    prompt_dropout: Share = 0.1
    """Chance of the empty prompt, which classifier-free guidance needs."""
    loss_weighting: Literal["eps", "x0", "v"] = "eps"
    """Whose error counts alike at every t: that of the noise, x_0 or v."""
    max_loss_weight: PositiveFloat = 25.0
    """Largest weight with loss_weighting=x0."""
    train_text_encoder: bool = True
    """The base stage trains the text encoder as well."""
    unlocked: Literal["none", "decoder", "all"] = "none"
    """Part of the UNet that is trained too; decoder is sd_locked=False."""
    control_dropout: Share = 0.0
    """Chance that all these conditions are left out, for guidance over all."""


class ExperimentConfig(Settings):
    """One training run; its groups are in the order data, network, training, losses, sampling."""

    often = (
        "name", "init", "data.root", "train.max_steps", "train.batch_size", "train.accumulate", "train.precision",
        "train.devices", "optim.lr", "sampling.steps",
    )  # fmt: skip

    stage: StageName
    """What is trained."""
    name: str
    """The run's folder below out."""
    out: str = "runs"
    """Folder of all runs."""
    init: str | None = None
    """Checkpoint to start from; null means fresh weights."""
    how_to_get_init: str = ""
    """The remedy that is printed where init is missing."""
    resume: bool = True
    """Continue the run that is there."""
    data: DataConfig = DataConfig()
    skull: SkullConditionConfig = SkullConditionConfig()
    landmarks: LandmarkConditionConfig = LandmarkConditionConfig()
    texture: TextureConditionConfig = TextureConditionConfig()
    partial: PartialSkullConfig = PartialSkullConfig()
    model: ModelConfig | None = None
    """The architecture; null takes that of init."""
    pipnet: PipNetStageConfig = PipNetStageConfig()
    pix2pix: Pix2PixStageConfig = Pix2PixStageConfig()
    guidance_decoder: GuidanceDecoderStageConfig = GuidanceDecoderStageConfig()
    train: TrainConfig = TrainConfig()
    optim: OptimConfig = OptimConfig()
    memory: MemoryConfig = MemoryConfig()
    watch: WatchConfig = WatchConfig()
    diffusion: DiffusionStageConfig = DiffusionStageConfig()
    losses: LossesConfig = LossesConfig()
    autoencoder: AutoencoderStageConfig = AutoencoderStageConfig()
    grain: GrainStageConfig = GrainStageConfig()
    match: MatchStageConfig = MatchStageConfig()
    sampling: SamplingConfig = SamplingConfig()

    @property
    def run_dir(self) -> Path:
        """Folder of everything the run writes."""
        return Path(self.out) / self.name

    @property
    def _reads_skulls(self) -> bool:
        return self.stage in ("control", "match") or (self.stage == "pipnet" and self.pipnet.role == "skull")

    def _of_one_stage(self) -> list[tuple[str, str, object]]:
        """Return the settings that one stage alone uses, off by default: that stage, the key, the value."""
        return [
            ("control", "losses", self.losses.terms),
            (self.stage if self._reads_skulls else "control", "partial.share", self.partial.share),
            (self.stage if self._reads_skulls else "control", "data.augment", self.data.augment),
            ("control", "skull.dropout", self.skull.dropout),
            ("control", "diffusion.control_dropout", self.diffusion.control_dropout),
            (
                "control",
                "diffusion.unlocked",
                "" if self.diffusion.unlocked == "none" else self.diffusion.unlocked,
            ),
            ("control", "landmarks.predicted", list(self.landmarks.predicted)),
            ("autoencoder", "autoencoder.gan", self.autoencoder.gan),
            ("autoencoder", "autoencoder.texture_weight", self.autoencoder.texture_weight),
        ]

    @model_validator(mode="before")
    @classmethod
    def _drop_old_settings(cls, values: Any) -> Any:
        """Accept the config.yaml of an older run: settings that are gone, where they changed nothing."""
        memory, train = values.get("memory"), values.get("train")
        if not isinstance(memory, dict) or not isinstance(train, dict):
            return values
        nothing = {"card": 0, "batch_size": train.get("batch_size")}  # null was nothing everywhere
        rest = {k: x for k, x in memory.items() if x is not None and (k not in nothing or x != nothing[k])}
        return {**values, "memory": rest}

    @model_validator(mode="after")
    def _fits_the_stage(self) -> Self:
        stage, model = self.stage, "an architecture"
        expect(self.name.strip(), "name", self.name, "a name for the run's folder")
        expect(self.stage not in FROM_INIT or self.init, "init", None, FROM_INIT.get(stage, ""))
        fresh = self.init or self.model or stage in WITHOUT_MODEL
        expect(fresh, "init", None, "a checkpoint, or a 'model:' to start afresh")
        expect(
            self.model is None or stage not in WITHOUT_MODEL,
            "model",
            model,
            f"none: it stands under {stage}:",
        )
        for owner, key, got in self._of_one_stage():
            part = key.split(".")[0]
            expect(stage == owner or not got, key, got, f"none: {part}.* belong to the {owner} stage")
        return self


def check_files(cfg: ExperimentConfig) -> None:
    """Raise ConfigError naming every missing file or folder and how to get it."""
    lacking = []
    if cfg.init is not None and not Path(cfg.init).is_file():
        lacking.append(f"init: {cfg.init} not found. {cfg.how_to_get_init}".strip())
    for name in (cfg.data.train, cfg.data.valid):
        manifest = Path(cfg.data.root) / "split_data" / name
        if not manifest.is_file():
            lacking.append(f"data.root: {manifest} not found. {cfg.data.how_to_get}".strip())
            break
    if cfg.losses.lm and not Path(cfg.losses.pipnet).is_file():
        lacking.append(
            f"losses.pipnet: {cfg.losses.pipnet} not found; train.py configs/demo/pipnet_face.yaml makes one"
        )
    for part, on, init in (
        ("losses", cfg.losses.gan or cfg.losses.fm, cfg.losses.discriminator.init),
        ("autoencoder", cfg.autoencoder.gan, cfg.autoencoder.discriminator.init),
    ):
        if on and init is not None and not Path(init).is_file():
            lacking.append(f"{part}.discriminator.init: {init} not found; leave it out for a fresh one")
    if lacking:
        raise ConfigError("this run needs files that are not there:\n  " + "\n  ".join(lacking))
