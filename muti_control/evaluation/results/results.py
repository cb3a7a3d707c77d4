"""The results of an evaluation: the content of ``metrics.json``, as frozen pydantic dataclasses.

``metrics.json`` is a file format: one object whose keys are the attributes of :class:`Evaluation`, nested as these
classes are; ``results_file.py`` writes and reads it. Rules that hold everywhere in it:

- **No NaN.** What was not measured is ``null`` (None), and every figure says on how many probes it rests.
- **Per probe.** ``ranks``, ``values`` and the like have one entry per entry of ``Evaluation.probes``, in that order,
  null where that probe was not measured. That is what lets two runs be compared probe by probe.
- **Fractions, not per cent.** Rank-k, mAP, MRR, coverage and shares lie in [0, 1].
- **Intervals** are percentile intervals at ``Protocol.confidence`` over probes drawn with replacement, gallery fixed; a
  share of 0 or 1 has the exact (Clopper-Pearson) one instead, since probes that agree say nothing by being redrawn.
- **Pictures** are named by paths relative to the folder of ``metrics.json``, with ``/``.
- A file of another ``version`` is refused. The version rises with every change that an old reader would misread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

NAME = "iccr-diff evaluation"
VERSION = 1
METRICS, REPORT = "metrics.json", "report.html"  # their names in a results folder

MethodKind = Literal["model", "folder", "baseline", "control", "ceiling", "limit"]
CaseKind = Literal["best", "median", "worst"]
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, config=_STRICT)
class Figure:
    """One measured number.

    Attributes:
        value: the estimate.
        low, high: its interval; None where none can be had (e.g. a KID of one set, or fewer than two probes).
        n: probes (or pairs) it rests on.
    """

    value: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, config=_STRICT)
class Curve:
    """``value`` over ``x`` (increasing whole numbers: ranks, or faces drawn), each with its interval."""

    x: tuple[int, ...]
    value: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True, config=_STRICT)
class HashedFile:
    """A file that was read. path: as the user named it; sha256: in hex."""

    path: str
    sha256: str


@dataclass(frozen=True, config=_STRICT)
class Subject:
    """What was evaluated.

    Attributes:
        kind: ``model`` (weights of ours), ``folder`` (pictures made elsewhere) or ``baselines`` (neither).
        name: how the report calls it, e.g. ``iccr_demo``.
        files: weights, mapping, and whatever else defines it.
        details: more for the reader, e.g. training step, resolution, number of pictures.
    """

    kind: Literal["model", "folder", "baselines"]
    name: str
    files: tuple[HashedFile, ...]
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, config=_STRICT)
class Probe:
    """One skull of the test split that faces were reconstructed from.

    Attributes:
        name: unique in the run (the name of the skull picture); subject: the person.
        skull_sha256, truth_sha256: of the picture files; they decide whether two runs have the same probes.
        sex: ``male`` or ``female``; age in years; body_mass: level 1-5.
        groups: attribute -> group for the breakdown, e.g. ``{"sex": "female", "age": "30 to 49"}``.
        ood: out-of-distribution score of its skull; None where it was not measured.
    """

    name: str
    subject: str
    skull_sha256: str
    truth_sha256: str
    sex: str
    age: float
    ethnicity: str
    body_mass: int
    groups: Mapping[str, str]
    ood: float | None = None


@dataclass(frozen=True, config=_STRICT)
class Recogniser:
    """A judge of identity.

    Attributes:
        name: its key everywhere else, e.g. ``descriptor``; label: for the reader, e.g. ``dlib descriptor``.
        distance: what its distance is, in words with unit, e.g. ``Euclidean, 128 numbers``.
        note: a sentence on what it can and cannot judge; may be empty.
        identity: versions, settings and hashes that its figures depend on.
        gallery_sha256: of the gallery's subjects and picture contents, in order.
    """

    name: str
    label: str
    distance: str
    note: str
    identity: Mapping[str, Any]
    gallery_sha256: str


@dataclass(frozen=True, config=_STRICT)
class Measure:
    """A measure on pictures, or of diversity, edits or sensitivity: what a number of that name means.

    name: its key; unit: e.g. ``dB``, ``px``, ``degrees``, or empty; better: ``higher``, ``lower``, or empty where
    neither is; decimals: how many to print; note: how it is computed, in a sentence.
    """

    name: str
    label: str
    unit: str
    better: str
    decimals: int
    note: str


@dataclass(frozen=True, config=_STRICT)
class Protocol:
    """How it was measured.

    Attributes:
        preset: ``quick``, ``full`` or ``custom``.
        split: name of the test split; manifests: the split files with their hashes.
        num_training: training subjects the baselines learnt from.
        gallery_size: faces in the gallery; gallery_subjects: whose, in the order of the descriptors.
        confidence: of every interval, e.g. 0.95; bootstrap: draws of probes.
        seed: of every draw; sampling: settings of the model's sampler (empty where nothing was sampled).
        config: every setting of the run.  cohort: content of ``cohort.json``, else empty.
        remarks: sentences on what this run left out or did otherwise than the protocol.
    """

    preset: str
    split: str
    manifests: tuple[HashedFile, ...]
    num_training: int
    gallery_size: int
    gallery_subjects: tuple[str, ...]
    confidence: float
    bootstrap: int
    seed: int
    sampling: Mapping[str, Any]
    config: Mapping[str, Any]
    cohort: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, config=_STRICT)
class GroupFigures:
    """Figures of the probes of one group, e.g. attribute ``sex``, group ``female``."""

    attribute: str
    group: str
    rank1: Figure
    rank5: Figure
    mrr: Figure


@dataclass(frozen=True, config=_STRICT)
class Identification:
    """How well one method's faces are found by one recogniser. ``summary.identification`` makes it from ranks.

    Attributes:
        ranks: place of the true face among the gallery, 1 the nearest, per probe; ties count against it.
        distances: distance to the true face, per probe.
        excluded: probes from whose gallery one face was taken out (the donor of a swapped skull).
        missed: probes in whose face the recogniser found none; each counts with the last rank.
        rank1, rank5, rank10, mean_average_precision, mean_reciprocal_rank, mean_rank: over probes.
        distance: mean distance to the true face.
        other_distance: mean distance to the rest of the gallery; None where it was not measured.
        cmc: share of probes found within rank x.
        groups: the same for parts of the probes.
    """

    ranks: tuple[int | None, ...]
    distances: tuple[float | None, ...] | None
    excluded: int
    missed: int
    rank1: Figure
    rank5: Figure
    rank10: Figure
    mean_average_precision: Figure
    mean_reciprocal_rank: Figure
    mean_rank: Figure
    distance: Figure | None
    other_distance: Figure | None
    cmc: Curve
    groups: tuple[GroupFigures, ...]


@dataclass(frozen=True, config=_STRICT)
class Measured:
    """One measure of one method: the figure, and its value per probe (None where it has none, as KID)."""

    figure: Figure
    values: tuple[float | None, ...] | None = None


@dataclass(frozen=True, config=_STRICT)
class Method:
    """One way of getting a face.

    Attributes:
        name: its key everywhere else, e.g. ``ridge``; label: for tables, e.g. ``PCA + ridge``.
        kind: ``model`` and ``folder`` are what is evaluated; a ``control`` is the model told
            something wrong or less; a ``ceiling`` knows the true face's bone; a ``limit`` is the true face itself,
            e.g. through the autoencoder or in another pose.
        note: one sentence that says what the face is and what it was told.
        identification: recogniser's name -> figures; empty where it has no faces to recognise.
        pictures: measure's name -> figures against the true face.
        seconds: of making its faces; None where it was not timed.
    """

    name: str
    label: str
    kind: MethodKind
    note: str
    identification: Mapping[str, Identification]
    pictures: Mapping[str, Measured] = field(default_factory=dict)
    seconds: float | None = None


@dataclass(frozen=True, config=_STRICT)
class NotRun:
    """A method or measure that the protocol asks for and this run has not, with the reason in a sentence."""

    name: str
    label: str
    reason: str


@dataclass(frozen=True, config=_STRICT)
class Coverage:
    """Is the true face within the best of k reconstructions? One recogniser, one definition of a hit.

    Attributes:
        recogniser: its name; within: a draw is a hit where its rank is at most this.
        draws: K, faces drawn per probe.
        probes: indices into ``Evaluation.probes`` of the probes drawn for (often a part of them).
        curves: method's name -> chance of at least one hit in k of the K draws, k = 1 .. K, averaged over probes.
            It holds the method and its control with swapped skulls.
        hits: method's name -> hits among the K draws, per entry of ``probes``.
        together: method's name -> share of probes that k draws find together, k = 1 .. K: the rank is by the mean of
            their distances to each face of the gallery. Empty in files from before there was this.
        ranks_together: method's name -> rank by all K draws, per entry of ``probes``.
    """

    recogniser: str
    within: int
    draws: int
    probes: tuple[int, ...]
    curves: Mapping[str, Curve]
    hits: Mapping[str, tuple[int, ...]]
    together: Mapping[str, Curve] = field(default_factory=dict)
    ranks_together: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, config=_STRICT)
class Diversity:
    """How far the faces drawn for one skull lie apart. measures: measure's name -> mean over pairs of draws."""

    method: str
    draws: int
    measures: Mapping[str, Measured]


