"""Do faces come nearer to the truth when the matching network guides them, or chooses among them?

    python -m benchmarks.model.match_guidance data.root=wide split=valid people=30 [key=value ...]

Each person's face is drawn without guidance, from eight seeds; the network then chooses one of them (re-ranked), and
guides the first seed as ``modes`` say, at each of ``scales``, by the energy ``match`` alone. Judges that guided nothing
say how far a face is from the true one: dlib's descriptor, the shape of dlib's 68 points (Procrustes, times 100), our
landmarks (mm). Differences are paired over people, with 95 % bootstrap intervals: of a guided face to the same seed
unguided, of the chosen one to the mean of its eight. Beside them: the network's own score, the rank of the true face
among the gallery of the split by dlib, the angle between what guidance does to x_t and what the denoiser then does (90
degrees: unrelated), and the cost. Scales are chosen on validation people. What is measured is kept in ``out`` and not
drawn again.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PositiveFloat, PositiveInt
from tqdm import tqdm

from benchmarks.model.real_heads import Judge
from benchmarks.results_file import append_section, run, table
from data.biometrics import Attributes
from data.images import read_image, to_uint8
from data.manifest import Record, read_manifest
from muti_control.case.calibrate import DataSettings, spread_evenly
from muti_control.evaluation.judges.dlib_recogniser import Recogniser, descriptor_distances
from muti_control.evaluation.results.statistics import paired_difference
from muti_control.networks.pipnet.reader import LandmarkReader
from muti_control.record import write_json
from muti_control.sampling.config import DEMO_WEIGHTS, FACE_LANDMARKS, MATCH_WEIGHTS, SKULL_LANDMARKS
from muti_control.sampling.reconstructor import Reconstructor
from muti_control.search.vectors import Embedder
from settings.base import Settings

Row = dict[str, float]
JUDGES = ("dlib", "shape", "landmarks")
MM_PER_PX = 280 / 256
NAMES = {"dlib": "dlib distance", "shape": "shape x 100", "landmarks": "landmarks, mm", "score": "own score"}
OFF, CHOSEN = "off", "re-ranked"


class GuidanceConfig(Settings):
    """What is measured."""

    split: Literal["valid", "test"] = "valid"
    """Whose people."""
    people: PositiveInt = 30
    """How many of them, spread evenly."""
    seeds: PositiveInt = 8
    """Faces among which the network chooses."""
    modes: list[Literal["plain", "warmup", "spgd"]] = ["plain", "warmup", "spgd"]
    """Kinds of guidance."""
    scales: list[PositiveFloat] = [0.01, 0.03, 0.1]
    """How far guidance goes: spgd.scale."""
    landmarks: Literal["auto", "none"] = "auto"
    """Landmarks that the model is shown."""
    steps: PositiveInt = 6
    """Steps of the sampler."""
    decoder: str | None = "models/demo/guidance_decoder.safetensors"
    """Decoder that guidance looks through; null takes the model's own."""
    weights: str = DEMO_WEIGHTS
    """The model."""
    landmark_weights: str = SKULL_LANDMARKS
    """Network that reads landmarks off skulls."""
    face_weights: str = FACE_LANDMARKS
    """Network that reads landmarks off faces, a judge."""
    match_weights: str = MATCH_WEIGHTS
    """The matching network."""
    data: DataSettings = DataSettings(root="wide")
    out: str = "results/match_guidance.json"
    """JSON file of the results, which are not measured again."""
    append: bool = False
    """Add the table to benchmarks/RESULTS.md."""


