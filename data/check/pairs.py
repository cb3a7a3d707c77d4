"""Checks of a skull beside its face: alignment, mirroring, and whether they belong together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data.check.dataset import DataSet, ListLine
from data.check.flaws import Flaw
from data.check.measure import SIZE, THUMB, PairFacts, PictureFacts
from data.check.statistics import MIN_PICTURES, in_blocks, limit, outliers, principal_axes

MIN_PAIRS = 150  # fewer do not teach which face belongs to which skull
_OUTSIDE = 0.01  # share of the bone
_SKULL_AXES, _FACE_AXES = 100, 60
_FOLDS = 5
_UNLIKELY = -25.0  # log-likelihood ratio below which a face speaks against its skull
_UNEVEN = -25.0  # the same of its left-right differences alone
_TURNED_GAIN = 6.0  # by which the mirrored skull must then fit the whole face better, too
_TAILS = 5.5  # times the way from the median to the 5 % quantile that is still usual
_GAIN = 20.0  # log-likelihood ratio by which another skull, or the mirrored one, must fit the face better than its own
_BETTER = 0.01  # share of all skulls that must fit a face better than its own
_FEW = 30  # and their number
_UNSURE = 300  # pairs from which the model is learned half as surely
_USUAL, _USUAL_UNEVEN = 3.0, 6.0  # median ratio below which nothing can be told
MeasuredPair = tuple[ListLine, PictureFacts, PictureFacts, PairFacts]


def check_pairs(data: DataSet, tolerance: float, spoilt: frozenset[tuple[str, int]]) -> Iterator[Flaw]:
    """Yield all findings about pairs. Nothing is learned from the lines in ``spoilt``, whose pictures are wrong."""
    pairs = list(data.good_pairs())
    for line, skull, face, _ in pairs:
        if skull.digest == face.digest:
            yield line.flaw("same_picture", f"{skull.path.name} and {face.path.name} are the same picture")
    if len(pairs) >= 4 and np.median([s.area - f.area for _, s, f, _ in pairs]) > 0.01:
        yield Flaw("swapped", "most skulls are larger than their faces: the two folders are exchanged")
        return
    out = set(spoilt)
    for finding in _alignment(pairs, tolerance):
        out.add((finding.list_name, finding.line))
        yield finding
    rest = [
        (line, skull, face, pair)
        for line, skull, face, pair in pairs
        if (line.list_name, line.number) not in out and skull.digest != face.digest
    ]
    if len(rest) >= MIN_PAIRS:
        for k, (check, detail) in Fit.of(rest).doubtful(rest, tolerance).items():
            yield rest[k][0].flaw(check, detail)


def _alignment(pairs: Sequence[MeasuredPair], tolerance: float) -> Iterator[Flaw]:
    if not pairs:
        return
    outside = np.array([pair.outside for *_, pair in pairs])
    enough = len(pairs) >= MIN_PICTURES
    usual, allowed = limit(outside, _OUTSIDE, tolerance) if enough else (0.0, 0.05)
    for k in np.flatnonzero(outside > usual + allowed).tolist():
        yield pairs[k][0].flaw("bone_outside", f"{outside[k]:.1%} of the bone lies outside the face")
    if not enough:
        return
    measures = {
        "the face lies {:+.0f} px to the right of the skull": (np.array([p.shift for *_, p in pairs]), 3.0),
        "its crown is {:.0f} px above the skull's": (np.array([p.gap for *_, p in pairs]), 4.0),
        "its vault is {:.2f} times as wide as the skull's": (np.array([p.scale for *_, p in pairs]), 0.06),
    }

    def describe(text: str, value: float, usual: float, allowed: float) -> str:
        return f"{text.format(value)} (usual {usual:.2g} +- {allowed:.2g})"

    for k, notes in sorted(outliers(measures, tolerance, describe).items()):
        yield pairs[k][0].flaw("misaligned", "; ".join(notes) + f", at {SIZE} px")


@dataclass(frozen=True)
class Fit:
    """Faces as a linear function of skulls and attributes, each predicted from people in other folds.

    ``faces``, ``predicted`` and ``from_mirrored`` (from the mirrored skulls) are (N, D) principal scores;
    ``precision`` is the inverse covariance of faces less predicted, ``prior`` that of the faces themselves;
    ``constant`` is the difference of the log-determinants.
    """

    faces: np.ndarray
    predicted: np.ndarray
    from_mirrored: np.ndarray
    precision: np.ndarray
    prior: np.ndarray
    constant: float

    @classmethod
    def of(cls, pairs: Sequence[MeasuredPair]) -> Fit:
        lines = [line for line, *_ in pairs]
        skulls = np.stack([skull.thumb for _, skull, _, _ in pairs])
        faces = np.stack([face.thumb for _, _, face, _ in pairs])
        outputs, _ = _scores(faces, faces, min(_FACE_AXES, len(pairs) // 8))
        as_is, turned = _scores(skulls, skulls[:, :, ::-1], min(_SKULL_AXES, len(pairs) // 5))
        scale, attributes = as_is.std(0), _attributes(lines)
        inputs, others = np.hstack([as_is / scale, attributes]), np.hstack([turned / scale, attributes])
        predicted, from_mirrored = _cross_fit(inputs, outputs, _folds(lines), 1e-3, others)
        left, before = _covariance(outputs - predicted), _covariance(outputs)
        constant = np.linalg.slogdet(before)[1] - np.linalg.slogdet(left)[1]
        return cls(
            outputs, predicted, from_mirrored, np.linalg.inv(left), np.linalg.inv(before), float(constant)
        )

    def evidence(self, predicted: np.ndarray) -> np.ndarray:
        """Return the (N,) log-likelihood ratio of the face given its skull to the face given none."""
        misfit = _square(self.faces - predicted, self.precision)
        return (_square(self.faces, self.prior) - misfit + self.constant) / 2

    def best(self, k: int) -> tuple[int, float, float]:
        """Return the skull that fits face ``k`` best, the log-likelihood ratio to its own, the share of better ones."""
        misfit = _square(self.faces[k] - self.predicted, self.precision)
        best = int(misfit.argmin())
        return best, float(misfit[k] - misfit[best]) / 2, float((misfit < misfit[k]).mean())

    def doubtful(self, pairs: Sequence[MeasuredPair], tolerance: float) -> dict[int, tuple[str, str]]:
        """Return check and detail by index: pairs that do not fit, and pairs that fit once the skull is mirrored."""
        evidence, if_mirrored = self.evidence(self.predicted), self.evidence(self.from_mirrored)
        usual, allowed = limit(evidence, 0, tolerance)
        if usual < _USUAL:
            return {}
        tail = usual - float(np.quantile(evidence, 0.05))  # wide where heads are turned, which is not linear
        bound = min(_UNLIKELY * tolerance, usual - allowed, usual - _TAILS * tolerance * tail)
        uneven = mirrored_evidence(pairs)
        caution = tolerance * (1 + _UNSURE / len(pairs))
        gains = if_mirrored - evidence
        turned = (uneven > -_UNEVEN * caution) & (gains > _TURNED_GAIN * caution)
        turned |= (evidence < bound) & (gains > _GAIN * caution) & (if_mirrored > 0)
        doubts = {}
        for k in np.flatnonzero(turned).tolist():
            gain = max(gains[k], uneven[k])
            doubts[k] = "mirrored", f"the mirrored skull fits far better (log-likelihood ratio {gain:.0f})"
        most = max(_BETTER, _FEW / len(pairs))
        for k in np.flatnonzero((evidence < bound) & ~turned).tolist():
            other, gain, better = self.best(k)
            # An unusual head's own skull is still among the best; after an exchange the best one's face is as doubtful.
            if gain > _GAIN and (better > most or evidence[other] < bound):
                detail = f"the skull of {pairs[other][0].subject} fits this face far better than its own does"
                doubts[k] = "mismatch", f"{detail} (log-likelihood ratio {gain:.0f})"
        return doubts


def mirrored_evidence(pairs: Sequence[MeasuredPair]) -> np.ndarray:
    """Return the (N,) log-likelihood ratio of the face's left-right differences, mirrored skull to skull.

    It is -inf where the heads are too even, or too few, to tell.
    """
    nothing = np.full(len(pairs), -np.inf)
    inputs = _uneven(np.stack([skull.thumb for _, skull, _, _ in pairs]), min(_SKULL_AXES, len(pairs) // 5))
    outputs = _uneven(np.stack([face.thumb for _, _, face, _ in pairs]), min(_FACE_AXES, len(pairs) // 8))
    if not inputs.size or not outputs.size:
        return nothing  # perfectly even heads
    inputs /= np.sqrt((inputs**2).mean(0))
    predicted, _ = _cross_fit(inputs, outputs, _folds([line for line, *_ in pairs]), 1e-2, inputs)
    precision = np.linalg.inv(_covariance(outputs - predicted))
    evidence = (_square(outputs - predicted, precision) - _square(outputs + predicted, precision)) / 2
    return evidence if np.median(evidence) < -_USUAL_UNEVEN else nothing


def _uneven(thumbs: np.ndarray, count: int) -> np.ndarray:
    """Return (N, count) principal scores of the differences between left and right."""

    def difference(part: np.ndarray) -> np.ndarray:
        values = part.astype(np.float32) / 255
        return (values - values[:, :, ::-1])[:, :, : THUMB // 2].reshape(len(part), -1) / 2

    axes = principal_axes(thumbs, count, difference)
    return in_blocks(lambda part: difference(part) @ axes, thumbs).astype(float)


def _scores(pictures: np.ndarray, others: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return principal scores of some (N, H, W) uint8 pictures, and of others on the same axes."""
    middle = pictures.mean(0).ravel().astype(np.float32)

    def centred(part: np.ndarray) -> np.ndarray:
        return (part.reshape(len(part), -1) - middle) / 255

    axes = principal_axes(pictures, count, centred)
    first, second = (in_blocks(lambda part: centred(part) @ axes, rows) for rows in (pictures, others))
    return first.astype(float), second.astype(float)