@dataclass(frozen=True, config=_STRICT)
class EditPicture:
    """One row of the edit grid: the reconstruction before and after the edit, and the same of the true person."""

    probe: int
    before: str
    after: str
    true_before: str | None
    true_after: str | None
    caption: str


@dataclass(frozen=True, config=_STRICT)
class Edit:
    """One kind of edit of one method, against true variants of the same people.

    Attributes:
        method: its name; name: e.g. ``body_mass+2``; label: e.g. ``body mass two levels up``.
        space: what the change is measured in, e.g. ``dlib's 68 points, similarity-aligned, px``.
        projection: component of the predicted change along the true change, in units of the true change; 1 is right.
            Pairs are weighted by the square of their true change, so that a person who truly hardly changed does not
            count like one who did.
        angle: between the two changes, degrees; 90 is unrelated; None where no face changed at all.
        true_size, predicted_size: length of the changes, in the unit of ``space``.
        kept: share of edited faces nearer to their own person's true face than to any other of the gallery; None
            without a recogniser.  kept_before: the same before the edit, on the same probes.
        probes: indices into ``Evaluation.probes``; projections, true_sizes: one per entry of them.
        pictures: some examples.
    """

    method: str
    name: str
    label: str
    space: str
    projection: Figure
    angle: Figure | None
    true_size: Figure
    predicted_size: Figure
    kept: Figure | None
    kept_before: Figure | None
    probes: tuple[int, ...]
    projections: tuple[float | None, ...]
    true_sizes: tuple[float, ...]
    pictures: tuple[EditPicture, ...] = ()


