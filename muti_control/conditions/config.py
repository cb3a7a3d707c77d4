"""Settings of the conditions in training: what is shown how often. Read by the control stage, and in part by pipnet."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from data.partial import REGIONS, Region
from settings.base import Settings, Share


class LandmarkConditionConfig(Settings):
    """How landmarks are shown in training, for a model with a landmark branch.

    predicted: files of landmarks that networks read off the skulls, of training and validation pairs.
    known_share: of the pairs that have known and predicted landmarks, how often the known ones are shown.
    dropout: chance that a pair's landmarks are left out, so that the model also works without.
    """

    predicted: list[str] = []
    known_share: Share = 0.5
    dropout: Share = 0.2


class TextureConditionConfig(Settings):
    """How exemplars are shown in training, for a model with a texture branch.

    dropout: chance that a pair's exemplar is left out, so that the model also works without.
    """

    dropout: Share = 0.2


class SkullConditionConfig(Settings):
    """How skulls are shown in training.

    dropout: chance that a pair's skull is left out, so that landmarks, texture and text, or the text alone, also
    draw a face.
    """

    dropout: Share = 0.0


class PartialSkullConfig(Settings):
    """Training skulls of which bone is missing, so that a damaged skull still gives a face and good landmarks.

    share: of the training skulls. regions: which part then, each as often (mandible, vault, left, right).
    """

    share: Share = 0.0
    regions: Annotated[list[Region], Field(min_length=1)] = list(REGIONS)
