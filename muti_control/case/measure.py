"""A skull picture laid over the mean training skull, and what can be read off it there.

The picture is registered by its upper part, down to the teeth: the jaw may be missing, and its length differs most
between people. All lengths are px of a picture of 256 px.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from data.check.measure import Silhouette, grow, silhouette

Array = NDArray[np.float32]
# px of the registered pictures, of those that are compared; px at 256 of one of SIDE
SIDE, COARSE, PX = 128, 64, 2
TEETH, JAW = (
    72,
    34,
)  # rows: of SIDE, where the upper part ends; of COARSE, from where on the mandible is sought
MISSING = {  # what is missing -> where the rest lies, and where it is compared
    "": (np.s_[:, :], np.s_[:TEETH, :]),
    "vault": (np.s_[46:, :], np.s_[58:84, :]),
    "left side": (np.s_[:, :64], np.s_[:TEETH, :54]),
    "right side": (np.s_[:, 64:], np.s_[:TEETH, 74:]),
}
BETTER = 0.01  # a part is easier to fit than the whole
MIDFACE = slice(48, 78), slice(40, 88)  # orbits and nose
REACH = 11  # px of SIDE by which they may be elsewhere
FINE, ROUGH = 1.5, 6.0  # px of SIDE: details between these sizes are compared
TURNS = range(-180, 180, 15)
STARTS, GOOD_FIT = 3, 0.98
UNEVEN, SMALLEST, LARGEST = 1.35, 0.2, 3.5  # a fit beyond these has run away
LIGHT = 0.12  # uneven light beyond this is taken out before the picture is registered
HIGHLIGHT = 0.8  # a hole in the bone whose rim is brighter is a highlight on a bright background, not a hole
LEVEL_STEP = 0.01  # grey levels so near to the background's are background
STEPS = cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 1e-5


@dataclass(frozen=True)
class Measures:
    """What was read off a skull picture.

    Attributes:
        grey: (SIDE, SIDE) on black, upright in grey levels.
        affine: (2, 3) px of the reference to px of ``grey``.
        aligned: ``grey`` laid over the reference.
        missing: the part of the skull without which it fits the mean skull; "": none.
        fit: correlation with the mean skull above the teeth, at most 1.
        angle: degrees, positive where the skull is turned clockwise. scale: 1 is the mean size. right, down: px from
            the mean skull's place.
        light: brightness added per quarter of the picture to the right and downwards, as shares.
        nose: px that orbits and nose lie right and down of where the mean skull has them: the head is turned or nods.
        midface: how like they are to the mean skull's, at most 1.
        mandible: about 1 for a skull with its mandible, about -1 for one without.
        residual: grey level (root mean square) that the principal skulls cannot explain above the teeth.
        face_residual: the same by the principal faces; None without any.
    """

    grey: Array
    affine: Array
    aligned: Array
    fit: float
    angle: float
    scale: float
    right: float
    down: float
    light: tuple[float, float]
    nose: tuple[float, float]
    midface: float
    mandible: float
    residual: float
    face_residual: float | None = None
    missing: str = ""

    @property
    def numbers(self) -> dict[str, float]:
        """The values that have a usual range, by the names of the limits."""
        own = {
            name: getattr(self, name) for name in ("angle", "right", "down", "mandible", "residual", "fit")
        }
        pairs = {
            "light_x": self.light[0],
            "light_y": self.light[1],
            "yaw": self.nose[0],
            "pitch": self.nose[1],
        }
        return own | pairs | {"scale": float(np.log(self.scale))}


def measure(grey: Array, reference: Mapping[str, Array], even: int = 2) -> Measures:
    """Register a skull on black, (H, H) in [0, 1], and read it off.

    reference: arrays of the calibration. even: how often uneven light is taken out to register again.
    """
    small = resized(grey, SIDE)
    affine, fit, missing = *register(small, reference["mean"], reference["mask"]), ""
    for part in [*MISSING][1:] if fit < GOOD_FIT else ():
        other = register(small, reference["mean"], reference["mask"], part)
        if other[1] > fit + BETTER:
            affine, fit, missing = *other, part
    measures = _read_off(small, affine, fit, missing, reference)
    if even and fit > 0.5 and max(map(abs, measures.light)) > LIGHT:
        again = measure(evened(small, measures), reference, even - 1)
        light = (measures.light[0] + again.light[0], measures.light[1] + again.light[1])
        return replace(again, grey=small, light=light) if again.fit > fit else measures
    return measures


def evened(picture: Array, measures: Measures) -> Array:
    """Return a picture, (H, H) or (H, H, 3), with the light of ``measures`` taken out."""
    side = picture.shape[0]
    place = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).astype(np.float32) * (SIDE / side)
    back = cv2.invertAffineTransform(measures.affine)
    aligned = place @ back[:, :2].T + back[:, 2]
    gain = np.clip(1 + _centred(aligned) @ np.array(measures.light, np.float32), 0.35, 3)
    return np.clip(picture / (gain if picture.ndim == 2 else gain[..., None]), 0, 1).astype(np.float32)


def register(grey: Array, mean: Array, mask: Array, missing: str = "") -> tuple[Array, float]:
    """Return the affine map from px of the mean skull to px of a picture, both (SIDE, SIDE), and the correlation.

    missing: a key of ``MISSING``: only the rest is compared.
    """
    bone = silhouette(grey).filled
    rest, compared = _region(missing, 0) & (mask > 0.5), _region(missing, 1)
    weights = compared.astype(np.uint8)
    blurred, goal = _blurred(grey, 2.5), _blurred(mean * weights, 2.5)
    # A damaged skull is mostly where the program that drew it puts whole ones.
    starts = [(1.0, np.eye(2, 3, dtype=np.float32))] if missing and bone.any() else []
    for part in (rest, rest & _region("", 1)):  # the mandible may be missing
        for turn in TURNS if bone.any() else ():
            start = _similarity(turn, part, bone)
            starts.append((correlation(laid(blurred, start) * weights, goal), start))
    starts.sort(key=lambda entry: -entry[0])
    best = np.eye(2, 3, dtype=np.float32), 0.0
    for _, start in starts[:STARTS]:
        back = cv2.invertAffineTransform(start)
        try:
            for sigma in (3, 1):
                own, usual = _blurred(grey, sigma), _blurred(mean, sigma)
                fit, back = cv2.findTransformECC(own, usual, back, cv2.MOTION_AFFINE, STEPS, 255 * weights, 1)
        except cv2.error:  # no overlap is left: not the right start
            continue
        affine = cv2.invertAffineTransform(back).astype(np.float32)
        large, little = np.linalg.svd(affine[:, :2])[1]
        sound = little > SMALLEST and large < min(UNEVEN * little, LARGEST)
        if sound and fit > best[1]:
            best = affine, float(fit)
        if best[1] > GOOD_FIT:
            break
    return best


def upright(measures: Measures, side: int, away: Collection[str]) -> Array:
    """Return the map from px of a corrected picture of ``side`` px to px of its original, (2, 3) float32.

    away: names of what it corrects: angle, scale, right, down.
    """
    angle = np.radians(measures.angle) if "angle" in away else 0.0
    factor = measures.scale if "scale" in away else 1.0
    linear = factor * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = np.full(2, (side - 1) / 2)
    shift = np.array([getattr(measures, name) if name in away else 0.0 for name in ("right", "down")])
    shift *= side / (SIDE * PX)
    if not {"angle", "scale"} & set(away):
        shift = np.rint(shift)  # no pixel is mixed with its neighbours
    return np.hstack([linear, (middle + shift - linear @ middle)[:, None]]).astype(np.float32)


def principal(pictures: Array, num: int) -> tuple[Array, Array]:
    """Return mean (COARSE, COARSE) and principal axes (num, COARSE, COARSE) of aligned pictures (N, SIDE, SIDE)."""
    rows = np.stack([resized(picture, COARSE).ravel() for picture in pictures])
    mean = rows.mean(0)
    axes = np.linalg.svd(rows - mean, full_matrices=False)[2][:num]
    return mean.reshape(COARSE, COARSE), axes.reshape(-1, COARSE, COARSE).astype(np.float32)


def lower_part(aligned: Array) -> Array:
    """Return the lower part of an aligned picture as a vector that ends in a 1."""
    return np.append(resized(aligned, COARSE)[JAW:].ravel(), np.float32(1))


def resized(picture: Array, side: int) -> Array:
    """Return a grey picture at (side, side), averaged."""
    return _exact(cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA))


def correlation(one: Array, other: Array) -> float:
    """Return the correlation of two arrays of one shape; 0 for a flat one."""
    one, other = one - one.mean(), other - other.mean()
    return float((one * other).sum() / np.sqrt((one * one).sum() * (other * other).sum() + 1e-12))


def _region(missing: str, kind: int) -> NDArray[np.bool_]:
    """Return where the rest of a skull lies (kind 0), or is compared (1), (SIDE, SIDE)."""
    region = np.zeros((SIDE, SIDE), bool)
    region[MISSING[missing][kind]] = True
    return region


def _read_off(
    grey: Array, affine: Array, fit: float, missing: str, reference: Mapping[str, Array]
) -> Measures:
    mean, mask = reference["mean"], reference["mask"]
    aligned = laid(grey, affine)
    linear = affine[:, :2].astype(float)
    middle = np.full(2, (SIDE - 1) / 2)
    right, down = (linear @ middle + affine[:, 2] - middle) * PX
    inside = cv2.erode((mask > 0.98).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    inside &= _region("", 1) & _region(missing, 1)
    place = _centred(np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), -1).astype(np.float32))[inside]
    bright = mean[inside]
    basis = np.stack([bright, bright * place[:, 0], bright * place[:, 1]], 1)
    level, *slope = np.linalg.lstsq(basis, _blurred(aligned, FINE)[inside], rcond=None)[0]
    nose, midface = _nose(aligned, mean)
    rest = _region(missing, 0)
    whole = np.where(
        rest | ~rest[:, ::-1], aligned, aligned[:, ::-1]
    )  # a missing side as the other one's mirror
    residuals = {
        kind: _residual(aligned, reference[f"{kind}_mean"], reference[f"{kind}_axes"], _region(missing, 1))
        for kind in ("skull", "face")
        if f"{kind}_axes" in reference
    }
    return Measures(
        grey=grey,
        affine=affine,
        aligned=aligned,
        fit=fit,
        angle=float(np.degrees(np.arctan2(linear[1, 0] - linear[0, 1], linear[0, 0] + linear[1, 1]))),
        scale=float(np.sqrt(abs(np.linalg.det(linear)))),
        right=float(right),
        down=float(down),
        light=(float(slope[0] / max(level, 0.05)), float(slope[1] / max(level, 0.05))),
        nose=nose,
        midface=midface,
        mandible=float(lower_part(whole) @ reference["jaw"].ravel()) if "jaw" in reference else 1.0,
        residual=residuals["skull"],
        face_residual=residuals.get("face"),
        missing=missing,
    )


def _nose(aligned: Array, mean: Array) -> tuple[tuple[float, float], float]:
    """Return px (at 256) by which orbits and nose lie right and down of the mean skull's, and how alike they are."""
    own, goal = (_blurred(p, FINE) - _blurred(p, ROUGH) for p in (aligned, mean))
    around = tuple(slice(part.start - REACH, part.stop + REACH) for part in MIDFACE)
    likeness = _exact(cv2.matchTemplate(own[around], goal[MIDFACE], cv2.TM_CCOEFF_NORMED))
    row, column = divmod(int(likeness.argmax()), likeness.shape[1])
    place = _peak(likeness[row], column), _peak(likeness[:, column], row)
    return (PX * (place[0] - REACH), PX * (place[1] - REACH)), float(likeness.max())


