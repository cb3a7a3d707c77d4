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
from muti_control.networks.config import GuidanceDecoderStageConfig, PipNetStageConfig, Pix2PixStageConfig
from muti_control.optim import OptimConfig
from settings.base import Settings, Share, expect
from settings.messages import ConfigError

StageName = Literal["autoencoder", "base", "control", "pipnet", "pix2pix", "guidance_decoder", "grain"]
WITHOUT_MODEL = ("pipnet", "pix2pix")  # stages whose architecture stands in their own part of the config
FROM_INIT = {  # stages that need one, and of which kind
    "control": "a checkpoint made by tool_add_control.py",
    "guidance_decoder": "a checkpoint with the autoencoder whose decoder is to be imitated",
    "grain": "a checkpoint with the autoencoder whose faces are to get grain",
}


class DataConfig(Settings):
    """Where the pairs are.

    root: folder with ``pairedCS/`` (pictures) and ``split_data/`` (manifests).
    train, valid: names of the manifests in ``split_data``.
    skull_folder, face_folder: names of the two folders in ``pairedCS``; null takes the usual names.
    num_workers: loader processes; 0 reads in the main process.
    augment: alter the training skulls as users' pictures are (place, turn, size, light, slices, grey levels, blur,
        noise, JPEG), at this strength; 1 takes the ranges of muti_control/conditions/altered.py. Faces and landmarks
        move along. The control stage encodes the moved faces at every step.
    how_to_get: the remedy, where ``root`` is missing.
    """

    root: str = "data"
    train: str = "train.json"
    valid: str = "valid.json"
    skull_folder: str | None = None
    face_folder: str | None = None
    num_workers: Annotated[int, Field(ge=0, le=256)] = 0
    augment: Annotated[float, Field(ge=0, le=2)] = 0.0
    how_to_get: str = "python -m data.cohort OUT makes a synthetic cohort; then pass data.root=OUT"


