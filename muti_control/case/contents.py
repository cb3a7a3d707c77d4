"""What the report of a case says, as sections; ``muti_control.case.pages`` makes the page and the PDF of them.

All comes from ``record.json``, the log and the pictures of the folder, so that the same folder gives the same report.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data.biometrics import BODY_MASS_WORDS
from data.sheet import NOTICE
from muti_control.case.verify import Verification

REPORT_WRITTEN = "report written"
REPORTS = ("report.pdf", "report.html")
MAX_SKULLS = 50
_LIGHTS = {
    "ok": "GREEN: nothing to doubt",
    "warning": "YELLOW: read with care",
    "stop": "RED: no sound basis",
}
_SOURCES = {
    "stated": "Stated: given to the program by the examiner or in the list of skulls.",
    "assumed": "Assumed: not stated. The program chose a possible value for each face; it tells nothing of the person.",
    "estimated": "Estimated by the program, with the error that its row of error rates gives.",
    "unknown": "Unknown. Nothing was assumed, and the program was told nothing.",
}
_INVENTED = {
    "mandible": "The lower jaw is missing. Mouth, chin and lower outline of the face are invented in every variant.",
    "vault": "The vault is missing. Forehead and the upper outline of the head are invented in every variant.",
    "left": "Bone of the left side is missing. That side of the face is invented in every variant.",
    "right": "Bone of the right side is missing. That side of the face is invented in every variant.",
}
_CAPTIONS = {
    "prepared": "The skull as the program saw it, after the input check prepared the picture",
    "landmarks": "Landmarks of the face that guided the drawing, on the skull and on the first face",
    "mean": "Mean of all variants: what they have in common",
    "spread": "Spread: where the variants differ. Little spread is agreement of the variants, not proof",
    "overlay": "Skull and face, one over the other and side by side",
    "grid": "The face at other values of the attributes, with the same random numbers",
}
_LIMITS = (
    "A skull does not determine a face. Several people may fit one skull, and one person's face changes with age and "
    "weight.",
    "The program learnt from a limited group of people. For others it is less reliable, and it cannot say by how much.",
    "A face that looks like a known person is no evidence that the skull is of this person. Identity is established by "
    "other means (DNA, teeth, medical findings).",
    "The variants show what the program holds possible. The true face may lie outside all of them.",
    "The faces must not be made sharper, coloured or given hair without saying so wherever they are shown.",
)


@dataclass(frozen=True)
class Table:
    """Rows of text below a head. widths: of the columns, relative to each other."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    widths: Sequence[int]


@dataclass(frozen=True)
class Pictures:
    """Pictures with their captions, ``across`` of them side by side."""

    files: Sequence[tuple[Path, str]]
    across: int


@dataclass(frozen=True)
class Points:
    """Short paragraphs in a list."""

    lines: Sequence[str]


_MEASURES = {
    "rank1": "True face ranked first",
    "best of": "At least one of several faces finds the true face",
}
_BASIS = Table(
    ("Part of the face", "Rests on"),
    [
        ("Width and height of face and forehead, cheekbones, jaw where it is there", "Bone: observed"),
        ("Place of the eyes, width of the nose, height of the mouth", "Bone, by statistics: uncertain"),
        ("Thickness of soft tissue, tip of the nose, lips, ears, eyelids", "Statistics, chance: invented"),
        ("Skin, wrinkles, expression", "Statistics, chance: invented"),
    ],
    (10, 7),
)
Block = str | Table | Pictures | Points