def _peak(line: Array, place: int) -> float:
    """Return where a line has its maximum near ``place``, between the samples."""
    if not 0 < place < len(line) - 1:
        return float(place)
    before, here, after = line[place - 1 : place + 2]
    return place + float(0.5 * (before - after) / min(before - 2 * here + after, -1e-9))


def _residual(aligned: Array, mean: Array, axes: Array, region: NDArray[np.bool_]) -> float:
    """Return what principal axes (K, COARSE, COARSE) cannot explain in a region (SIDE, SIDE), root mean square."""
    region = region[::2, ::2]
    basis, own = axes[:, region].T, (resized(aligned, COARSE) - mean)[region]
    score = np.linalg.solve(basis.T @ basis + 1e-2 * np.eye(basis.shape[1]), basis.T @ own)
    return float(np.sqrt(((own - basis @ score) ** 2).mean()))


def _similarity(turn: float, part: NDArray[np.bool_], bone: NDArray[np.bool_]) -> Array:
    """Return the map that lays ``part`` of the reference, turned by degrees, over the picture's bone."""
    (down, right), (own_down, own_right) = (np.argwhere(mask).mean(0) for mask in (part, bone))
    scale, angle = np.sqrt(bone.sum() / part.sum()), np.radians(turn)
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shift = np.array([own_right, own_down]) - linear @ np.array([right, down])
    return np.hstack([linear, shift[:, None]]).astype(np.float32)