class Drawer:
    """Draws and judges the faces of one person."""

    def __init__(self, cfg: GuidanceConfig, gallery: NDArray[np.floating]) -> None:
        self.cfg, self.gallery = cfg, gallery
        self.model = Reconstructor.load(cfg.weights, landmark_weights=cfg.landmark_weights)
        self.reader, self.recogniser = LandmarkReader.load(cfg.face_weights), Recogniser()
        self.embedder = Embedder.load(cfg.match_weights)

    def measure(self, record: Record, place: int) -> dict[str, Row]:
        """Return the figures of each kind of face by its name. place: of the person in the gallery."""
        cfg, sex = self.cfg, record.biometrics.sex
        assert record.face_path is not None
        true, skull = (to_uint8(read_image(path)[0]) for path in (record.face_path, record.skull_path))
        judge = Judge(true, MM_PER_PX, self.reader)
        shown = (skull / np.float32(255)).transpose(2, 0, 1)
        own = self.embedder.vectors(shown[None], "skull", [sex])[0]

        def figures(faces: Sequence[NDArray[np.uint8]]) -> list[Row]:
            pictures = np.stack([face.transpose(2, 0, 1) / np.float32(255) for face in faces])
            scores = self.embedder.vectors(pictures, "face") @ own
            rows = []
            for face, score in zip(faces, scores, strict=True):
                distances = judge.distances(face)
                away = descriptor_distances(self.recogniser.look(face)[0][None], self.gallery)[0]
                row = dict(zip(JUDGES, distances[: len(JUDGES)].tolist(), strict=True))
                row["score"] = float(score)
                row["shape"] *= 100
                rows.append(row | {"rank": float((away <= away[place]).sum())})
            return rows

        began = time.process_time()
        faces = self._draw(record, cfg.seeds).faces
        took = (time.process_time() - began) / cfg.seeds
        rows = figures(faces)
        mean = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        picture = (true / np.float32(255)).transpose(2, 0, 1)[None]
        mean["true"] = float(self.embedder.vectors(picture, "face")[0] @ own)
        best = max(rows, key=lambda row: row["score"])
        result = {
            OFF: rows[0] | {"seconds": took},
            "mean": mean,
            CHOSEN: best | {"seconds": took * cfg.seeds},
        }
        for mode in cfg.modes:
            for scale in cfg.scales:
                began = time.process_time()
                drawn = self._draw(record, 1, {"mode": mode, "scale": scale, "trace": True})
                (row,) = figures(drawn.faces)
                took = time.process_time() - began
                hook = drawn.drawn[0][2]
                angles = [float(step.to_denoising[0]) for step in hook.steps if step.to_denoising is not None]
                result[f"{mode} {scale:g}"] = row | {"seconds": took, "angle": float(np.nanmean(angles))}
        return result

    def _draw(self, record: Record, num: int, spgd: dict[str, Any] | None = None) -> Any:
        cfg = self.cfg
        settings = {"landmarks": 0.0, "containment": 0.0, "match": 1.0, "match_weights": cfg.match_weights}
        settings |= {"decoder": cfg.decoder} | (spgd or {})
        return self.model.reconstruct(
            record.skull_path,
            Attributes(**vars(record.biometrics)),
            num,
            landmarks=cfg.landmarks,
            spgd=settings if spgd else None,
            sampling={"steps": cfg.steps},
            force=True,
        )


def table_of(results: dict[str, dict[str, Row]]) -> str:
    """Return the means, and the paired differences to faces that nothing guided."""
    people, rows = [*results.values()], []
    for name in people[0]:
        if name == "mean":
            continue
        with_ = [person[name] for person in people]
        without = [person["mean" if name == CHOSEN else OFF] for person in people]
        cells = []
        for judge in NAMES:
            a, b = (np.array([row[judge] for row in part]) for part in (with_, without))
            difference, low, high, _ = paired_difference(a, b)
            cells.append(
                f"{a.mean():.3f}"
                if name == OFF
                else f"{a.mean():.3f} ({difference:+.3f} [{low:+.3f}, {high:+.3f}])"
            )
        first = np.mean([row["rank"] == 1 for row in with_])
        angles = [row["angle"] for row in with_ if "angle" in row]
        seconds = np.mean([row["seconds"] for row in with_])
        rows.append(
            [name, *cells, f"{100 * first:.0f}", f"{np.mean(angles):.1f}" if angles else "", f"{seconds:.1f}"]
        )
    return table(["faces", *NAMES.values(), "dlib rank-1, %", "angle, degrees", "s a face"], rows)


def measure(cfg: GuidanceConfig, arguments: Sequence[str]) -> None:
    """Draw what is not measured yet, and print the table."""
    records = read_manifest(Path(cfg.data.root, f"split_data/{cfg.split}.json"))
    place = {record.source: k for k, record in enumerate(records)}
    people, out = spread_evenly(records, cfg.people), Path(cfg.out)
    told = cfg.model_dump(exclude={"people", "out", "append"})
    stored: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    if stored and stored["settings"] != told:
        raise ValueError(f"out: {out} holds results of other settings; give another out=FILE")
    results: dict[str, dict[str, Row]] = stored.get("people", {})
    missing = [record for record in people if record.source not in results]
    if missing:
        looker = Recogniser()
        faces = (
            to_uint8(read_image(record.face_path)[0]) for record in records if record.face_path is not None
        )
        gallery = np.stack([looker.look(face)[0] for face in tqdm(faces, desc="gallery", disable=None)])
        drawer = Drawer(cfg, gallery)
        out.parent.mkdir(parents=True, exist_ok=True)
        for record in tqdm(missing, unit="person", disable=None):
            results[record.source] = drawer.measure(record, place[record.source])
            write_json(out, {"settings": told, "people": results}, indent=None)
    shown = {record.source: results[record.source] for record in people}
    true = np.mean([person["mean"]["true"] for person in shown.values()])
    text = f"{len(shown)} people, landmarks={cfg.landmarks}; the true faces score {true:.3f}:\n\n{table_of(shown)}"
    print(text)
    if cfg.append:
        command = " ".join(["python -m benchmarks.model.match_guidance", *arguments])
        append_section("Matching: guidance", command, torch.device("cpu"), text)


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    return run("model.match_guidance", GuidanceConfig, arguments, lambda cfg: measure(cfg, arguments))


if __name__ == "__main__":
    sys.exit(main())
