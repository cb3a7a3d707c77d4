"""The probes that the reader is shown: best, median and worst, as pictures that lie beside the results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from data.cases import read_skull
from data.images import to_uint8, write_png
from muti_control.evaluation.measuring import Judged
from muti_control.evaluation.methods.faces import read_grey
from muti_control.evaluation.protocol.inputs import Inputs
from muti_control.evaluation.protocol.run_folder import CASES
from muti_control.evaluation.results.results import Case, CasePicture

EACH = 3  # cases of each kind
BESIDE = ("ridge", "ceiling")  # methods shown beside the one that is judged


def choose_cases(
    folder: Path, inputs: Inputs, judged: Mapping[str, Judged], method: str, recogniser: str
) -> list[Case]:
    """Best, median and worst probes of a method by rank, then by distance; their pictures go to ``folder/cases``."""
    verdict = judged[method].verdicts[recogniser]
    known = np.flatnonzero(verdict.ranks > 0)
    order = known[np.lexsort((np.nan_to_num(verdict.own[known], nan=np.inf), verdict.ranks[known]))]
    middle = max(0, (len(order) - EACH) // 2)
    chosen = {
        "best": order[:EACH],
        "median": order[middle : middle + EACH],
        "worst": order[-EACH:][::-1],
    }
    taken: set[int] = set()
    cases = []
    (folder / CASES).mkdir(exist_ok=True)
    for kind in ("best", "worst", "median"):
        for probe in (int(i) for i in chosen[kind] if int(i) not in taken):
            taken.add(probe)
            pictures = _pictures(folder, inputs, judged, method, probe, int(verdict.nearest[probe]))
            distance = None if np.isnan(verdict.own[probe]) else float(verdict.own[probe])
            cases.append(
                Case(kind, probe, method, recogniser, int(verdict.ranks[probe]), distance, tuple(pictures))
            )
    return sorted(cases, key=lambda case: ("best", "median", "worst").index(case.kind))


def _pictures(
    folder: Path, inputs: Inputs, judged: Mapping[str, Judged], method: str, probe: int, nearest: int
) -> list[CasePicture]:
    name = inputs.probe_cases[probe].name
    row = int(inputs.rows[probe])
    sources: list[tuple[str, str, Path | None, str]] = [
        ("skull", "skull", inputs.gallery[row].skull_path, ""),
        ("reconstruction", judged[method].faces.info.label, judged[method].faces.pictures[probe][0], ""),
        ("truth", "true face", inputs.gallery[row].face_path, ""),
    ]
    if nearest >= 0 and nearest != row:
        sources.append(("nearest", "nearest in the gallery", inputs.gallery[nearest].face_path, ""))
    for other in BESIDE:
        if other in judged and other != method and probe in judged[other].faces.pictures:
            faces = judged[other].faces
            sources.append((other, faces.info.label, faces.pictures[probe][0], ""))
    found: list[CasePicture] = []
    for role, label, path, caption in sources:
        if path is not None:
            target = f"{CASES}/{name}_{role}.png"
            if role == "skull":
                shown = to_uint8(read_skull(inputs.probe_cases[probe], inputs.size).mean(axis=2))
            else:
                shown = read_grey(path, inputs.size)
            write_png(folder / target, shown)
            found.append(CasePicture(role, label, target, caption))
    return found
