"""DICOM: finds the series among any files, chooses one, and stacks its slices.

The steps: ``read_headers``, ``_series``, ``_choose``, ``decode``, and ``stack`` of ``geometry``.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from data.ct.findings import Finding, ScanError, Severity, judge, naming_flags
from data.ct.reading import geometry
from data.ct.reading.archives import unpacked
from data.ct.reading.decoding import decode
from data.ct.reading.dicom_headers import MAX_IMAGES, NO_SERIES, Header, read_headers
from data.ct.reading.geometry import SMALLEST_SIDE
from data.ct.reading.kinds import ARCHIVES, files_below, is_packed, suffix_of
from data.ct.reading.scan import Scan

MAX_HALVINGS = 2
AXIAL_COSINE = 0.6  # of the slices' normal with the head-to-foot axis, at least
ALIKE = 0.005  # direction cosines differ by at most this in one series, pixel spacings by this share
ENOUGH_MM = 100.0  # a series that covers this much counts as a head
TILT_APART_DEG, NO_TILT_DEG = 2.0, 1.0
LARGEST_STEP = 1.6  # from one series to the next that goes on above it, in their wider steps
SCOUT_COSINE = 0.7  # of an image's normal with that of the slices: less is another view
FAR_MM, FEW = 30.0, 0.1  # images so far from the others are no slices, if they are no more than this share


@dataclass
class Series:
    """Images that belong together: they share a SeriesInstanceUID, or were joined by their geometry.

    Attributes:
        joined: how many SeriesInstanceUIDs were joined; 1 for an ordinary series.
    """

    headers: list[Header]
    joined: int = 1

    @property
    def number(self) -> str:
        return self._typical.number

    @property
    def uids(self) -> set[str]:
        return {h.series for h in self.headers}

    @property
    def _typical(self) -> Header:
        return (self.slices or self.headers)[0]

    @cached_property
    def slices(self) -> list[Header]:
        """Return the largest set of CT images with one size, spacing and direction that lie on one line."""
        usable = [h for h in self.headers if h.problem is None and not h.scout and h.modality == "CT"]
        return _on_line(max(_alike(usable), key=len, default=[]))

    @cached_property
    def heights(self) -> np.ndarray:
        """Return the different places of the slices along their normal, mm, ascending."""
        heights = np.sort([float(h.position @ self._typical.normal) for h in self.slices])
        return heights[np.unique(geometry.same_places(heights), return_index=True)[1]]

    @property
    def coverage(self) -> float:
        """Return the mm from the first to the last slice."""
        return float(np.ptp(self.heights)) if self.slices else 0.0

    @property
    def covers_a_head(self) -> bool:
        return self.coverage >= ENOUGH_MM and len(self.heights) >= SMALLEST_SIDE

    @property
    def step(self) -> float:
        return float(np.median(np.diff(self.heights))) if len(self.heights) > 1 else math.inf

    @property
    def axial(self) -> bool:
        return bool(self.slices) and abs(float(self._typical.normal[2])) >= AXIAL_COSINE

    def describe(self) -> str:
        """Return a line without descriptions and UIDs, which may hold names."""
        one = self._typical
        kind = "localizer" if one.scout else one.modality[:4]
        text = f"series={one.number}: {kind}, {len(self.headers)} images of {one.shape[1]} x {one.shape[0]}"
        if math.isfinite(self.step):
            text += f", {self.step:.2f} mm apart over {self.coverage:.0f} mm"
            text += ("" if self.axial else ", not axial") + (f", kernel {one.kernel}" if one.kernel else "")
        return text


def read_folder(folder: Path, requested: str, max_bytes: int, offset: float) -> Scan:
    """Return the chosen series of all DICOM files below ``folder``. Raises: ScanError, see ``read_scan``."""
    with ExitStack() as stay_unpacked:
        files: list[Path] = []
        for path in files_below(folder):
            packed = suffix_of(path) in ARCHIVES and is_packed(path)
            files += files_below(stay_unpacked.enter_context(unpacked(path, max_bytes))) if packed else [path]
            if len(files) > MAX_IMAGES:
                raise ScanError(f"more than {MAX_IMAGES} files: give the folder of one patient")
        return _read(files, requested, max_bytes, offset)


def read_image(path: Path, requested: str, max_bytes: int, offset: float) -> Scan:
    """Return the volume of one DICOM file; where that is one slice, of its series in the same folder.

    Raises:
        ScanError: see ``read_scan``.
    """
    headers, *_ = read_headers([path])
    if not headers:
        raise ScanError("a DICOM file without an image in it: give the folder of the series")
    if len(headers) > 1:
        return _read([path], requested, max_bytes, offset)
    if headers[0].problem:
        raise ScanError(f"the DICOM file cannot be used: {headers[0].problem}")
    files = sorted(p for p in path.parent.iterdir() if p.is_file() and not p.name.startswith("."))
    return _read(files, requested, max_bytes, offset, slice_file=path)


def _read(
    files: list[Path], requested: str, max_bytes: int, offset: float, slice_file: Path | None = None
) -> Scan:
    """Return the best of the series in some files, or the one that is requested, or that of ``slice_file``."""
    headers, others, damaged = read_headers(files)
    with naming_flags(damaged):
        if not headers:
            raise ScanError(f"no DICOM image in its {others} files: expected a DICOM folder or a volume file")
        series = among = _series(headers)
        if slice_file and not requested:
            among = [one for one in series if any(h.path == slice_file for h in one.headers)]
            if len(among[0].slices) < SMALLEST_SIDE:
                raise ScanError(
                    f"the DICOM file is one image, and its folder holds {len(among[0].headers)} of its series: give "
                    "the folder that holds the whole series"
                )
        chosen = _choose(among, requested)
        people = _people(series, chosen)
        with naming_flags(people):
            scan = _decode(chosen, max_bytes, offset)
    scan.facts |= {"series_found": [one.describe() for one in series], "series_used": chosen.number}
    scan.facts["other_files"] = others
    if sum(bool(one.slices) for one in series) > 1:
        scan.findings += judge("several_series", len(series), chosen=chosen.describe())
    scan.findings += judge("joined_series", chosen.joined, images=len(chosen.headers)) + people + damaged
    scan.findings += judge("one_slice_named", scan.facts["stored_size"][2]) if slice_file else []
    return scan


def _people(series: list[Series], chosen: Series) -> list[Finding]:
    """Judge whether all images are of one person, and all series that hold a head of one examination."""
    one_head = _count_people(chosen.slices) > 1
    outcome = "drawn as one head: look at it" if one_head else "one was drawn: give one's folder"
    people = _count_people(h for one in series for h in one.headers)
    heads = [s for s in series if s.covers_a_head and s.axial and s.joined == 1]
    studies = {s.slices[0].study for s in heads if not s.slices[0].projection} - {""}
    return judge("several_people", people, outcome=outcome) or judge("several_studies", len(studies))


def _count_people(headers: Iterable[Header]) -> int:
    """Return the largest number of different PatientIDs, names or dates of birth; what is empty does not count."""
    columns = zip(*{h.person for h in headers}, strict=True)
    return max(len({value for value in values if value}) for values in columns)


def _series(headers: list[Header]) -> list[Series]:
    """Return the series; one person's series that are each too small for a head are joined, by geometry."""
    series = [one for group in _grouped(headers, lambda h: h.series) for one in _by_person(group)]
    covered = any(one.covers_a_head for one in series)
    for key in (lambda h: (h.person, h.number), lambda h: h.person):
        small = [one for one in series if not covered or len(one.headers) < SMALLEST_SIDE]
        for group in _grouped((h for one in small for h in one.headers), key):
            slices = Series(group).slices
            whole = Series(slices, len({h.series for h in slices}))
            if whole.joined > 1 and len(whole.heights) >= SMALLEST_SIDE:
                used = set(slices)
                rest = [Series([h for h in one.headers if h not in used], one.joined) for one in series]
                series = [*(one for one in rest if one.headers), whole]
                covered |= whole.covers_a_head
    return series


