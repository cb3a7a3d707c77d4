"""What measures the cohort: on bodies of known size, on planted signals and against other implementations."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from benchmarks.cohort import anatomy
from benchmarks.cohort.anatomy import Measured
from benchmarks.cohort.craniometry import (
    Anchors,
    SkullSites,
    Surface,
    depth,
    depth_from_inside,
    farthest_behind,
    head_distances,
    root_of_nose,
    skull_distances,
    widest,
)
from benchmarks.cohort.norms import DEPTHS, HEAD, SKULL, SOURCES
from benchmarks.cohort.tissue_depth import tissue_depths
from benchmarks.model import ceiling, real_heads
from data.cohort.heads.anatomy import build_head
from data.cohort.heads.subject import draw_subject
from data.cohort.heads.template import HeadTemplate

DATA = Path(__file__).resolve().parent.parent / "data"


def grid_triangles(rows: int, columns: int) -> np.ndarray:
    """Two triangles for each cell of a grid of vertices."""
    index = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = (q.ravel() for q in (index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]))
    return np.vstack([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])


def ellipsoid(radii: tuple[float, float, float], steps: int = 240) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and triangles of a closed ellipsoid about the origin."""
    polar, around = np.meshgrid(
        np.linspace(0, np.pi, steps), np.linspace(0, 2 * np.pi, 2 * steps), indexing="ij"
    )
    unit = np.stack([np.sin(polar) * np.sin(around), np.cos(polar), np.sin(polar) * np.cos(around)], -1)
    return unit.reshape(-1, 3) * np.array(radii), grid_triangles(*polar.shape)


def test_distances_and_depths_of_ellipsoids():
    inner = Surface(*ellipsoid((70, 110, 90)))
    outer = Surface(*ellipsoid((77, 118, 96)))
    assert np.isnan(inner.front(200.0, 0.0))
    left, right = widest(inner.points, (-20, 20), (-20, 20))
    assert right[0] - left[0] == pytest.approx(140, abs=0.1)
    brow = np.array([0.0, 0.0, 90.0])
    assert farthest_behind(inner, brow)[2] == pytest.approx(-90, abs=0.5)
    vertices, triangles = ellipsoid((70, 110, 90))
    open_behind = Surface(vertices, triangles[(vertices[triangles][:, :, 2] > -60).all(1)])
    assert np.isnan(farthest_behind(open_behind, brow)).all()
    forward, down = np.array([0.0, 0.0, 1.0]), np.array([0.0, -1.0, 0.0])
    assert depth(outer, np.array([0.0, 0.0, 90.0]), forward) == pytest.approx(6, abs=0.05)
    assert depth_from_inside(outer, np.array([2.0, -110.0, 2.0]), down) == pytest.approx(7.9, abs=0.1)
    assert depth(inner, np.array([0.0, 0.0, 96.0]), forward) == pytest.approx(-6, abs=0.05)  # stands out
    assert np.isnan(depth(outer, np.full(3, np.nan), forward))
    x, y, z = 30.0, 40.0, 90 * np.sqrt(1 - (30 / 70) ** 2 - (40 / 110) ** 2)
    truth = np.array([x / 70**2, y / 110**2, z / 90**2])
    assert inner.front_normal(x, y) @ truth / np.linalg.norm(truth) > 0.999


def test_the_root_of_a_nose_is_found_where_it_was_put():
    x, y = np.meshgrid(np.linspace(-30, 30, 121), np.linspace(-40, 40, 321), indexing="ij")
    z = 80 - 5 * np.exp(-(((y - 3) / 5) ** 2)) - 0.002 * x**2  # a notch 5 mm deep at y = 3
    surface = Surface(np.stack([x.ravel(), y.ravel(), z.ravel()], 1), grid_triangles(*x.shape))
    root = root_of_nose(surface, near=0.0)
    np.testing.assert_allclose(root, [0, 3, 75], atol=0.3)
    assert np.isnan(root_of_nose(surface, near=100.0)).all()


