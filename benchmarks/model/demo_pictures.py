"""Draw the pictures of the README and docs, for people of the test split whom nobody picked.

    python -m benchmarks.model.demo_pictures [weights=FILE] [data.root=cohort] [key=value ...]

The list alone decides who is shown: its first people; for the edits, the first whose own age level and body mass lie in
the grid. Every face is drawn with the sampler settings in the weights and the landmarks read off the skull. Only
texture.png uses exemplars. `pictures.json` records what is needed to repeat the pictures.

reconstruction.png   skull, one reconstruction, true face
edits.png            one skull and seed: age by body mass, beside true faces where the data have them
variants.png         one skull, many seeds: their mean, and where they differ
texture.png          one skull and seed: exemplars of other surface styles (weights with a texture branch)
ct.png               a CT's skull, told four body masses, beside its own skin
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveInt

from benchmarks.results_file import run
from cldm.config import SamplingConfig
from cldm.controlled import ControlledLatentDiffusion, load_model
from data.biometrics import Attributes, Biometrics, age_level
from data.cases import Case, cases_of, check_pictures, read_skull
from data.images import read_image, to_uint8, write_png
from data.manifest import Record, read_manifest
from data.sheet import NOTICE
from ldm.checkpoint import sha256
from ldm.device import choose_device, choose_precision
from muti_control.conditions.case_landmarks import CaseLandmarks, choose_landmarks
from muti_control.conditions.case_textures import choose_textures
from muti_control.evaluation.protocol.config import DataConfig
from muti_control.record import check_creatable, environment, write_json
from muti_control.sampling.config import DEMO_WEIGHTS, SKULL_LANDMARKS
from muti_control.sampling.draw import draw_faces, read_skulls
from muti_control.sampling.grid import VALUES, grid_people, grid_tiles
from muti_control.sampling.plate import Bar, Pixels, Row, Tile, heat, plate
from muti_control.sampling.prepare import recommended_sampling
from muti_control.sampling.request import shipped
from settings.base import Settings, one_of
from settings.messages import ConfigError

PEOPLE, BOTH, SAMPLES, STYLES = 6, 2, 8, 4  # how many are shown
EDITED = ("age", "body_mass")
AGES, MASSES = (VALUES[name] for name in EDITED)
CT_MASSES = (2, 3, 4, 5)
SKIN = 20  # grey levels: darker than that is background
ZOOM = 44 / 256  # side of the patch of skin that is shown larger
OPEN_CT = "data/ct/open_ct_skull.png", "data/ct/open_ct_face.png"


class CtConfig(Settings):
    """A CT as data.ct draws it, and what is said of the person; by default the open CT (docs/your-own-cts.md)."""

    skull: str = OPEN_CT[0]
    """Its skull picture."""
    face: str | None = OPEN_CT[1]
    """Its face picture; null does not show it."""
    sex: str = "male"
    """What is said of the person."""
    age: float = 40
    """What is said of the person, years."""
    ethnicity: str = "Caucasian"
    """What is said of the person."""


class PicturesConfig(Settings):
    """What is drawn."""

    weights: str = DEMO_WEIGHTS
    """Checkpoint of the model."""
    landmark_weights: str = SKULL_LANDMARKS
    """Network that reads the face's landmarks off skulls."""
    data: DataConfig = DataConfig()
    out: str = "models/demo/pictures"
    """Folder of the pictures; those of an earlier run are replaced."""
    only: list[Annotated[str, one_of(PICTURES)]] = []
    """Names of pictures; [] draws all."""
    ct: CtConfig = CtConfig()
    seed: NonNegativeInt = 0
    """Seed of the first face."""
    batch_size: PositiveInt = 4
    """Faces drawn together."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    precision: str = "auto"
    """auto, fp32, bf16, fp16."""


@dataclass
class Studio:
    """A model that draws, and the people of the test split. num_faces: drawn so far. notes: for pictures.json."""

    cfg: PicturesConfig
    model: ControlledLatentDiffusion
    sampling: SamplingConfig
    landmarks: CaseLandmarks | None
    records: list[Record]
    variants: list[Record]
    footer: str
    num_faces: int = 0
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Return the side of the model's pictures, px."""
        return self.model.cfg.image_size

    def draw(
        self, cases: Sequence[Case], seeds: Sequence[int], exemplars: bool = False, grain: bool = True
    ) -> list[Pixels]:
        """Return faces (S, S, 3) uint8, one for each case and seed; exemplars: of the cases' own ``texture_path``."""
        sampling = self.sampling.with_(grain=grain and self.sampling.grain)
        textures, _ = choose_textures("auto" if exemplars else "none", cases, self.model)
        draws = [(case, 0, seed) for case, seed in zip(cases, seeds, strict=True)]
        faces_of_all: list[Pixels] = []
        for start in range(0, len(draws), self.cfg.batch_size):
            part = draws[start : start + self.cfg.batch_size]
            skulls = read_skulls(part, self.size)
            faces = draw_faces(
                self.model, part, skulls, sampling, landmarks=self.landmarks, textures=textures
            )
            faces_of_all += list(faces.wait())
        self.num_faces += len(faces_of_all)
        return faces_of_all

    def one_each(self, cases: Sequence[Case]) -> list[Pixels]:
        """Return a face of each case, all of the same seed."""
        return self.draw(cases, [self.cfg.seed] * len(cases))

    def skull(self, case: Case) -> Pixels:
        return to_uint8(read_skull(case, self.size))

    def picture(self, path: Path | None) -> Pixels:
        """Return a true face; black where there is none."""
        blank = np.zeros((self.size, self.size, 3), np.uint8)
        return blank if path is None else to_uint8(read_image(path, self.size)[0])