@dataclass(frozen=True, config=_STRICT)
class Sensitivity:
    """How much a method's faces change with one of its conditions, all else (noise included) being equal.

    condition: e.g. ``skull``, ``sex``, ``body_mass``; change: what was done to it, e.g. ``another person's``;
    measures: measure's name -> size of the change of the face.
    """

    method: str
    condition: str
    change: str
    measures: Mapping[str, Measured]


@dataclass(frozen=True, config=_STRICT)
class OutOfDistribution:
    """How unlike the training skulls each probe's skull is; the scores are ``Probe.ood``.

    Attributes:
        score: what the score is, in words; it grows with the unlikeness.
        threshold: a skull above it is flagged; rule: how the threshold was chosen, in words.
        num_reference: skulls (not of the probes) whose scores the histogram shows.
        edges: (B + 1,) of the histogram's bins, increasing; reference: (B,) shares of those skulls, sum at most 1.
    """

    score: str
    threshold: float
    rule: str
    num_reference: int
    edges: tuple[float, ...]
    reference: tuple[float, ...]


@dataclass(frozen=True, config=_STRICT)
class CasePicture:
    """One picture of a case. role: ``skull``, ``reconstruction``, ``truth``, ``nearest`` (the gallery face most like
    the reconstruction) or a method's name; caption: a few words below it, may be empty."""

    role: str
    label: str
    path: str
    caption: str = ""


@dataclass(frozen=True, config=_STRICT)
class ShownCase:
    """One probe in pictures. kind: best, median or worst by the rank of ``method`` under ``recogniser``."""

    kind: CaseKind
    probe: int
    method: str
    recogniser: str
    rank: int
    distance: float | None
    pictures: tuple[CasePicture, ...]


@dataclass(frozen=True, config=_STRICT)
class Evaluation:
    """One run of ``evaluate.py``: the whole of ``metrics.json``.

    Attributes:
        name, version: of the format.
        notice: what the reader must know before anything else.
        title: of the report; date: ISO 8601, UTC; command: what repeats the run; seconds: it took.
        environment: versions and machine, as in ``record.json`` of a sampling run.
        methods: in the order of the table; probes, recognisers, measures: what their names refer to.
    """

    title: str
    date: str
    command: str
    seconds: float
    notice: str
    environment: Mapping[str, Any]
    subject: Subject
    protocol: Protocol
    probes: tuple[Probe, ...]
    recognisers: tuple[Recogniser, ...]
    measures: tuple[Measure, ...]
    methods: tuple[Method, ...]
    not_run: tuple[NotRun, ...] = ()
    coverage: tuple[Coverage, ...] = ()
    diversity: tuple[Diversity, ...] = ()
    edits: tuple[Edit, ...] = ()
    sensitivity: tuple[Sensitivity, ...] = ()
    ood: OutOfDistribution | None = None
    cases: tuple[ShownCase, ...] = ()
    name: str = NAME
    version: int = VERSION

    def method(self, name: str) -> Method | None:
        """The method of that name, or None."""
        return next((method for method in self.methods if method.name == name), None)

    def recogniser(self, name: str) -> Recogniser | None:
        """The recogniser of that name, or None."""
        return next((recogniser for recogniser in self.recognisers if recogniser.name == name), None)