def _by_person(headers: list[Header]) -> list[Series]:
    """Return the series with one SeriesInstanceUID, or one for each person where their slices share places.

    A person's number that changes from slice to slice leaves the head whole; ``_people`` flags it.
    """
    whole = Series(headers)
    parts = [Series(group) for group in _grouped(headers, lambda h: h.person)]
    apart = sum(len(one.heights) for one in parts) == len(whole.heights)
    return [whole] if len(parts) == 1 or (apart and headers[0].series != NO_SERIES) else parts


def _grouped(headers: Iterable[Header], key: Any) -> list[list[Header]]:
    groups: dict[Hashable, list[Header]] = defaultdict(list)
    for header in headers:
        groups[key(header)].append(header)
    return list(groups.values())


def _alike(headers: list[Header]) -> list[list[Header]]:
    """Return groups of images with one size, and nearly one spacing and direction: headers round them differently."""
    numbers = np.array([[*h.shape, *np.log(h.spacing), *h.axes.ravel()] for h in headers])
    rest = np.ones(len(headers), bool)
    groups = []
    while rest.any():
        alike = rest & (np.abs(numbers - numbers[np.argmax(rest)]) <= ALIKE).all(1)
        groups.append([headers[k] for k in np.flatnonzero(alike)])
        rest &= ~alike
    return groups


