"""The methods of the protocol: every way to get a face, named once."""

from __future__ import annotations

from dataclasses import dataclass

from muti_control.evaluation.results.results import MethodKind


@dataclass(frozen=True)
class MethodInfo:
    """name: its key everywhere. label: for tables. kind: as in ``results.Method``. note: what its face is."""

    name: str
    label: str
    kind: MethodKind
    note: str


_TABLE: tuple[tuple[str, str, MethodKind, str], ...] = (
    ("model", "model", "model", "The model, given the skull, sex, age level, body mass and ethnicity."),
    ("folder", "faces from elsewhere", "folder", "Pictures made by another program."),
    (
        "shuffled",
        "model, another's skull",
        "control",
        "The model, given the skull of another person of the same sex, age level, body mass and ethnicity, "
        "whose own face does not count. A model that ignores the skull does as well here as with the right one.",
    ),
    ("attributes", "model, no skull", "control", "The model with its skull control switched off."),
    (
        "permuted",
        "permuted labels",
        "control",
        "The faces of the evaluated method, each compared with another person's name: chance.",
    ),
    ("ridge", "PCA + ridge", "baseline", "Linear regression from skull picture and attributes to the face."),
    (
        "pix2pix",
        "Pix2Pix",
        "baseline",
        "One pass of a U-Net from the skull and the attributes, trained with L1 and a discriminator.",
    ),
    (
        "pix2pix_shuffled",
        "Pix2Pix, another's skull",
        "control",
        "Pix2Pix, given the skull of another person of the same group, whose own face does not count.",
    ),
    (
        "nearest",
        "nearest skull's face",
        "baseline",
        "The face of the training subject with the most similar skull.",
    ),
    (
        "group_mean",
        "mean face of the group",
        "baseline",
        "The mean training face of the same sex, age, body mass.",
    ),
    (
        "mean_face",
        "mean face",
        "baseline",
        "The mean of all training faces, without knowledge of the person.",
    ),
    (
        "ceiling",
        "ceiling: expected face",
        "ceiling",
        "The true bone under the soft tissue to be expected from the attributes, in the true face's surface "
        "style.",
    ),
    (
        "ceiling_neutral",
        "ceiling, neutral surface",
        "ceiling",
        "The same in the middle of all surface styles: neither skull nor attributes tell the true one.",
    ),
    (
        "ceiling_shuffled",
        "ceiling, another's skull",
        "control",
        "The ceiling face of another person of the same group, whose own face does not count.",
    ),
    (
        "autoencoder",
        "true face through the autoencoder",
        "limit",
        "The true face encoded and decoded by the model.",
    ),
    ("turned", "true face, turned", "limit", "Another view of the true face: the recogniser's own limit."),
)
METHODS = {row[0]: MethodInfo(*row) for row in _TABLE}
CEILINGS = ("ceiling", "ceiling_neutral")  # named as their lists of faces
OF_THE_MODEL = ("model", "shuffled", "attributes", "autoencoder")
OF_PIX2PIX = ("pix2pix", "pix2pix_shuffled")
OF_TRAINING = ("ridge", "nearest", "group_mean", "mean_face")