def describe(case: Case) -> str:
    """Return the words of the prompt about a person, for a caption."""
    who = case.biometrics
    assert who is not None
    return f"{who.sex[0].upper()} {who.age:g}, {who.ethnicity}, body mass {who.body_mass}"


def with_biometrics(case: Case, **changes: Any) -> Case:
    """Return the same skull with other biometrics."""
    assert case.biometrics is not None
    return replace(case, biometrics=replace(case.biometrics, **changes))


# ---------------------------------------------------------------- the pictures
def reconstruction(studio: Studio) -> Pixels:
    """Skull | reconstruction | true face, two people a row."""
    cases = cases_of(studio.records[:PEOPLE])
    faces = studio.one_each(cases)
    studio.notes["people"] = [case.name for case in cases]
    rows = []
    for start in range(0, len(cases), 2):
        tiles: list[Tile | None] = []
        for case, face in zip(cases[start : start + 2], faces[start : start + 2], strict=True):
            true = studio.picture(case.face_path)
            tiles += [
                Tile(studio.skull(case), "skull"),
                Tile(face, "reconstruction"),
                Tile(true, "true face"),
            ]
        headings = {3 * k: describe(case) for k, case in enumerate(cases[start : start + 2])}
        rows.append(Row(tiles, headings))
    chosen = f"the first {len(cases)} people of the test list, seed {studio.cfg.seed}"
    return plate(rows, _footer(studio, chosen), wide=[2])


def edits(studio: Studio) -> Pixels:
    """Age by body mass over one skull and seed, below and beside true faces where the data have them."""
    place = next((i for i, r in enumerate(studio.records) if _in_grid(r.biometrics)), 0)
    record = studio.records[place]
    case, own = cases_of([record])[0], record.biometrics
    people = grid_people(EDITED, own, Attributes(age=own.age, body_mass=own.body_mass), ())
    ages, masses = [one.age for one in people[0]], [row[0].body_mass for row in people]
    faces = studio.one_each([replace(case, biometrics=one) for row in people for one in row])
    tiles = grid_tiles(EDITED, people, faces, own)
    truths = _truths(studio.variants, record)

    def true(age: float, mass: int, caption: str) -> Tile | None:
        path = truths.get((age, mass))
        is_own = (age, mass) == (own.age, own.body_mass)
        return None if path is None else Tile(studio.picture(path), f"true: {caption}", is_own)

    first = [true(age, own.body_mass, f"age {age:g}") for age in ages]
    rows = [
        Row([Tile(studio.skull(case), "skull"), *first], {0: f"{describe(case)}: true faces at four ages"})
    ]
    heading = {1: "reconstructions: one skull, one seed, told other ages and body masses"}
    for k, (mass, row) in enumerate(zip(masses, tiles, strict=True)):
        rows.append(Row([true(own.age, mass, f"mass {mass}"), *row], {} if k else heading))
    studio.notes |= {"person": case.name, "ages": ages, "masses": masses}
    chosen = f"person {place + 1} of the test list, the first whose own values lie in the grid; seed {studio.cfg.seed}"
    return plate(rows, _footer(studio, chosen), wide=[0])


def _in_grid(who: Biometrics) -> bool:
    return who.body_mass in MASSES and age_level(who.age) in {age_level(age) for age in AGES}


def _truths(variants: Sequence[Record], record: Record) -> dict[tuple[float, int], Path]:
    """True faces of one person and style: (age, body mass) -> picture."""
    same = [r for r in variants if r.subject == record.subject and not {*r.changed} - {"age", "body_mass"}]
    return {
        (r.biometrics.age, r.biometrics.body_mass): r.face_path
        for r in (*same, record)
        if r.face_path is not None
    }


