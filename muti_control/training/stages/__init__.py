"""The training stages: one class and one module each."""

from collections.abc import Callable

import torch

from muti_control.training.config import ExperimentConfig
from muti_control.training.stage import Stage
from muti_control.training.stages.autoencoder import AutoencoderStage
from muti_control.training.stages.base import BaseStage
from muti_control.training.stages.control import ControlStage
from muti_control.training.stages.grain import GrainStage
from muti_control.training.stages.guidance_decoder import GuidanceDecoderStage
from muti_control.training.stages.match import MatchStage
from muti_control.training.stages.pipnet import PipStage
from muti_control.training.stages.pix2pix import Pix2PixStage

# Each builds network and data of its stage; the device is where latents and texts are computed.
BUILDERS: dict[str, Callable[[ExperimentConfig, torch.device], Stage]] = {
    "autoencoder": AutoencoderStage.build,
    "base": BaseStage.build,
    "control": ControlStage.build,
    "grain": GrainStage.build,
    "guidance_decoder": GuidanceDecoderStage.build,
    "match": MatchStage.build,
    "pipnet": PipStage.build,
    "pix2pix": Pix2PixStage.build,
}
