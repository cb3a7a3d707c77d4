"""Every benchmark names a wrong setting, or the file that is not there, before it writes anything."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

WRONG = {
    "cohort.anatomy": "num_subjects=3 ethnicity=Martian",
    "model.altered": "people=1 prepare=[maybe] data.root=nowhere",
    "model.ceiling": "data.root=nowhere",
    "model.landmarks": "split=train resamples=1 eye_corners=[1] face=none.safetensors",
    "parity": "sizes=[100] append=nowhere.md weights=nowhere.ckpt weigths=x",
    "sampling.samplers": "steps=[0] manifest=nowhere.json",
    "sampling.speed": "variants=[theirs] reps=0 batches=[] model=none.yaml device=tpu szie=3",
    "training.training": "clock=sun variants=[theirs]",
}


@pytest.mark.parametrize(
    ("program", "argument"), [(name, word) for name, words in WRONG.items() for word in words.split()]
)
def test_a_wrong_setting_is_named(
    program: str,
    argument: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert importlib.import_module(f"benchmarks.{program}").main([argument]) == 2
    error = capsys.readouterr().err
    key, value = argument.split("=")
    assert (key in error or value in error) and "Traceback" not in error
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