def variants(studio: Studio) -> Pixels:
    """Eight faces of each skull, their mean, and the standard deviation of their grey levels, pixel by pixel.

    Without grain, which differs from seed to seed everywhere and says nothing of the face.
    """
    cases = cases_of(studio.records[:BOTH])
    seeds = [studio.cfg.seed + k for k in range(SAMPLES)]
    # (8, S, S) for each skull
    greys = [np.stack(studio.draw([case] * SAMPLES, seeds, grain=False)).mean(-1) for case in cases]
    spreads: list[NDArray[np.floating]] = [grey.std(0, ddof=1) for grey in greys]
    heads = [grey.mean(0) > SKIN for grey in greys]
    within = np.concatenate([spread[head] for spread, head in zip(spreads, heads, strict=True)])
    upper = 10 * max(1, round(float(np.quantile(within, 0.95)) / 10)) if len(within) else 10
    rows = []
    for case, grey, spread, head in zip(cases, greys, spreads, heads, strict=True):
        whole = grey.round().astype(np.uint8)
        faces = [Tile(face, f"seed {seed}") for face, seed in zip(whole, seeds, strict=True)]
        first = [Tile(studio.skull(case), "skull"), Tile(studio.picture(case.face_path), "true face")]
        mean_face = grey.mean(0).round().astype(np.uint8)
        second = [Tile(mean_face, "mean of 8"), Tile(heat(spread, upper), "spread of 8")]
        half = SAMPLES // 2
        rows += [Row([*first, *faces[:half]], {0: describe(case)}), Row([*second, *faces[half:]])]
        mean = round(float(spread[head].mean()), 1) if head.any() else 0.0
        studio.notes.setdefault("mean spread within the head, grey levels", {})[case.name] = mean
    chosen = f"the first {len(cases)} people of the test list, seeds {seeds[0]} to {seeds[-1]}, without grain"
    bar = Bar(upper, "standard deviation over the eight faces, grey levels of 255")
    return plate(rows, _footer(studio, chosen), wide=[1], bar=bar)


def texture(studio: Studio) -> Pixels | None:
    """A face without an exemplar and with four of other styles, over patches of exemplar and face."""
    if studio.model.cfg.control.texture is None:
        print("texture.png: left out, these weights have no texture branch")
        return None
    record = studio.records[0]
    lent = {
        str(r.style): r
        for r in reversed(studio.records[1:])
        if r.face_path and r.style not in (None, record.style)
    }
    chosen = sorted(lent.values(), key=lambda r: r.line)[:STYLES]
    if not chosen:
        print("texture.png: left out, the test list names no 'style'")
        return None
    case = cases_of([record])[0]
    bare = replace(case, texture_path=None)
    cases = [replace(case, texture_path=r.face_path) for r in chosen]
    faces = studio.draw([bare, *cases], [studio.cfg.seed] * (1 + len(cases)), exemplars=True)
    studio.notes |= {"person": case.name, "exemplars": {str(r.style): r.source for r in chosen}}
    true = studio.picture(case.face_path)
    rows = [
        Row(
            [Tile(studio.skull(case), "skull"), None]
            + [Tile(_patch(studio.picture(r.face_path)), f"style {r.style}") for r in chosen],
            {0: describe(case), 2: "exemplars: skin of other people, of other styles"},
        ),
        Row([Tile(true, f"true face ({record.style})"), *(Tile(face, name) for face, name in zip(
            faces, ["no exemplar", *(f"with {r.style}" for r in chosen)], strict=True))]),
        Row([Tile(_patch(true), "its forehead"), *(Tile(_patch(face), "its forehead") for face in faces)]),
    ]  # fmt: skip
    rule = f"the first of the test list, seed {studio.cfg.seed}; exemplars: the next people of other styles"
    return plate(rows, _footer(studio, rule), wide=[0, 1])


