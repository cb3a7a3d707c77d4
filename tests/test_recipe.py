"""make train-demo: every stage in order, what is done is kept, and every stage starts from what an earlier one made."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from muti_control.training.config import ExperimentConfig
from settings.reading import parse_command_line

ROOT = Path(__file__).resolve().parent.parent
ORDER = ["pipnet_face", "pipnet_face_fine", "pipnet_face_last", "pipnet_skull", "pipnet_skull_fine"]
ORDER += ["autoencoder", "grain", "base", "control", "guidance_decoder"]


def planned(runs: Path, cohort: Path) -> list[str]:
    """The commands that would be run."""
    command = ["make", "-n", "train-demo", f"RUNS={runs}", f"COHORT={cohort}", "MORE=train.seed=7"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if ".venv/bin/python" in line and "-m pip " not in line]


def stages(lines: list[str]) -> list[str]:
    return [match[1] for line in lines if (match := re.search(r"configs/demo/(\w+)\.yaml", line))]


def test_every_stage_comes_once_and_in_order(tmp_path: Path) -> None:
    lines = planned(tmp_path / "runs", tmp_path / "cohort")
    assert stages(lines) == ORDER
    assert all("train.seed=7" in line for line in lines if "train.py" in line)
    text = "\n".join(lines)
    assert text.index("data.cohort") < text.index("pipnet_face.yaml")
    prediction, addition = text.index("predict_landmarks"), text.index("tool_add_control.py")
    assert prediction < addition < text.index("demo/control.yaml")


def test_a_stage_starts_from_what_an_earlier_one_writes(tmp_path: Path) -> None:
    written = {f"{tmp_path}/runs/demo_control_ini.safetensors"}
    for line in planned(tmp_path / "runs", tmp_path / "cohort"):
        if (match := re.search(r"(configs/demo/\w+\.yaml)", line)) is None:
            continue
        if init := re.search(r'init="([^"]+)"', line):
            assert init[1] in written, line
        cfg = parse_command_line(ExperimentConfig, [str(ROOT / match[1])])
        written.add(f"{tmp_path}/runs/{cfg.name}/model.safetensors")


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    for name in ("demo_pipnet_face", "demo_autoencoder"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "model.safetensors").touch()
    (tmp_path / "cohort/split_data").mkdir(parents=True)
    (tmp_path / "cohort/split_data/train.json").touch()
    lines = planned(tmp_path / "runs", tmp_path / "cohort")
    assert stages(lines) == [stage for stage in ORDER if stage not in ("pipnet_face", "autoencoder")]
    assert not any("data.cohort" in line for line in lines)