def test_a_head_is_measured_as_its_size_says_and_fat_thickens_only_the_skin():
    template = HeadTemplate.load()
    subject = replace(draw_subject(1, 6), bmi=17.0)
    lean, heavy = (anatomy.measure(s) for s in (subject, replace(subject, bmi=32.0)))
    # the skin's landmarks only say where to look on the bone
    np.testing.assert_allclose(list(lean.skull.values()), list(heavy.skull.values()), atol=0.3)
    for site in ("zygion", "gonion", "mid-masseter", "sub-M2"):
        assert heavy.depths[site] > lean.depths[site] + 1, site
    assert set(lean.depths) == set(DEPTHS), "a site without a norm, or a norm without a site"
    quoted = {norm.source for table in (SKULL, HEAD, DEPTHS) for norm in table.values()}
    assert quoted <= set(SOURCES)
    assert {name for name, _ in SKULL} <= set(lean.skull)
    assert {name for name, _ in HEAD} <= set(lean.head)

    head = build_head(template, subject)
    grown = []
    for scale in (1.0, 1.1):
        skull = Surface(scale * head.skull, head.skull_triangles)
        skin = Surface(scale * head.face, template.face_triangles)
        at = Anchors(scale * head.landmarks)
        sites = SkullSites(skull, at)
        distances = skull_distances(sites) | head_distances(skin, scale * head.face, sites, at)
        grown.append((distances, tissue_depths(skull, skin, sites, at)))
    for name, value in grown[0][0].items():
        assert grown[1][0][name] == pytest.approx(1.1 * value, rel=0.03, nan_ok=True), name
    assert grown[0][1]["glabella"] == pytest.approx(lean.depths["glabella"])


def test_summaries_and_slopes_have_their_closed_forms():
    rng = np.random.default_rng(0)
    values = np.arange(101.0)
    result = anatomy.summary(np.append(values, np.nan), rng)
    assert (result["num"], result["mean"], result["p5"], result["p95"]) == (101, 50, 5, 95)
    assert result["sd"] == pytest.approx(np.sqrt(101 * 102 / 12))
    reach = 1.96 * result["sd"] / np.sqrt(101)
    assert result["mean_interval"] == pytest.approx((50 - reach, 50 + reach), abs=0.6)
    assert anatomy.summary(np.full(5, np.nan), rng) == {"num": 0}
    bmi = rng.uniform(15, 34, 200)
    line = anatomy.slope(bmi, 3 + 0.4 * bmi, rng)
    assert line["slope"] == pytest.approx(0.4) and line["interval"] == pytest.approx((0.4, 0.4))


def test_figures_group_people_by_sex_and_body_mass():
    def person(sex: str, bmi: float) -> Measured:
        size = 180.0 if sex == "M" else 170.0
        return Measured(
            sex, bmi, {"cranial length g-op": size}, {"head length g-op": size + 10}, {"gonion": bmi / 2}
        )

    heads = [person(sex, bmi) for sex in "MF" for bmi in (16, 17, 18, 20, 22, 24, 26, 28, 30)]
    result = anatomy.figures(heads)
    assert result["skull"]["cranial length g-op"]["M"]["mean"] == 180
    assert result["head"]["head length g-op"]["F"]["mean"] == 180
    gonion = result["depths"]["gonion"]
    assert [gonion[g]["mean"] for g in anatomy.BMI_GROUPS] == [8.5, 11, 14]
    assert gonion["per_bmi"]["slope"] == pytest.approx(0.5)
    text = anatomy.tables(result)
    assert "181.3 ± 5.7 [174, 190] Howells" in text and "10.5 Rhine" in text


def test_rank_figures_by_hand():
    distances = np.array([[0.1, 0.5, 0.9], [0.2, 0.3, 0.9], [0.5, 0.4, 0.3]])
    result = ceiling.rank_figures(distances, np.arange(3), None, 0)
    means = [result[key] for key in ("rank1", "rank5", "mean_rank", "distance_own", "distance_others")]
    assert means == pytest.approx([2 / 3, 1, 4 / 3, 0.3, 0.5])
    assert ceiling.rank_figures(distances, np.arange(3), np.array([-1, 0, -1]), 0)["rank1"] == 1


@pytest.fixture(scope="module")
def small_cohort(tmp_path_factory) -> Path:
    """The shipped pairs with "expected" faces (their own, blurred) and "turned" ones (their own, shifted).

    All are said to be Asian, so that there are some of a group among so few.
    """
    root = tmp_path_factory.mktemp("cohort")
    shutil.copytree(DATA / "pairedCS", root / "pairedCS")
    shutil.copytree(DATA / "split_data", root / "split_data")
    faces = root / "pairedCS" / "craniofacial"
    lines = [json.loads(line) for line in (root / "split_data" / "test.json").read_text().splitlines()]
    lines = [{**line, "ethnicity": "Asian", "landmarks": None} for line in lines]
    lists: dict[str, list[dict]] = {"test": lines, "ceiling": [], "ceiling_neutral": [], "test_views": []}
    for folder in ("ceiling", "ceiling_neutral", "views"):
        (faces / folder).mkdir()
    for line in lines:
        face = Image.open(faces / line["target"])
        face.filter(ImageFilter.GaussianBlur(1)).save(faces / "ceiling" / line["target"])
        face.filter(ImageFilter.GaussianBlur(3)).save(faces / "ceiling_neutral" / line["target"])
        Image.fromarray(np.roll(np.asarray(face), 3, axis=1)).save(faces / "views" / line["target"])
        for name, folder in (("ceiling",) * 2, ("ceiling_neutral",) * 2, ("test_views", "views")):
            extra = {"extra": {"yaw": 3.0, "pitch": 0.0}} if folder == "views" else {}
            lists[name].append({**line, "target": f"{folder}/{line['target']}", **extra})
    for name, own in lists.items():
        text = "".join(json.dumps(line) + "\n" for line in own)
        (root / "split_data" / f"{name}.json").write_text(text, encoding="utf-8")
    return root