def _patch(face: Pixels) -> Pixels:
    """A square of the forehead, a tile high; (S, S, 3) like the face."""
    size = len(face)
    head = np.flatnonzero(face.mean((1, 2)) > SKIN / 2)
    top = int(head[0]) if len(head) else 0
    side = max(2, round(ZOOM * size))
    y = min(size - side, top + round(0.08 * size))
    x = (size - side) // 2
    patch = face[y : y + side, x : x + side]
    return patch[np.arange(size) * side // size][:, np.arange(size) * side // size]


def ct(studio: Studio) -> Pixels:
    """A CT's skull, what is drawn for four body masses, and the CT's own skin."""
    cfg = studio.cfg.ct
    case = _ct_case(cfg)
    faces = studio.one_each([with_biometrics(case, body_mass=mass) for mass in CT_MASSES])
    tiles: list[Tile | None] = [Tile(studio.skull(case), "skull of a head CT")]
    tiles += [Tile(face, f"body mass {mass}") for face, mass in zip(faces, CT_MASSES, strict=True)]
    if case.face_path is not None:
        tiles.append(Tile(studio.picture(case.face_path), "skin of that CT"))
    caption = f"told {cfg.sex}, {cfg.age:g}, {cfg.ethnicity}; seed {studio.cfg.seed}"
    if cfg.skull == OPEN_CT[0]:
        caption = f"head CT 0051 of invesalius-examples (GPL-2.0-only), sex and age unknown: {caption}"
    return plate([Row(tiles)], _footer(studio, caption), wide=[0, len(CT_MASSES)])


def _ct_case(cfg: CtConfig) -> Case:
    who = Biometrics.parse(sex=cfg.sex, age=cfg.age, ethnicity=cfg.ethnicity, body_mass=CT_MASSES[0])
    return Case("ct", shipped(cfg.skull), who, None if cfg.face is None else shipped(cfg.face))


def _footer(studio: Studio, chosen: str) -> list[str]:
    return [chosen[:1].upper() + chosen[1:] + ".", f"{NOTICE} {studio.footer}"]


PICTURES: Mapping[str, Callable[[Studio], Pixels | None]] = {
    "reconstruction": reconstruction,
    "edits": edits,
    "variants": variants,
    "texture": texture,
    "ct": ct,
}


# ---------------------------------------------------------------- the run
def open_studio(cfg: PicturesConfig) -> Studio:
    """Load what is needed, and look at every picture once. Raises: ValueError, OSError."""
    lists = Path(cfg.data.root) / "split_data"
    records = read_manifest(lists / "test.json", cfg.data.images_dir)
    if len(records) < PEOPLE:
        raise ConfigError(
            f"data.root: {lists}/test.json lists {len(records)} people, expected {PEOPLE} or more"
        )
    further = lists / "variants.json"
    variants = read_manifest(further, cfg.data.images_dir) if further.is_file() else []
    device, weights = choose_device(cfg.device), shipped(cfg.weights)
    dtype = choose_precision(cfg.precision, device)
    model, metadata = load_model(weights, device=device, dtype=dtype)
    sampling = SamplingConfig.of(**recommended_sampling(metadata, model.cfg.unet.num_control_outputs))
    cases = [*cases_of(records[:PEOPLE]), _ct_case(cfg.ct)]
    check_pictures(cases, model.cfg.image_size)
    landmarks, lacking = choose_landmarks("auto", shipped(cfg.landmark_weights), cases, model)
    if lacking is not None:
        raise ConfigError(lacking)
    if landmarks is not None:  # raises now, not between two pictures, for whom it cannot read
        landmarks.of(cases, read_skulls([(case, 0, 0) for case in cases], model.cfg.image_size))
    file = {"file": weights.name, "sha256": sha256(weights), "step": metadata.get("step", "unknown")}
    print(
        f"{weights.name}: {sampling.steps} steps on {device}, {'no' if landmarks is None else 'with'} landmarks"
    )
    return Studio(
        cfg,
        model,
        sampling,
        landmarks,
        records,
        variants,
        footer=f"{weights.name} (sha256 {file['sha256'][:12]}), {sampling.steps} steps of {sampling.sampler}.",
        notes={
            "weights": file,
            "landmarks": None if landmarks is None else landmarks.describe(cases[0]),
            "test list": {"folder": lists.parent.name, "sha256": sha256(lists / "test.json")},
            "seed": cfg.seed,
            "environment": environment(device, dtype),
        },
    )


def make_pictures(cfg: PicturesConfig) -> None:
    """Draw and write the pictures and their record. Raises: ValueError, OSError."""
    folder = Path(cfg.out)
    check_creatable(folder)
    studio = open_studio(cfg)
    folder.mkdir(parents=True, exist_ok=True)
    record, notes_of = studio.notes, {}
    for name in cfg.only or PICTURES:
        started, before, studio.notes = time.monotonic(), studio.num_faces, {}
        picture = PICTURES[name](studio)
        if picture is None:
            continue
        write_png(folder / f"{name}.png", picture, {"Comment": NOTICE})
        notes_of[name] = studio.notes
        seconds = time.monotonic() - started
        print(f"{folder}/{name}.png: {studio.num_faces - before} faces in {seconds:.0f} s", flush=True)
    more = {"sampling": studio.sampling.model_dump(), "pictures": notes_of}
    write_json(folder / "pictures.json", record | more)


def main(arguments: Sequence[str]) -> int:
    return run("model.demo_pictures", PicturesConfig, arguments, make_pictures)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