def _on_line(headers: list[Header]) -> list[Header]:
    """Leave out the few images that lie beside the line of all others, or far from them along it: scouts."""
    if len(headers) < SMALLEST_SIDE:
        return headers
    normal = headers[0].normal
    places = np.array([h.position for h in headers])
    heights = places @ normal
    order = np.argsort(heights)
    steps = np.diff(heights[order])
    apart = steps > 0.5 * np.median(steps)
    rise = np.median(np.diff(places[order], axis=0)[apart] / steps[apart, None], 0) if apart.any() else normal
    beside = places - heights[:, None] * rise
    stray = np.linalg.norm(beside - np.median(beside, 0), axis=1) > geometry.OFF_LINE_MM
    runs = np.zeros(len(headers), int)
    runs[order[1:]] = np.cumsum(steps > FAR_MM)
    stray |= runs != np.bincount(runs).argmax()
    few = stray.sum() <= FEW * len(headers)
    return [h for h, off in zip(headers, stray, strict=True) if not off] if few else headers


def _continued(series: list[Series]) -> list[Series]:
    """Join two axial series of one examination where one goes on above the other and no series holds both parts."""
    for low, high in permutations((one for one in series if one.axial), 2):
        whole = Series([*low.slices, *high.slices], low.joined + high.joined)
        goes_on = 0 < high.heights[0] - low.heights[-1] < LARGEST_STEP * max(low.step, high.step)
        of_one = len({(h.person, h.study) for h in whole.headers}) == 1
        wider = whole.coverage > max(one.coverage for one in series) + geometry.LARGEST_GAP_MM
        if goes_on and of_one and wider and len(whole.slices) == len(whole.headers):
            return _continued([*(one for one in series if one not in (low, high)), whole])
    return series