class TrainConfig(Settings):
    """How long, how large, how often.

    max_steps: optimizer steps. batch_size: pictures per device and micro-batch. accumulate: micro-batches per
    step. val_every, save_every: optimizer steps between validations (with pictures) and between checkpoints.
    save_minutes: a checkpoint at least so often, 0 for save_every alone. keep_best: how many of the best validations
    keep their weights. log_every: steps between lines of the logs, 0 for a tenth of val_every, at most 10.
    num_valid: validation pairs looked at. precision: auto is bf16-mixed where that is faster, else 32-true;
    16-mixed is for GPUs older than that. accelerator: as Lightning names them. devices: how many on this machine (under
    torchrun and srun as many as they start). strategy: auto is ddp where there are several. logger: tensorboard, wandb
    (offline) or csv alone; the CSV files are always written. num_threads: of torch on the CPU, 0 for its own choice.
    export: which averaged weights the exported file holds, those of the best validation or the last ones.
    export_dtype: precision of the weights in the exported file (float32, float16 or bfloat16).
    """

    max_steps: PositiveInt = 1000
    batch_size: Annotated[int, Field(ge=1, le=2**16)] = 8
    accumulate: PositiveInt = 1
    val_every: PositiveInt = 500
    save_every: PositiveInt = 250
    save_minutes: NonNegativeFloat = 30.0
    keep_best: PositiveInt = 3
    log_every: NonNegativeInt = 0
    num_valid: Annotated[int, Field(ge=2)] = 16
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    accelerator: str = "auto"
    devices: PositiveInt = 1
    strategy: str = "auto"
    logger: Literal["tensorboard", "csv", "wandb"] = "tensorboard"
    num_threads: NonNegativeInt = 0
    export: Literal["best", "last"] = "best"
    export_dtype: Literal["float32", "float16", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _ddp_or_nothing(self) -> Self:
        why = "auto or ddp: others split the network, and its averages and checkpoints are of the whole one"
        expect(self.strategy in ("auto", "ddp"), "strategy", self.strategy, why)
        return self


class MemoryConfig(Settings):
    """What saves the GPU's memory in the control stage; configs/sd15 has one config each for 12, 24 and 80 GB.

    recompute_control, recompute_unet: compute the activations of the control network, or of the frozen UNet's decoder,
    a second time in the backward pass instead of keeping them: about an eighth, or a quarter, more work.
    ema_on_cpu: keep the averaged weights in main memory; costs a copy of the weights at every step.
    half_unet: hold the UNet in bf16 where it is locked and training is bf16-mixed; the exported file has its weights
    as they came. compile: torch.compile the repeated blocks; the first steps then take minutes.
    """

    recompute_control: bool = False
    recompute_unet: bool = False
    ema_on_cpu: bool = False
    half_unet: bool = True
    compile: bool = False


class WatchConfig(Settings):
    """Limits at which a run warns or gives up.

    max_skipped: so many steps in a row may be skipped because their gradient is not finite; one more stops the run.
    flat_effect, flat_after: from step flat_after on, warn if another person's skull changes the predicted noise by less
    than the share flat_effect. waiting_share: warn if the loader takes more than this share of the time.
    """

    max_skipped: NonNegativeInt = 10
    flat_effect: float = 0.01
    flat_after: int = 1000
    waiting_share: float = 0.2


class DiffusionStageConfig(Settings):
    """The diffusion loss of the base and control stages.

    prompt_dropout: chance that the empty prompt replaces a prompt; classifier-free guidance needs it.
    train_text_encoder: the base stage trains the text encoder as well.
    loss_weighting: "eps" weighs the noise error alike at every t; "x0" turns it into the error of the clean latent,
    min(1 / SNR(t), max_loss_weight) times as much, and so towards the noisy steps, where the skull decides; "v" into
    the error of v, 1 / abar(t) times as much.
    unlocked: the part of the UNet that the control stage trains as well: none, its decoder half (the public
    ControlNet's sd_locked=False), or all of it.
    control_dropout: chance that skull, landmarks and texture of a pair are left out together. Guidance over all of them
    needs the UNet's prediction without them, which an unlocked UNet forgets if it trains on no such pairs.
    """

    prompt_dropout: Share = 0.1
    loss_weighting: Literal["eps", "x0", "v"] = "eps"
    max_loss_weight: PositiveFloat = 25.0
    train_text_encoder: bool = True
    unlocked: Literal["none", "decoder", "all"] = "none"
    control_dropout: Share = 0.0


class ExperimentConfig(Settings):
    """One training run.

    stage: autoencoder, base, control, pipnet, pix2pix, guidance_decoder or grain. name: the run's folder below ``out``.
    init: checkpoint to start from (none: fresh weights). how_to_get_init: the remedy, where that file is missing.
    model: the architecture; with ``init`` it may be left out, the file carries it.
    """

    stage: StageName
    name: str
    out: str = "runs"
    init: str | None = None
    how_to_get_init: str = ""
    resume: bool = True
    model: ModelConfig | None = None
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    optim: OptimConfig = OptimConfig()
    watch: WatchConfig = WatchConfig()
    memory: MemoryConfig = MemoryConfig()
    autoencoder: AutoencoderStageConfig = AutoencoderStageConfig()
    diffusion: DiffusionStageConfig = DiffusionStageConfig()
    skull: SkullConditionConfig = SkullConditionConfig()
    landmarks: LandmarkConditionConfig = LandmarkConditionConfig()
    texture: TextureConditionConfig = TextureConditionConfig()
    losses: LossesConfig = LossesConfig()
    partial: PartialSkullConfig = PartialSkullConfig()
    pipnet: PipNetStageConfig = PipNetStageConfig()
    pix2pix: Pix2PixStageConfig = Pix2PixStageConfig()
    guidance_decoder: GuidanceDecoderStageConfig = GuidanceDecoderStageConfig()
    grain: GrainStageConfig = GrainStageConfig()
    sampling: SamplingConfig = SamplingConfig()

    @property
    def run_dir(self) -> Path:
        """Folder of everything the run writes."""
        return Path(self.out) / self.name

    @property
    def _reads_skulls(self) -> bool:
        return self.stage == "control" or (self.stage == "pipnet" and self.pipnet.role == "skull")

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
