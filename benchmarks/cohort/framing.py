"""Do the heads fit their pictures, is the bone inside the face, and are the grey levels those of a real pair?

    python -m benchmarks.cohort.framing [key=value ...]
    python -m benchmarks.cohort.framing cohort=cohort

Every frontal pair of the cohort and every turned one is looked at. ``bone outside``: of the pixels that the skull
draws, the share where the face draws nothing. Grey levels are percentiles of the drawn pixels, averaged over pictures.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.cohort.cohort_pictures import SPLITS, Shown, has_manifest, read_cohort
from cldm.record import write_json
from ldm.checkpoint import git_revision
from ldm.config import parse_command_line
from muti_control.evaluation.results.statistics import bootstrap_interval

BORDER_PX = 4.0  # nothing may come closer to the border, in pictures of 256 px
LARGEST_SHARE_OUTSIDE = 0.001  # of a skull's drawn pixels
PERCENTILES = (5, 50, 95)
REAL_PAIR = {"skull": (93, 168, 245), "face": (95, 176, 246)}  # of a published real pair


@dataclass
class FramingConfig:
    """cohort: folder of `python -m data.cohort`.  num: pairs of each list; 0 takes all.  out: OUT.json."""

    cohort: str = "cohort"
    num: int = 0
    out: str = "benchmarks/results/framing"


@dataclass(frozen=True)
class Framed:
    """One pair. Distances to the nearest border in px; ``outside`` and ``grey`` as in this module's text."""

    name: str
    landmark_px: float
    skull_px: float
    face_px: float
    outside: float
    grey: dict[str, tuple[float, ...]]


def border_px(picture: NDArray[np.uint8]) -> float:
    """Empty px between what is drawn and the nearest border; 0 where it touches.

    Raises:
        ValueError: nothing is drawn.
    """
    rows, columns = np.flatnonzero(picture.any(1)), np.flatnonzero(picture.any(0))
    if len(rows) == 0:
        raise ValueError("a picture in which nothing is drawn")
    height, width = picture.shape
    return float(min(rows[0], columns[0], height - 1 - rows[-1], width - 1 - columns[-1]))


def share_outside(skull: NDArray[np.uint8], face: NDArray[np.uint8]) -> float:
    """Of the pixels that the skull draws, the share where the face draws nothing."""
    bone = skull > 0
    return float((bone & (face == 0)).sum() / max(int(bone.sum()), 1))


def frame(shown: Shown) -> Framed:
    """Measure one pair."""
    side = shown.face.shape[0]
    points = shown.landmarks
    return Framed(
        name=shown.record.target or shown.record.source,
        landmark_px=float(min(points.min(), side - 1 - points.max())),
        skull_px=border_px(shown.skull),
        face_px=border_px(shown.face),
        outside=share_outside(shown.skull, shown.face),
        grey={
            name: tuple(float(v) for v in np.percentile(picture[picture > 0], PERCENTILES))
            for name, picture in (("skull", shown.skull), ("face", shown.face))
        },
    )


def figures(framed: Sequence[Framed], side: int, seed: int = 0) -> dict[str, Any]:
    """Counts, worst cases and means with 95 % bootstrap intervals over pairs."""
    rng = np.random.default_rng(seed)
    margin = BORDER_PX * side / 256
    outside = np.array([f.outside for f in framed])
    result: dict[str, Any] = {"num": len(framed)}
    for part in ("landmark_px", "skull_px", "face_px"):
        values = np.array([getattr(f, part) for f in framed])
        result[part] = {"smallest": float(values.min()), "too_close": int((values < margin).sum())}
    worst = int(outside.argmax())
    result["outside"] = {
        "mean": float(outside.mean()),
        "mean_interval": bootstrap_interval(outside, rng, 1000),
        "largest": float(outside[worst]),
        "largest_of": framed[worst].name,
        "too_large": int((outside > LARGEST_SHARE_OUTSIDE).sum()),
    }
    result["grey"] = {
        name: [float(np.mean([f.grey[name][k] for f in framed])) for k in range(len(PERCENTILES))]
        for name in REAL_PAIR
    }
    return result


def table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown, one line per list of pairs."""
    head = [
        "pairs",
        "number",
        "nearest to the border: landmark, skull, face, px",
        f"within {BORDER_PX:.0f} px",
    ]
    head += ["bone outside, mean [95 %]", "largest", "above 0.1 %", "grey 5/50/95 %: skull", "face"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, f in found.items():
        parts = [f[part] for part in ("landmark_px", "skull_px", "face_px")]
        out = f["outside"]
        low, high = out["mean_interval"]
        cells = [
            name,
            str(f["num"]),
            ", ".join(f"{part['smallest']:.1f}" for part in parts),
            str(sum(part["too_close"] for part in parts)),
            f"{100 * out['mean']:.4f} % [{100 * low:.4f}, {100 * high:.4f}]",
            f"{100 * out['largest']:.3f} %",
            str(out["too_large"]),
            *("/".join(f"{v:.0f}" for v in f["grey"][kind]) for kind in ("skull", "face")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    real = ["/".join(str(v) for v in REAL_PAIR[kind]) for kind in ("skull", "face")]
    lines.append("| a published real pair | 1 | | | | | | " + " | ".join(real) + " |")
    return "\n".join(lines)


def lists_of(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Name of a group of pairs and its manifests: the frontal ones, and with views the turned ones."""
    yield "frontal", list(SPLITS)
    views = [f"{split}_views" for split in SPLITS if has_manifest(root, f"{split}_views")]
    if views:
        yield "turned", views


def measure(config: FramingConfig) -> dict[str, dict[str, Any]]:
    """Figures by group of pairs.

    Raises:
        ValueError: no cohort there; ManifestError as its reader does.
    """
    root = Path(config.cohort)
    found: dict[str, dict[str, Any]] = {}
    for name, manifests in lists_of(root):
        framed: list[Framed] = []
        side = 256
        for manifest in manifests:
            for shown in read_cohort(root, manifest, config.num):
                if name == "turned" and not (shown.record.extra or {}):
                    continue  # the frontal ones stand in this list too
                side = shown.face.shape[0]
                framed.append(frame(shown))
        if framed:
            found[name] = figures(framed, side)
    return found


def main(arguments: Sequence[str]) -> int:
    """The command. Returns the exit code: 0, or 2 (130: interrupted) with one message on stderr."""
    try:
        config = parse_command_line(FramingConfig, arguments)
        out = Path(config.out).with_suffix(".json")
        out.parent.mkdir(parents=True, exist_ok=True)
        found = measure(config)
        write_json(out, {"config": asdict(config), "git": git_revision(), **found})
    except (ValueError, OSError) as error:
        print(f"framing: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nframing: interrupted; no figures were written", file=sys.stderr)
        return 130
    print(f"{table(found)}\n\nfigures: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
