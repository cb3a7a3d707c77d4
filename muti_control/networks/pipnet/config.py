"""Settings of the pipnet stage."""

from __future__ import annotations

from muti_control.networks.pipnet.augment import AugmentConfig
from muti_control.networks.pipnet.network import PipNetConfig
from muti_control.training.landmark_pairs import ROLES
from settings.base import Settings


class PipNetStageConfig(Settings):
    """Of the pipnet stage, which needs no 'model:'.

    role: "face" reads landmarks off faces, "skull" the face's landmarks off skulls.
    biometrics: (skull) let sex, age, body mass and ethnicity move the points. drop_biometrics: chance that a
    training picture comes without them, so that the network can do without as well.
    network: the architecture; num_landmarks and ethnicities are taken from the data and must be left out or agree.
    augment: how far training pictures are changed.
    eye_corners: the two points whose distance is the unit of the error; null: the outer corners, in known layouts.
    folds, fold: with folds=K the subjects of part ``fold`` (0 to K - 1) are left out of training; 0: none.
    """

    role: str = "face"
    biometrics: bool = True
    drop_biometrics: float = 0.1
    network: PipNetConfig = PipNetConfig()
    augment: AugmentConfig = AugmentConfig()
    eye_corners: list[int] | None = None
    folds: int = 0
    fold: int = 0

    def validate(self) -> None:
        """Raises: ValueError naming the field, what was got and what is expected."""
        corners = self.eye_corners
        checks = [
            (self.role in ROLES, "role", self.role, " or ".join(ROLES)),
            (0 <= self.drop_biometrics <= 1, "drop_biometrics", self.drop_biometrics, "a number in [0, 1]"),
            (corners is None or len(corners) == 2, "eye_corners", corners, "two indices, such as [66,79]"),
            (self.folds == 0 or self.folds >= 2, "folds", self.folds, "0 (none) or at least 2"),
            (0 <= self.fold < max(1, self.folds), "fold", self.fold, f"0 to {max(1, self.folds) - 1}"),
        ]
        for good, key, got, expected in checks:
            if not good:
                raise ValueError(f"{key}: got {got!r}, expected {expected}")
        for part, settings in (("network", self.network), ("augment", self.augment)):
            try:
                settings.validate()
            except ValueError as error:
                raise ValueError(f"{part}.{error}") from error