def _choose(series: list[Series], requested: str) -> Series:
    """Return the CT series, best an axial one, that covers a head with the finest, then the most slices.

    Raises:
        ScanError: there is none, or not one alone with the number asked for.
    """
    listed = "; ".join(one.describe() for one in series[:12])
    if requested:
        series = [one for one in series if requested in one.uids or requested == one.number]
        if len(series) != 1:
            raise ScanError(
                f"{len(series) or 'no'} series have the number asked for, expected one (SeriesInstanceUIDs are "
                f"unique); there are: {listed}"
            )
    ct = [one for one in series if any(h.modality == "CT" for h in one.headers)]
    if not ct:
        modalities = ", ".join(sorted({one.headers[0].modality[:4] for one in series}))
        raise ScanError(
            f"modality {modalities}, expected CT: bone and skin are found by their Hounsfield units"
        )
    usable = [one for one in ct if one.slices]
    if not usable:
        problem = next((h.problem for one in ct for h in one.headers if h.problem), "only localizers")
        raise ScanError(f"no image of its CT series can be used: {problem}")
    usable = usable if requested else _continued(usable)
    full = [one for one in usable if one.covers_a_head]
    if not full:
        return max(usable, key=lambda one: (one.coverage, one.axial))
    best = min((one.slices[0].projection, not one.axial) for one in full)
    full = [one for one in full if (one.slices[0].projection, not one.axial) == best]
    finest = min(one.step for one in full)
    fine = [one for one in full if one.step < 1.02 * finest]  # steps are rounded in the headers
    return min(fine, key=lambda one: (-len(one.slices), one.number, min(one.uids)))


def _decode(series: Series, max_bytes: int, offset: float) -> Scan:
    """Return the volume of a series' slices."""
    headers = series.slices
    first = headers[0]
    halvings = _halvings(first, len(headers), max_bytes)
    slices = decode(headers, offset, halvings)
    if len(slices) < SMALLEST_SIDE:
        raise ScanError(
            f"{len(slices)} of its {len(headers)} images can be read, a head needs at least {SMALLEST_SIDE}"
        )
    rest = set(series.headers) - set(headers)
    scouts = all(h.scout or (not h.problem and abs(h.normal @ first.normal) < SCOUT_COSINE) for h in rest)
    severity: Severity | None = "note" if scouts else None
    findings = judge("mixed_series", len(rest), severity=severity, total=len(series.headers))
    findings += judge("undecodable", len(headers) - len(slices), total=len(headers))
    unscaled = sum(h.slope is None or h.intercept is None for h in headers)
    findings += judge("rescale_missing", unscaled, total=len(headers))
    findings += judge("inverted_display", sum(h.inverted for h in headers), total=len(headers))
    axes, spacing = (np.median([getattr(h, key) for h in headers], 0) for key in ("axes", "spacing"))
    along_i, along_j = axes * spacing[::-1, None] * 2**halvings
    values, affine, more = geometry.stack(slices, along_i, along_j)
    facts: dict[str, Any] = {"format": "DICOM", "stored_size": [first.shape[1], first.shape[0], len(headers)]}
    thickest = max(h.thickness or 0 for h in headers)
    details = {"slice_thickness_mm": thickest, "kvp": first.kvp, "kernel": first.kernel}
    facts |= {name: value for name, value in details.items() if value}
    measured = geometry.gantry_tilt(affine)
    facts["gantry_tilt_deg"] = round(measured, 2)
    tilt = abs(first.tilt or 0.0)
    if measured < NO_TILT_DEG and abs(tilt - measured) > TILT_APART_DEG:
        more += judge("tilt_unclear", tilt, measured=measured)
    return Scan(values, affine, facts, findings + more)


def _halvings(first: Header, count: int, max_bytes: int) -> int:
    """Return how often slices are halved in the plane: thin, wide series would not fit otherwise. Raises: ScanError."""
    whole = 2 * count * first.shape[0] * first.shape[1]
    halvings = next((n for n in range(MAX_HALVINGS) if whole >> (2 * n) <= max_bytes), MAX_HALVINGS)
    shape = (first.shape[1] >> halvings, first.shape[0] >> halvings, max(count, SMALLEST_SIDE))
    geometry.check_size(shape, (*(s * 2**halvings for s in first.spacing.tolist()), 1.0), 2, max_bytes)
    return halvings
