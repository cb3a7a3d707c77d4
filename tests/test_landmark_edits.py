"""benchmarks.model.landmark_edits: what it moves, what it reads, and a whole run on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from landmark_pairs import LAYOUT, write_landmark_model, write_landmark_pairs

from benchmarks.model import landmark_edits
from benchmarks.model.landmark_edits import CHIN, changes, chin_moved
from cldm.branches import Landmarks


def test_the_chin_moves_and_the_eyes_stay() -> None:
    points = torch.tensor([[[0.4, 0.4], [0.6, 0.4], [0.5, 0.9], [0.53, 0.88], [0.3, 0.7]]])
    before = Landmarks(points, torch.ones(1, 5), torch.ones(1, dtype=torch.bool))
    moved = chin_moved(before, 6 / 256).points - points
    assert moved[0, 2, 1] == pytest.approx(6 / 256)
    assert 0 < moved[0, 3, 1] < 6 / 256
    assert not moved[0, [0, 1, 4]].any() and not moved[..., 0].any()


def test_changes_are_in_px_and_have_a_sign() -> None:
    before = np.random.default_rng(0).uniform(50, 200, (3, 68, 2))
    after = before.copy()
    after[:, CHIN, 1] += 4
    after[:, 12, 0] = before[:, 4, 0] + 90
    after[:, 12, 1] = before[:, 4, 1]
    found = changes(before, after)
    np.testing.assert_allclose(found["chin, down"], 4)
    np.testing.assert_allclose(
        found["jaw, wider"], 90 - np.linalg.norm(before[:, 12] - before[:, 4], axis=-1)
    )
    np.testing.assert_allclose(found["eyes, any way"], 0)


def test_a_run_compares_each_edit_with_its_own_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_landmark_pairs(tmp_path, side=64, test=4)
    write_landmark_model(root, len(LAYOUT), ("Asian", "African"))
    given = [
        f"weights={root}/model.safetensors",
        f"landmark_weights={root}/pipnet.safetensors",
        f"cohort={root}",
    ]
    assert landmark_edits.main([*given, "resamples=100", "precision=fp32", f"out={tmp_path}/edits"]) == 0
    found = json.loads((tmp_path / "edits.json").read_text())
    assert found["subjects"] == 3  # body mass 4 leaves no room for two levels more
    assert len(found["px of 256"]) == 3 and "chin, down" in capsys.readouterr().out
    assert (tmp_path / "edits.png").is_file()
    guided = ["guidance.mode=spgd", "guidance.landmarks=0"]
    more = [*guided, "guidance.inner=1", "resamples=100", "precision=fp32", f"out={tmp_path}/guided"]
    assert landmark_edits.main([*given, *more]) == 0
    found = json.loads((tmp_path / "guided.json").read_text())
    assert len(found["px of 256"]) == 5 and "as read, guided" in found["rows of the picture"]
    assert landmark_edits.main([*given, "guidance.mode=sgd"]) == 2
    assert "guidance.mode: got 'sgd'" in capsys.readouterr().err
    assert landmark_edits.main(given[1:]) == 2  # the demo model has no landmark branch: there is no default
    assert "weights" in capsys.readouterr().err
    assert landmark_edits.main([*given, "levels=5"]) == 2
    assert "levels: got 5" in capsys.readouterr().err
