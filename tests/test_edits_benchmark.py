"""benchmarks.model.edits: the share of a true change that drawn faces make, on pictures whose points are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.model import edits
from benchmarks.model.edits import ANOTHERS, main

PLACES = [(64, 64), (64, 192), (192, 128), (128, 90)]  # row and column of each dot; each has its own grey


def write_face(path: Path, moved: int) -> None:
    """Dots of four greys; the last is moved down by so many px."""
    picture = np.zeros((256, 256, 3), np.uint8)
    for k, (row, column) in enumerate(PLACES):
        row += moved if k == 3 else 0
        picture[row - 1 : row + 2, column - 1 : column + 2] = 60 * (k + 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


def read_dots(face: torch.Tensor) -> np.ndarray:
    """Where each grey is, x and y in px."""
    grey = (face[0] * 255).round()
    places = [torch.nonzero(grey == 60 * (k + 1)).double().mean(0).flip(0) for k in range(len(PLACES))]
    return torch.stack(places).numpy()


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three people whose last dot truly moves by 16 px with 25 years; the model moves it by 8, the ridge not at all."""
    monkeypatch.setattr(edits, "network_reader", lambda file: read_dots)
    data, faces = tmp_path / "data", tmp_path / "results/faces"
    lines: dict[str, list[str]] = {"test": [], "variants": []}
    for i in range(3):
        own = {"source": f"{i}.png", "target": f"{i}.png", "body_mass": "4", "gender": "M", "age": 30}
        own |= {"ethnicity": "Asian", "subject": f"{i}"}
        older = own | {"target": f"older_{i}.png", "age": 55, "changed": ["age"]}
        lines["test"].append(json.dumps(own))
        lines["variants"].append(json.dumps(older))
        for name, moved in ((f"skull/{i}", 0), (f"craniofacial/{i}", i), (f"craniofacial/older_{i}", i + 16)):
            write_face(data / f"pairedCS/{name}.png", moved)
        for method, moved in (("model_own", 0), ("model_age_up", 8), ("ridge", 3), ("ridge_age_up", 3)):
            write_face(faces / method / f"{i}_0.png", moved)
    (data / "split_data").mkdir()
    for name, content in lines.items():
        (data / f"split_data/{name}.json").write_text("\n".join(content))
    files = [f"landmark_weights={data / 'split_data/test.json'}", f"out={tmp_path / 'out.json'}"]
    return [f"data.root={data}", f"results={tmp_path / 'results'}", "weights=null", "by=[network]", *files]


def test_half_a_change_is_a_half(
    measured: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(measured) == 0
    result = json.loads((tmp_path / "out.json").read_text())["found"]["network"]
    assert list(result) == ["age_up"]
    rows = result["age_up"]["rows"]
    assert set(rows) == {"model", ANOTHERS, "ridge"}
    assert rows["model"]["people"] == 3
    assert rows["model"]["projection"] == pytest.approx(0.5, abs=0.03)
    assert rows["model"]["angle"] < 5
    assert rows[ANOTHERS]["projection"] == pytest.approx(0.5, abs=0.03)  # all people change alike here
    assert rows["ridge"] == {"people": 3, "projection": 0, "interval": [0, 0], "angle": None}
    assert "| network | model | 0.5" in capsys.readouterr().out


def test_missing_faces_and_wrong_settings_name_the_key(
    measured: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bare/faces/model_own").mkdir(parents=True)
    for setting, message in (
        (f"results={tmp_path / 'nowhere'}", "results: "),
        (f"results={tmp_path / 'bare'}", "results: "),
        ("by=[eye]", "by"),
        ("num=1", "num"),
        (f"data.root={tmp_path}", "split_data"),
    ):
        assert main([*measured, setting]) == 2
        assert message in capsys.readouterr().err
    lists = tmp_path / "data/split_data"
    (lists / "variants.json").write_text((lists / "test.json").read_text())
    assert main(measured) == 2
    assert "data.root" in capsys.readouterr().err