def laid(grey: Array, affine: Array) -> Array:
    """Lay a picture (SIDE, SIDE) over the reference by the map of :func:`register`."""
    return _exact(cv2.warpAffine(grey, affine, (SIDE, SIDE), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP))


def _centred(place: Array) -> Array:
    """Return places in px of SIDE as quarters of the picture from the middle of the upper part."""
    return (place - np.array([63.5, 50], np.float32)) / np.float32(32)


def _blurred(picture: Array, sigma: float) -> Array:
    return _exact(cv2.GaussianBlur(picture, (0, 0), sigma))


def _exact(picture: NDArray[Any]) -> Array:
    """Return what OpenCV made of float32 as the type that it has."""
    return picture.astype(np.float32, copy=False)


def cleared(grey: Array, shape: Silhouette) -> Array:
    """Return a picture, (H, W), on black: its background removed, also where it shows through the bone."""
    rim = np.abs(grey - shape.background) <= LEVEL_STEP
    holes = (
        cv2.morphologyEx((shape.filled & rim).astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)) > 0
    )
    count, labels = cv2.connectedComponents(holes.astype(np.uint8), connectivity=8)
    bone = shape.filled.copy()
    for label in range(1, count):
        hole = labels == label
        ring = grow(hole, 2) & ~grow(hole, 1)
        if float(grey[ring].mean()) < HIGHLIGHT or shape.background < HIGHLIGHT:
            bone &= ~hole
    edge = bone & ~(cv2.erode(bone.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0)
    inner = np.where(bone, grey, 1).astype(np.float32)
    darkest = cv2.erode(inner, np.ones((3, 3), np.uint8))  # the outline is mixed with the background
    return np.where(edge, darkest, grey) * bone


def inverted(grey: Array, shape: Silhouette) -> Array:
    """Return the negative of a picture, (H, W), on black."""
    return np.where(shape.filled, 1 - grey, 0).astype(np.float32)