def test_ceiling_from_end_to_end(small_cohort, tmp_path, capsys):
    out = tmp_path / "ceiling"
    assert ceiling.main([f"data.root={small_cohort}", "gallery=6", f"out={out}"]) == 0
    record = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    assert record["gallery"] == 6 and record["recogniser"]["chip"] == 150
    own = record["figures"]["ceiling"]["descriptor"]
    assert own["num"] == 6 and own["rank1"] == 1 and own["distance_own"] < own["distance_others"]
    plain = record["figures"]["ceiling, neutral surface"]["descriptor"]
    assert plain["num"] == 6 and plain["distance_own"] > own["distance_own"]  # blurred more
    assert record["figures"]["true face, turned"]["descriptor"]["rank1"] == 1
    assert record["figures"]["attributes only"]["descriptor"]["num"] == 6
    assert "| chance |" in capsys.readouterr().out
    assert ceiling.main([f"data.root={small_cohort}", "gallery=99", f"out={out}"]) == 2
    assert "gallery" in capsys.readouterr().err
    gallery = ceiling.read_pairs(small_cohort, "test")
    probes = ceiling.probes_of(small_cohort, gallery, seed=0)["ceiling of another"]
    for truth, donor in zip(probes.truth, probes.excluded, strict=True):
        assert truth != donor and gallery[truth].group == gallery[donor].group


def test_anatomy_writes_its_figures_and_settings(tmp_path, capsys, monkeypatch):
    one = Measured("M", 22, {"bizygomatic zy-zy": 130.0}, {"bigonial go-go": 110.0}, {"gonion": 9.0})
    monkeypatch.setattr(anatomy, "measure", lambda subject: one)
    arguments = ["num_subjects=10", "ethnicity=all", f"out={tmp_path / 'anatomy'}"]
    assert anatomy.main(arguments) == 0
    record = json.loads((tmp_path / "anatomy.json").read_text(encoding="utf-8"))
    assert record["num"] == 10 and record["config"]["ethnicity"] == "all"
    assert "| skull: bizygomatic zy-zy | 130.0 ± 0.0 [130, 130] | 133.6" in capsys.readouterr().out


def test_the_own_skull_of_a_real_head_is_ranked_by_each_judge_and_seed() -> None:
    own = np.array([[0.3, 0.5], [0.1, 0.5]])  # two faces, two judges
    others = np.array([[[0.4, 0.5], [0.2, 0.4]], [[0.2, 0.6], [0.3, 0.6]], [[0.5, 0.4], [0.5, 0.4]]])
    assert real_heads.ranks(own, others).tolist() == [[2, 3], [1, 3]]  # ties count against
    assert real_heads.ranks(own.mean(0), others.mean(1)).tolist() == [1, 3]
    results = np.repeat(np.concatenate([own[None], others])[..., :1], 4, 2)  # (4 skulls, 2 faces, 4 judges)
    assert real_heads._cells(results)[0] == "**1** of 4 (1 to 2); 0.200, others 0.350 ± 0.132"
    person = real_heads._person("M, 39, Caucasian, 5")
    told = {label: other for label, other in real_heads.guesses_of(person)}
    assert told["the true ones"] == person and told["body mass 4"] == replace(person, body_mass=4)
    assert {other.age for other in told.values()} == {19, 39, 59}


def test_a_scan_without_its_person_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert real_heads.main([str(tmp_path), 'people=["M,39,Asian,5","F,20,Asian,1"]', "data.root=none"]) == 2
    assert "people: got" in capsys.readouterr().err
    assert real_heads.main([str(tmp_path), 'people=["M,39"]', "data.root=none"]) == 2
    assert "M,39" in capsys.readouterr().err