@dataclass(frozen=True)
class Section:
    """A heading, and what stands below it."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Heading:
    """What the examiner says about the case; empty where nothing is said."""

    case_number: str = ""
    examiner: str = ""
    notes: str = ""


@dataclass(frozen=True)
class Contents:
    """A report. running: for the head of each page. date: of the run, ISO 8601."""

    title: str
    running: str
    date: str
    sections: Sequence[Section]


def contents(folder: Path, record: Mapping[str, Any], state: Verification, heading: Heading) -> Contents:
    """Return the report of a finished run.

    Raises:
        ValueError: the run is not finished, has too many skulls, or its record lacks something.
    """
    if not record.get("finished"):
        raise ValueError(f"{folder}: its run is not finished; resume=true finishes it, then write the report")
    cases = record["cases"]
    if len(cases) > MAX_SKULLS:
        raise ValueError(f"{folder}: has {len(cases)} skulls; a report takes at most {MAX_SKULLS}")
    running = f"Case {heading.case_number}" if heading.case_number else "Facial approximation"
    try:
        sections = [
            _summary(cases, record, heading),
            _exhibits(cases, record),
            *(section for case in cases for section in _of_case(folder, case, record, len(cases) > 1)),
            Section("What rests on bone, and what is invented", [_BASIS, *_invented(cases)]),
            Section("Error rates", list(_error_rates(record.get("calibration") or {}))),
            Section("Limits", [Points(_LIMITS)]),
            _making(record),
            _integrity(state),
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder}: its record is none of a run of sample.py ({error!r} is missing)"
        ) from error
    return Contents("Facial approximation from a skull", running, record["date"], sections)


def _summary(cases: Sequence[Mapping[str, Any]], record: Mapping[str, Any], heading: Heading) -> Section:
    faces = sum(len(case["faces"]) for case in cases)
    what = f"{faces} face{'s' * (faces != 1)} that a computer program drew from {len(cases)} "
    what += f"picture{'s' * (len(cases) != 1)} of a skull"
    rows = [
        ("Case number", heading.case_number or "not stated"),
        ("Examiner", heading.examiner or "not stated"),
        ("Faces drawn on", _time(record["date"])),
        ("Input check", _LIGHTS.get(_level(cases), "not made")),
        *([("Skulls not drawn", ", ".join(record["not_drawn"]))] if record.get("not_drawn") else []),
        *([("Notes of the examiner", heading.notes)] if heading.notes else []),
    ]
    return Section(
        NOTICE,
        [
            f"This report shows {what}. The faces show what the person may have looked like. They are no portrait, and "
            "they do not prove who the person was. Their purpose is to help people remember someone who is missing, so "
            "that identity can then be established by other means.",
            "Every choice that shaped the faces is listed below: what was stated, what was assumed, what rests on bone "
            "and what is invented. With the same files and settings another examiner can draw the same faces again.",
            Table(("", ""), rows, (1, 3)),
        ],
    )


def _time(text: str) -> str:
    return f"{datetime.fromisoformat(text).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _level(cases: Sequence[Mapping[str, Any]]) -> str:
    """Return the worst level of the input check; empty where it was not made."""
    levels = [case["check"]["level"] for case in cases if case.get("check")]
    return max(levels, key=list(_LIGHTS).index, default="")


def _exhibits(cases: Sequence[Mapping[str, Any]], record: Mapping[str, Any]) -> Section:
    exhibits: dict[tuple[str, str], tuple[str, ...]] = {}

    def add(role: str, file: Mapping[str, Any] | None) -> None:
        if file and file.get("sha256"):
            name = str(file.get("file") or Path(str(file.get("path", ""))).name)
            size = f"{file['size']:,} bytes" if "size" in file else ""
            row = role, f"{name}\n{size}".strip(), f"{file['sha256'][:32]}\n{file['sha256'][32:]}"
            exhibits.setdefault((role, file["sha256"]), row)

    for case in cases:
        add("Skull", case.get("skull"))
        landmarks = case.get("landmarks") or {}
        add("Landmarks, given" if landmarks.get("source") == "given" else "Network of landmarks", landmarks)
        add("Exemplar of skin", case.get("texture"))
        add("True face, for comparison", case.get("true_face"))
    add("List of skulls", record.get("manifest"))
    add("Scan", record.get("scan"))
    rows = [(str(number), *row) for number, row in enumerate(exhibits.values(), 1)]
    text = "The files behind the faces. A SHA-256 is a fingerprint of a file: one changed byte gives another."
    return Section("Exhibits", [text, Table(("No.", "What", "File", "SHA-256"), rows, (2, 8, 13, 14))])


def _of_case(
    folder: Path, case: Mapping[str, Any], record: Mapping[str, Any], named: bool
) -> Iterator[Section]:
    """Yield the sections of one skull."""
    of = f" of {case['name']}" if named else ""
    yield Section(f"What is known of the person{of}", list(_attributes(case)))
    yield Section(f"Input check{of}", list(_check(case)))
    faces = [(folder / face["file"], _caption(face)) for face in case["faces"]]
    own = {f"{case['name']}_{kind}.png": kind for kind in _CAPTIONS}
    own |= {file: kind for kind, file in (case.get("outputs") or {}).items()}
    together = [
        (folder / name, f"{_CAPTIONS.get(kind, kind)} ({name}).")
        for name, kind in own.items()
        if (folder / name).is_file() and name in record["files"]
    ]
    blocks: list[Block] = [
        f"All {len(faces)} variants that were drawn; none was left out. Each has its own random numbers (seed)."
        if len(faces) > 1
        else "The one face that was drawn."
    ]
    yield Section(f"Faces{of}", [*blocks, Pictures(faces, 4 if len(faces) > 3 else max(2, len(faces)))])
    if together:
        wide = [Pictures([picture], 1) for picture in together]
        yield Section(f"The faces together{of}", [*wide])


def _attributes(case: Mapping[str, Any]) -> Iterator[Block]:
    attributes = case.get("attributes") or {
        name: {"value": value, "source": "stated"} for name, value in (case.get("biometrics") or {}).items()
    }
    if not attributes:
        yield "Nothing was stated about the person, and nothing was assumed: the program was told nothing."
        return
    rows = []
    for name, attribute in attributes.items():
        drawn = [(face.get("attributes") or {}).get(name, attribute)["value"] for face in case["faces"]]
        values = list(dict.fromkeys(_value(name, value) for value in drawn if value is not None))
        text = ", ".join(values) or "-"
        if "range" in attribute:
            text = f"stated as {' to '.join(f'{years:g}' for years in attribute['range'])}; drawn: {text}"
        rows.append((name.replace("_", " ").capitalize(), text, attribute["source"]))
    yield Table(("Attribute", "Value", "Source"), rows, (4, 9, 4))
    yield Points([_SOURCES[source] for source in dict.fromkeys(row[2] for row in rows)])


def _value(name: str, value: Any) -> str:
    if name == "body_mass" and value in BODY_MASS_WORDS:
        return f"{value} ({BODY_MASS_WORDS[value]})"
    return f"{value:g} years" if name == "age" and isinstance(value, int | float) else str(value)


def _check(case: Mapping[str, Any]) -> Iterator[Block]:
    check, note = case.get("check"), case.get("note")
    if not check:
        yield "The picture of the skull was not checked in this run."
    else:
        yield f"{_LIGHTS[check['level']]}."
        findings = [(one["name"].replace("_", " "), one["text"], _measured(one)) for one in check["findings"]]
        if findings:
            yield Table(("Finding", "Reason", "Measured (limit)"), findings, (4, 10, 5))
        less = check.get("training_skulls_less_alike")
        if less is not None:
            yield f"Of the skulls that the model learnt from, {less:.0%} are less alike to the others than this one."
    prepared = (check or {}).get("prepared") or []
    steps = [*([note] if note else []), *prepared]
    if before := (check or {}).get("findings_before"):
        yield f"Before the picture was prepared: {'; '.join(finding['text'] for finding in before)}."
    yield f"What was done to the picture: {'; '.join(steps) or 'nothing'}."


def _measured(finding: Mapping[str, Any]) -> str:
    value, limit = finding.get("value"), finding.get("limit")
    return "" if value is None else f"{value:.3g}" + ("" if limit is None else f" ({limit:.3g})")


def _caption(face: Mapping[str, Any]) -> str:
    attributes = (face.get("attributes") or {}).items()
    values = [(name, entry["value"]) for name, entry in attributes if entry["source"] == "assumed"]
    assumed = [f"{name.replace('_', ' ')} {_value(name, value)}" for name, value in values]
    seed = f"{face['file']}\nseed {face['seed']}"
    return seed + (f"\nassumed: {', '.join(assumed)}" if assumed else "")


def _invented(cases: Sequence[Mapping[str, Any]]) -> Iterator[Block]:
    """Yield what is invented in these faces, beside soft tissue."""
    lines = ["Soft tissue is invented always: no part of it can be seen on a skull."]
    for case in cases:
        of = f"{case['name']}: " if len(cases) > 1 else ""
        names = {finding["name"] for finding in (case.get("check") or {}).get("findings", ())}
        missing = {(case.get("missing_bone") or {}).get("region")}
        missing |= {"mandible"} if "no_mandible" in names else set()
        lines += [of + text for region, text in _INVENTED.items() if region in missing]
        if "cropped" in names:
            lines.append(
                f"{of}The picture cuts the skull off. What lies outside it is invented in every variant."
            )
        if case.get("skull") is None:
            lines.append(f"{of}There is no skull. The whole face is invented.")
        if case.get("texture"):
            lines.append(
                f"{of}The look of the skin is taken from another person's picture, {case['texture']['file']}."
            )
        source = (case.get("landmarks") or {}).get("source")
        if source == "given":
            lines.append(f"{of}The landmarks are the examiner's, {case['landmarks']['file']}.")
        elif source == "read off the skull":
            lines.append(f"{of}The landmarks of the face were estimated by a network from the skull.")
        elif source:
            lines.append(f"{of}The landmarks are {source}: a true case has none such.")
    yield Points(lines)


def _error_rates(calibration: Mapping[str, Any]) -> Iterator[Block]:
    rates, factor = calibration.get("error_rates"), calibration.get("spread_factor")
    if rates:
        rows = [(*row, _with_interval(figure)) for row, figure in _figures(rates)]
        yield (
            "Measured on people whom the model did not learn from. In brackets: the interval that holds the true rate "
            "with 95 % confidence. The rates are of these weights and of that group of people alone."
        )
        yield Table(("What", "Group", "Rate"), rows, (6, 5, 6))
        yield from (
            f"{name.replace('_', ' ').capitalize()}: {text}"
            for name, text in rates.items()
            if isinstance(text, str | int)
        )
    else:
        yield (
            "No error rates exist for these weights: nobody has measured how often such a face leads to the right "
            "person. Nothing in this report says how likely it is that the faces resemble the person."
        )
    yield (
        f"The ellipses of the spread picture were scaled (by {factor:.2f}) so that on people apart they hold the true "
        "landmark in 90 % of cases."
        if factor
        else "The spread of the variants was not calibrated: it does not say how far the true face may lie from them."
    )


def _figures(
    rates: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, str], Mapping[str, Any]]]:
    """Yield (what, group) and the figure, a mapping with value and perhaps low, high, n and unit."""
    for key, inner in rates.items():
        own = (*path, str(key).replace("_", " "))
        if isinstance(inner, Mapping) and "value" in inner:
            faces = (
                f" ({inner['draws']} faces, among the first {inner['within']})" if "draws" in inner else ""
            )
            group = (" ".join(own[1:]) or "all") + faces
            yield (_MEASURES.get(own[0], own[0]), group), {"unit": rates.get("unit") or _unit(own), **inner}
        elif isinstance(inner, Mapping):
            yield from _figures(inner, own)


def _unit(path: Sequence[str]) -> str:
    words = " ".join(path).split()
    return next((unit for unit in ("mm", "px") if unit in words), "%")


def _with_interval(figure: Mapping[str, Any]) -> str:
    unit, low, high = figure["unit"], figure.get("low"), figure.get("high")
    factor, digits = (100, 1) if unit == "%" else (1, 2)
    text = f"{factor * figure['value']:.{digits}f} {unit}"
    if low is not None and high is not None and math.isfinite(low) and math.isfinite(high):
        text += f" [{factor * low:.{digits}f} to {factor * high:.{digits}f}]"
    return text + (f", n = {figure['n']}" if figure.get("n") else "")


def _making(record: Mapping[str, Any]) -> Section:
    environment, weights, sampling = record["environment"], record["weights"], record["sampling"]
    rows = [
        ("Software", f"iccr-diff {environment['iccr_diff']}, revision {environment['git']}"),
        ("Weights", f"{weights['file']}, step {weights['step']}\nSHA-256 {weights['sha256']}"),
        ("Libraries", f"Python {environment['python']}, torch {environment['torch']}, "
         + ", ".join(f"{name} {version}" for name, version in environment["libraries"].items())),
        ("Machine", f"{environment['system']}, {environment['device_name']} ({environment['device']}), "
         f"{environment['precision']}, {environment['threads']} threads"),
        ("Sampler", _inline(sampling)),
        ("SPGD", _inline(record["spgd"]) if record.get("spgd") else "off"),
        ("Seeds", ", ".join(dict.fromkeys(str(face["seed"]) for case in record["cases"] for face in case["faces"]))),
        ("Resumed", f"{len(record.get('earlier_runs', ()))} times"),
    ]  # fmt: skip
    repeat = "The file record.json holds all settings. With the same files it draws the same faces again."
    return Section("How the faces were made", [repeat, Table(("", ""), rows, (1, 5))])


def _inline(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_inline(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return "[" + " ".join(map(_inline, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _integrity(state: Verification) -> Section:
    entries = [entry for entry in state.log.entries if entry["action"] != REPORT_WRITTEN]
    head = entries[-1]["hash"] if entries else "none"
    files = [
        (name, f"{file['size']:,}", file["sha256"])
        for name, file in state.files.items()
        if name not in REPORTS
    ]
    differences = [line for line in state.differences if not line.startswith(REPORTS)]
    log = [
        (str(entry["number"]), _time(entry["time"]), entry["action"], entry["software"]) for entry in entries
    ]
    found = "these differences were found:" if differences else "all was as logged."
    return Section(
        "The case folder and its log",
        [
            "The log (log.jsonl) says what was done in the case folder and when. Each entry is bound to the one before "
            "by its hash. Whoever has the folder can check that nothing in it was changed, with the command below; the "
            "hash in it is that of the last entry before this report.",
            f"python -m muti_control.case.verify FOLDER head={head}",
            f"When this report was written, {found}",
            *([Points(differences)] if differences else []),
            Table(("Entry", "Time", "Action", "Software"), log, (2, 7, 7, 14)),
            Table(("File", "Bytes", "SHA-256"), files, (9, 3, 23)),
        ],
    )
