"""The reasons to mark or refuse a scan: every property with its limits and its sentence, in one table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["refuse", "flag", "note"]
SEVERITIES: tuple[Severity, ...] = ("refuse", "flag", "note")  # the worst first


class ScanError(ValueError):
    """A scan that cannot be used. The message holds no path, no name and no date: it may go into a log."""


@dataclass(frozen=True)
class Finding:
    """One measured property of a scan, beside its limit.

    Attributes:
        name: of the property, a key of ``RULES``.
        severity: "note" (worth knowing), "flag" (drawn, and marked), "refuse" (not drawn).
        value, limit, unit: what was measured, and the limit that it passed.
        text: the same in a sentence.
    """

    name: str
    severity: Severity
    value: float
    limit: float
    unit: str
    text: str

    def record(self) -> dict[str, Any]:
        """Return the finding for JSON."""
        return asdict(self) | {"value": round(float(self.value), 3)}


@dataclass(frozen=True)
class Rule:
    """How a property is judged.

    Attributes:
        unit: of the value and its limits.
        text: may hold ``{value}`` and details that ``judge`` is given.
        note, flag, refuse: limits; a value beyond one has this severity.
        at_least: whether a value below its limit is the bad one, as for a share of a surface.
    """

    unit: str
    text: str
    note: float | None = None
    flag: float | None = None
    refuse: float | None = None
    at_least: bool = False


def _cut(side: str, flag: float, refuse: float | None = None) -> Rule:
    where = f"the head is cut off at the {side}"
    return Rule(
        "cm2", where + ": {value:.1f} cm2 of it lie at the border of the field of view", None, flag, refuse
    )


RULES = {
    # reading
    "unreadable": Rule("", "{reason}", refuse=0),
    "several_series": Rule("series", "{value} series in the folder; taken was {chosen}", note=1),
    "several_people": Rule(
        "people", "the files are of {value} people (numbers, names or dates of birth differ), {outcome}", flag=1),
    "several_studies": Rule(
        "examinations", "the files hold heads of {value} examinations, one was drawn: give the folder of one, or set "
        "series=", flag=1),
    "joined_series": Rule(
        "series", "each of {value} series holds a part of the head: {images} images were joined by their geometry",
        note=1),
    "one_slice_named": Rule(
        "images", "the file is one slice; the {value} images of its series in the same folder were read", note=1),
    "rescale_missing": Rule(
        "images", "{value} of {total} images have no usable RescaleSlope or RescaleIntercept (empty, zero or no "
        "number): 1 and 0 were used", flag=0),
    "inverted_display": Rule(
        "images", "{value} of {total} images are for an inverted display (MONOCHROME1): their values were read as they "
        "are", flag=0),
    "mixed_series": Rule(
        "images", "{value} of {total} images differ in kind, size, spacing, direction or line: left out", flag=0),
    "damaged_headers": Rule(
        "files", "{value} DICOM files were left out, their headers are damaged (the first: number {first} of {total} "
        "files by name); the first or the last slice of the head may be among them", flag=0),
    "undecodable": Rule(
        "images", "{value} of {total} images cannot be decoded (damaged, or an unknown coding)", flag=0),
    "duplicated_slices": Rule(
        "slices", "{value} slices lie where another one does; the first acquired was kept{more}", note=0),
    "missing_slices": Rule(
        "slices", "{value} slices are missing, the widest gap is {gap:.1f} mm; they were interpolated", flag=0),
    "uneven_slices": Rule(
        "mm", "slices lie {low:.2f} to {high:.2f} mm apart; resampled to an even {step:.2f} mm", note=0),
    "tilt_unclear": Rule(
        "degrees", "the header says {value:.1f} degrees of gantry tilt, the slices' positions show {measured:.1f}: the "
        "stack may have been straightened without its positions, then the head looks sheared", flag=2),
    "side_not_stored": Rule(
        "", "{chosen} does not say which side is left: the first column is taken for the {place} one; left and right "
        "may be swapped", note=0),
    "forms_differ": Rule(
        "mm", "the sform and the qform of the NIfTI header lie up to {value:.1f} mm apart{more}; the {chosen} was used",
        note=0.5),
    "form_damaged": Rule("", "the {reason} of the NIfTI header is damaged; the {chosen} was used", flag=0),
    "rescale_unclear": Rule("", "the NIfTI header's {reason}", note=0),
    "rescaled": Rule(
        "", "the stored values are no Hounsfield units: {reason} was applied (rescale=auto){more}", note=0),
    # the volume
    "spacing": Rule("mm", "voxels lie up to {value:.2f} mm apart: thin bone and fine form are lost", None, 2.6, 5.5),
    "slice_thickness": Rule("mm", "slices are {value:.2f} mm thick", flag=2.6),
    "gantry_tilt": Rule(
        "degrees", "the gantry was tilted by {value:.1f} degrees; the shear was taken out", note=0.5, flag=32.0),
    "vault_cut": _cut("top", 1.0, 60.0),
    "field_cut_front": _cut("front", 1.0, 15.0),
    "field_cut_left": _cut("left", 3.0, 40.0),
    "field_cut_right": _cut("right", 3.0, 40.0),
    "field_cut_back": _cut("back", 3.0),  # the neck is cut in every scan
    "metal": Rule("ml", "{value:.2f} ml reach {hu} HU (metal): surfaces near it may show streaks", 0.05, 0.5),
    "saturated": Rule(
        "ml", "{value:.2f} ml stand at the largest value, {hu} HU: the scanner cut off what is denser (metal)",
        flag=0.1),
    "streaks": Rule(
        "ml", "{value:.1f} ml in the slices with metal are bone or skin where the slices above and below are not: "
        "streaks of the metal may show in both pictures; or it is thin bone of palate or base, as in a tilted head",
        flag=1.5),
    # the surfaces
    "mandible_missing": Rule(
        "share", "the mandible is missing or cut off: {value:.0%} of its surface found, the bone in front ends "
        "{depth:.0f} mm below the eyes (cohort's chin: {chin:.0f} mm)", flag=0.6, at_least=True),
    "vault_missing": Rule(
        "share", "the vault is missing or cut off: {value:.0%} of its surface found", flag=0.7, at_least=True),
    "bone_defect": Rule(
        "cm2", "bone defect of about {value:.1f} cm2 on the {place} (beside its mirror image)", flag=3.0),
    # the pose
    "fit": Rule("mm", "the reference skull fits to {value:.1f} mm only: look at the pose", flag=4.0),
    "asymmetry": Rule(
        "mm", "the skull is {value:.1f} mm off its mirror image: asymmetric or damaged, or motion", flag=2.8),
    "frankfurt_by_fit": Rule(
        "ear canals", "the ear canals were not found: the head is levelled by the fit of the reference skull alone",
        note=2, at_least=True),
    "orientation": Rule(
        "degrees", "the head lies {value:.0f} degrees off the header's axes: is its orientation right?", flag=40),
    "size": Rule(
        "share", "{size} the size of the cohort's skull: a child, or a wrong spacing in the header", flag=0.15),
    "orbits_off_frame": Rule(
        "mm", "an orbit lies {value:.1f} mm from the cohort's mean: closer together or farther apart than most",
        note=5.0),
}  # fmt: skip


def judge(
    name: str, value: float, *, severity: Severity | None = None, limit: float | None = None, **details: Any
) -> list[Finding]:
    """Return one finding where ``value`` passes a limit of ``RULES[name]``, else none.

    Args:
        severity: replaces the rule's, for a property that more than its value makes bad.
        limit: replaces the rule's only limit.
        details: what the rule's sentence names beside the value.
    """
    rule = RULES[name]
    limits: dict[Severity, float | None] = {"refuse": rule.refuse, "flag": rule.flag, "note": rule.note}
    for level, stored in limits.items():
        bound = stored if stored is None or limit is None else limit
        if bound is not None and (value < bound if rule.at_least else value > bound):
            text = rule.text.format(value=value, **details)
            return [Finding(name, severity or level, value, bound, rule.unit, text)]
    return []


@contextmanager
def naming_flags(findings: list[Finding]) -> Iterator[None]:
    """Add the flags among ``findings`` to the message of a ScanError from the block: they may be why."""
    try:
        yield
    except ScanError as error:
        flags = [finding.text for finding in findings if finding.severity == "flag"]
        raise ScanError("; ".join([str(error), *flags])) from error