def _attributes(lines: Sequence[ListLine]) -> np.ndarray:
    """Return (N, 4) sex, age, its square, body mass, standardised; 0 where unknown."""
    nothing = (np.nan,) * 4
    people = (line.person for line in lines)
    rows = [nothing if p is None else (p.sex == "male", p.age, p.age**2, p.body_mass) for p in people]
    table = np.array(rows, float)
    if np.isnan(table).all():
        return np.zeros_like(table)
    table -= np.nanmean(table, 0)
    return np.nan_to_num(table / np.maximum(np.nanstd(table, 0), 1e-9))


def _folds(lines: Sequence[ListLine]) -> np.ndarray:
    """Return the fold of each pair, (N,); a person's pairs are in one."""
    number = np.unique([line.subject for line in lines], return_inverse=True)[1]
    return np.random.default_rng(0).permutation(number.max() + 1)[number] % _FOLDS


def _cross_fit(
    inputs: np.ndarray, outputs: np.ndarray, folds: np.ndarray, penalty: float, others: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Predict each fold from the other folds by ridge regression: from ``inputs``, and from ``others`` instead."""
    predicted, elsewise = np.zeros_like(outputs), np.zeros_like(outputs)
    for fold in range(_FOLDS):
        out = folds == fold
        x = inputs[~out]
        gram = x.T @ x
        gram += penalty * np.trace(gram) / len(gram) * np.eye(len(gram))
        weights = np.linalg.solve(gram, x.T @ outputs[~out])
        predicted[out], elsewise[out] = inputs[out] @ weights, others[out] @ weights
    return predicted, elsewise


def _covariance(rows: np.ndarray) -> np.ndarray:
    """Return the covariance without the 5 % that lie farthest out."""

    def shrunk(part: np.ndarray) -> np.ndarray:
        matrix = np.atleast_2d(np.cov(part.T))
        return matrix + 1e-3 * np.trace(matrix) / len(matrix) * np.eye(len(matrix))

    distance = _square(rows, np.linalg.inv(shrunk(rows)))
    return shrunk(rows[distance <= np.quantile(distance, 0.95)])


def _square(rows: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return (N,) r^T M r."""
    return np.einsum("ij,ij->i", rows @ matrix, rows)
