"""What the programs answer to the mistakes of a first hour, and that they answer before the networks are loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parent.parent
ANSWERS = {  # command line, separated by bars -> what the one message names
    "skul=skull.png": "skul: ",
    "skull.png": "skull=skull.png",
    "other.png": "other.png",
    "skull=": "skull: ",
    "skull=missing.png": "missing.png",
    "skull=empty": "empty",
    "skull=skull.png,skull.png": "skull.png,skull.png",
    "training.yaml": "train.py",
    "skull=skull.png|num_samples=0": "num_samples: ",
    "skull=skull.png|sex=F|age=forty|body_mass=4": "age: ",
    "skull=skull.png|out=a.pdf": "out: ",
    "skull=skull.png|weights=none.pth": "weights: ",
    "skull=skull.png|weights=diffusers": "cldm.diffusers_folder import",
    "skull=skull.png|weights=empty": "weights: ",
    "skull=skull.png|weights=cls_layer.safetensors": "a landmark network",
    "skull=skull.png|weights=blocks.safetensors": "a small decoder",
    "skull=skull.png|ethnicity=caucasion": "did you mean Caucasian?",
    "skull=people.csv": "did you mean African?",
    "skull=a.pdf": "PDF",
    "skull=photo.heic": "HEIC",
    "skull=letter.docx": "office document",
    "skull=headless.csv": "headless.csv",
    "skull=skull.png|repeat=record.json": "repeat: ",
    "skull=skull.png|grid=height": "grid: ",
    "skull=skull.png|sampling.control_scales={a: 1}": "sampling.control_scales: got {'a': 1}, expected a list",
    "skull=skull.png|sampling=[1, 2]": "sampling: got [1, 2], expected settings",
}
OTHERS = {  # the same for other programs, whose name stands first
    "train|training.yaml|trian.max_steps=3": "did you mean train.max_steps?",
    f"train|{ROOT}/configs/debug/control.yaml|data.root=nowhere": "this run needs files",
    "evaluate|data.root=nowhere": "data.root: ",
    "evaluate|data.root=pairs|weights=none.pth": "none.pth is missing",
    "evaluate|data.root=pairs|num=3": "num: the key is now num_probes",
    "train|train.accelerator=cpu": "train.accelerator: the key is now train.device",
    "tool_add_control|a.pdf|out.ckpt|force=true": "force: the key is now overwrite",
    "tool_add_control|none.ckpt|out.ckpt": "none.ckpt is missing",
    "tool_add_control|a.pdf|out.ckpt|branches=[skul]": "branches",
}
SCRIPT = """
import contextlib, importlib, io, json, sys
answers = []
for words in json.loads(sys.argv[1]):
    program, *arguments = words.split("|")
    main = importlib.import_module(program).main
    with contextlib.redirect_stderr(io.StringIO()) as err:
        answers.append((main(arguments), err.getvalue(), "torch" in sys.modules))
print(json.dumps(answers))
"""


def test_every_mistake_has_an_answer_that_does_not_wait_for_torch(tmp_path: Path) -> None:
    Image.fromarray(np.full((64, 64), 90, np.uint8)).save(tmp_path / "skull.png")
    for folder, file in (("empty", None), ("diffusers", "model_index.json")):
        (tmp_path / folder).mkdir()
        if file:
            (tmp_path / folder / file).write_text("{}")
    for name, contents in {
        "a.pdf": b"%PDF-1.7 ...",
        "photo.heic": b"\0\0\0\x18ftypheic\0\0\0\0",
        "letter.docx": b"PK\3\4 ...",
        "headless.csv": b"skull.png,male,40\n",
        "people.csv": b"skull,ethnicity\nskull.png,Asian\nskull.png,afrcan\n",
        "training.yaml": b"stage: control\n",
    }.items():
        (tmp_path / name).write_bytes(contents)
    for name in ("cls_layer", "blocks"):
        save_file({f"{name}.weight": np.zeros(1, np.float32)}, tmp_path / f"{name}.safetensors")
    (tmp_path / "pairs" / "split_data").mkdir(parents=True)
    (tmp_path / "pairs" / "split_data" / "test.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    answers = {f"sample|{words}": key for words, key in ANSWERS.items()} | OTHERS
    answers |= {f"{program}|--help|all|nothing=1": "nothing: " for program in ("train", "sample", "evaluate")}
    command = [sys.executable, "-c", SCRIPT, json.dumps([*answers])]
    ended = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    for (words, key), (code, err, loaded) in zip(answers.items(), json.loads(ended.stdout), strict=True):
        assert code == 2 and key in err and not loaded, (words, err)
        assert err.startswith(f"{words.partition('|')[0]}.py: ")
        assert all(line.startswith("  ") for line in err.splitlines()[1:]), err
    assert sorted(tmp_path.rglob("*")) == before
