"""The Python interface draws what sample.py draws; unknown attributes; what the faces of a skull show together."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

import sample
from data.biometrics import Attributes, Biometrics, BiometricsError
from data.images import ImageError, read_image
from data.sheet import legible, wrapped
from muti_control.case.calibration import Calibration, Population
from muti_control.sampling.assumed import draw_people, uniform_population
from muti_control.sampling.outputs import PANEL, Together, overlay_picture, spread_picture
from muti_control.sampling.reconstructor import Reconstructor

ROOT = Path(sample.__file__).resolve().parent
WOMAN = Attributes(sex="F", age=43, ethnicity="Asian", body_mass=4)


@pytest.fixture(scope="module")
def reconstructor(weights: Path) -> Reconstructor:
    return Reconstructor.load(weights, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def skull() -> np.ndarray:
    return np.kron(np.random.default_rng(1).integers(0, 256, (8, 8)), np.ones((8, 8))).astype(np.uint8)


def test_it_draws_and_writes_what_sample_py_does(
    reconstructor: Reconstructor, weights: Path, skull: np.ndarray, tmp_path: Path
) -> None:
    Image.fromarray(skull).save(tmp_path / "a.png")
    words = (
        f"weights={weights} skull={tmp_path}/a.png sex=F age=43 ethnicity=Asian body_mass=4 device=cpu seed=3"
    )
    assert (
        sample.main([*words.split(), "num_samples=2", "precision=fp32", f"out={tmp_path / 'program'}"]) == 0
    )
    result = reconstructor.reconstruct(tmp_path / "a.png", WOMAN, num_samples=2, seed=3)
    assert not list(tmp_path.glob("*_0.png"))
    result.save(tmp_path / "saved")
    names = {path.name for path in (tmp_path / "program").glob("*.png")}
    assert names == {path.name for path in (tmp_path / "saved").glob("*.png")} and len(names) == 6
    for name in names:
        assert (tmp_path / "program" / name).read_bytes() == (tmp_path / "saved" / name).read_bytes(), name
    one, other = (json.loads((tmp_path / name / "record.json").read_text()) for name in ("program", "saved"))
    assert one["cases"] == other["cases"] and one["files"] == other["files"] and other["finished"] is True
    with Image.open(tmp_path / "saved/a_1.png") as image:
        np.testing.assert_array_equal(np.asarray(image), result.faces[1])
    assert result.record["cases"][0]["attributes"]["age"] == {"value": 43.0, "source": "stated"}
    assert result._repr_png_()[:4] == b"\x89PNG" and result._repr_html_().count("<img") == 2
    with pytest.raises(ValueError, match="out: "):
        result.save(tmp_path / "saved")


def test_pictures_in_memory_give_the_face_of_their_file(
    reconstructor: Reconstructor, skull: np.ndarray, tmp_path: Path
) -> None:
    Image.fromarray(skull).save(tmp_path / "a.png")
    from_file = reconstructor.reconstruct(tmp_path / "a.png", WOMAN, num_samples=1)
    for picture in (skull, skull / np.float32(255), np.stack([skull] * 3, 2), Image.fromarray(skull)):
        result = reconstructor.reconstruct(picture, WOMAN, num_samples=1, name="dig/7")
        np.testing.assert_array_equal(result.faces[0], from_file.faces[0])
    record = json.loads((result.save(tmp_path / "out") / "record.json").read_text())
    assert record["cases"][0]["skull"]["file"] == "dig_7_skull.png"
    np.testing.assert_array_equal(read_image(tmp_path / "out/dig_7_skull.png", 64)[0][..., 0] * 255, skull)
    for wrong in (skull.astype(int), skull * 2.0, np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4), np.uint8)):
        with pytest.raises(ImageError, match="the picture: got"):
            reconstructor.reconstruct(wrong)


def test_progress_cancels_and_threads_share_a_model(reconstructor: Reconstructor, skull: np.ndarray) -> None:
    calls: list[tuple[int, int]] = []

    def stop(step: int, total: int) -> None:
        calls.append((step, total))
        if step == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        reconstructor.reconstruct(skull, WOMAN, num_samples=9, progress=stop)
    assert calls == [(1, 6), (2, 6)]  # two batches of three steps
    seen: list[np.ndarray] = []
    words = {"num_samples": 2, "sampling": {"steps": 2, "eta": 0}}
    result = reconstructor.reconstruct(skull, WOMAN, preview=lambda decode: seen.append(decode()), **words)
    plain = reconstructor.reconstruct(skull, WOMAN, **words)
    assert all(np.array_equal(*pair) for pair in zip(result.faces, plain.faces, strict=True))
    apart = [np.abs(faces.astype(int) - plain.faces).mean() for faces in seen]  # (2, 64, 64, 3) each
    assert len(seen) == 2 and apart[1] < 2 < apart[0], apart
    alone = [reconstructor.reconstruct(skull, WOMAN, num_samples=1, seed=seed).faces[0] for seed in (0, 1)]
    together: dict[int, np.ndarray] = {}

    def draw(seed: int) -> None:
        together[seed] = reconstructor.reconstruct(skull, WOMAN, num_samples=1, seed=seed).faces[0]

    threads = [threading.Thread(target=draw, args=[seed]) for seed in (0, 1)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert all(np.array_equal(alone[seed], together[seed]) for seed in (0, 1))


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ({"sex": "woman", "age": "35-50", "body_mass": "unknown"}, ("female", (35, 50), None, None)),
        ({"sex": " M ", "age": "35 to 50", "ethnicity": ""}, ("male", (35, 50), None, None)),
        ({"age": (20, 20), "body_mass": "slightly fat", "ethnicity": "?"}, (None, 20, None, 5)),
        ({"sex": "Unknown", "age": float("nan"), "ethnicity": "Asian"}, (None, None, "Asian", None)),
    ],
)
def test_attributes_are_read_as_people_write_them(
    values: dict[str, object], kept: tuple[object, ...]
) -> None:
    read = Attributes(**values)
    assert (read.sex, read.age, read.ethnicity, read.body_mass) == kept and read.biometrics is None


@pytest.mark.parametrize(
    "field", [{"age": "50-35"}, {"age": "forty"}, {"age": [1, 2, 3]}, {"sex": "x"}, {"body_mass": 9}]
)
def test_attributes_that_are_none_are_refused_by_name(field: dict[str, object]) -> None:
    with pytest.raises(BiometricsError, match=r"or unknown$") as caught:
        Attributes(**field)
    assert caught.value.field == next(iter(field))


def test_eight_people_cover_what_is_possible_as_the_training_population_has_it() -> None:
    people = [Biometrics("male", 40, "Asian", 4)] * 75 + [Biometrics("female", 70, "African", 2)] * 25
    population = Population.of_people(people)
    drawn = draw_people(Attributes(body_mass=None, age=(20, 90)), population, 8, seed=5)
    assert sorted(person.sex for person in drawn) == ["female"] * 2 + ["male"] * 6
    for person in drawn:  # what goes together among people goes together among these
        expected = ("Asian", 4, True) if person.sex == "male" else ("African", 2, False)
        assert (person.ethnicity, person.body_mass, person.age < 65) == expected
    assert (
        draw_people(Attributes(sex="F"), population, 3, 0)
        == draw_people(Attributes(sex="F"), population, 8, 0)[:3]
    )
    assert {person.ethnicity for person in draw_people(Attributes(sex="F", age=70), population, 8, 0)} == {
        "African"
    }
    elsewhere = draw_people(
        Attributes(sex="F", age=30, ethnicity="Martian"), population, 8, 1
    )  # nobody like this
    assert {person.body_mass for person in elsewhere} == {1, 2, 3, 4, 5}
    assert {(person.ethnicity, person.age) for person in elsewhere} == {("Martian", 30)}


def test_without_counts_all_is_equally_frequent() -> None:
    population = uniform_population(["Asian", "African"])
    drawn = draw_people(Attributes(body_mass=3), population, 64, seed=2)
    ages = np.array([person.age for person in drawn])
    assert 18 <= ages.min() < 22 and 86 < ages.max() <= 90 and abs(ages.mean() - 54) < 2
    assert sum(person.sex == "male" for person in drawn) == 32
    assert sum(person.ethnicity == "Asian" for person in drawn) == 32
    narrow = draw_people(Attributes(age="35-50"), population, 16, seed=2)
    assert {person.age for person in narrow} == {float(year) for year in range(35, 51)}


def test_mean_and_spread_are_those_of_all_faces_and_few_are_in_memory() -> None:
    faces = np.random.default_rng(0).integers(0, 256, (19, 16, 16, 3)).astype(np.uint8)
    together = Together.of(iter(faces), None)
    np.testing.assert_allclose(together.spread, faces.mean(3).std(0, ddof=1), rtol=1e-4)
    np.testing.assert_allclose(together.mean, faces.mean(0), atol=0.51)
    assert (together.num, together.points) == (19, None)


def test_ellipses_have_the_length_of_the_spread_in_px_and_mm() -> None:
    rng = np.random.default_rng(3)
    points = np.array([[64.0, 128.0], [192.0, 128.0]]) + rng.normal(0, [[4.0, 1.0], [0.0, 0.0]], (4000, 2, 2))
    grey = np.full((256, 256, 3), 90, np.uint8)
    together = Together(4000, grey, np.zeros((256, 256), np.float32), points.astype(np.float32))
    calibration = Calibration(weights_sha256="0", population=uniform_population(["Asian"]), spread_factor=2.0)
    for factor, known in ((1.0, None), (2.0, calibration)):
        picture = spread_picture(together, "a", known, mm=1.1)
        mean = picture[:, -PANEL - 12 : -12]
        rows, columns = np.nonzero((mean[..., 0] > 150) & (mean[..., 2] < 110))
        left = columns < PANEL / 2
        width, height = np.ptp(columns[left]) + 1, np.ptp(rows[left]) + 1
        scale = 2 * factor * PANEL / 256
        assert abs(width - 4 * scale - 3) < 2 and abs(height - scale - 3) < 2  # the line itself is 3 px
    assert overlay_picture(grey, together, "a").shape[0] > 2 * PANEL


def test_landmarks_of_faces_are_read_in_px_of_the_faces() -> None:
    def reader(pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert pictures.shape[1:] == (3, 64, 64) and pictures.max() <= 1
        return torch.full((len(pictures), 4, 2), 0.25), torch.ones(len(pictures), 4)

    network = Mock(side_effect=reader, reverse=torch.zeros(1))
    network.net.cfg.image_size = 64
    for size in (64, 256):
        together = Together.of(np.full((9, size, size, 3), 200, np.uint8), network)
        assert together.points is not None and together.points.shape == (9, 4, 2)
        np.testing.assert_allclose(together.points, 0.25 * size - 0.5)


def test_any_script_is_written_or_escaped_never_as_boxes() -> None:
    assert legible("skull 7", 13)[0] == "skull 7"
    for name in ("Schädel", "череп", "κρανίο"):
        text, font = legible(name, 13)
        assert text == name and "DejaVu" in font.getname()[0]
    text, font = legible("a \U00013000", 13)  # a hieroglyph
    assert text in ("a \U00013000", "a \\U00013000")
    lines = wrapped("one two three " * 20, 13, 120)
    assert (
        len(lines) == 6 and all(font.getlength(line) <= 150 for line in lines) and lines[-1].endswith("...")
    )


def test_the_example_runs(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ROOT / "docs/examples/one_skull.py"
    text = path.read_text(encoding="utf-8")
    for line, other in (
        ("STEPS, FACES = 6, 8", "STEPS, FACES = 2, 2"),
        ('ROOT / "models/demo/iccr_demo.safetensors"', repr(str(weights))),
    ):
        assert line in text
        text = text.replace(line, other)
    monkeypatch.setattr(sys, "argv", [path.name, str(tmp_path / "out")])
    monkeypatch.setattr(sys, "path", sys.path)
    exec(compile(text, path, "exec"), {"__file__": str(path), "__name__": "__main__"})
    output = capsys.readouterr().out
    assert "cancelled; nothing was written" in output and "the same face: True" in output
    assert (tmp_path / "out/s00001_spread.png").is_file()
