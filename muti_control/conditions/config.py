"""Settings of the conditions in training: what is shown how often. Read by the control stage, and in part by pipnet."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from data.partial import REGIONS, Region
from settings.base import Settings, Share


class LandmarkConditionConfig(Settings):
    """Landmarks in training, for a model with a landmark branch."""

    predicted: list[str] = []
    """Files of landmarks that networks read off the skulls, of training and validation pairs."""
    known_share: Share = 0.5
    """How often the known landmarks are shown, where a pair has known and predicted ones."""
    dropout: Share = 0.2
    """Chance that a pair's landmarks are left out, so that the model also works without."""


class TextureConditionConfig(Settings):
    """Exemplars of the skin in training, for a model with a texture branch."""

    dropout: Share = 0.2
    """Chance that a pair's exemplar is left out, so that the model also works without."""


class SkullConditionConfig(Settings):
    """Skulls in training."""

    dropout: Share = 0.0
    """Chance that the skull is left out, so that the rest also draws a face."""


class PartialSkullConfig(Settings):
    """Training skulls of which bone is missing, so that a damaged skull still gives a face and good landmarks."""

    share: Share = 0.0
    """Share of the training skulls that lose a part."""
    regions: Annotated[list[Region], Field(min_length=1)] = list(REGIONS)
    """Which part then, each as often."""
