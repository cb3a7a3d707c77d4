"""How many of the repository's files a reader walks through from an entry script to the mathematics and the results."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from unittest.mock import Mock

import pytest

import sample
import tool_add_control
import train
from muti_control.sampling import prepare

ROOT = Path(sample.__file__).resolve().parent
Target = tuple[str, str]
"""A file of the repository and the name of a function in it."""


def files_on_stack(frame: FrameType | None) -> list[str]:
    """The repository's files on a call stack, without tests, each once, the innermost first."""
    files: dict[str, None] = {}
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and path.suffix == ".py":
            name = path.relative_to(ROOT).as_posix()
            if not name.startswith((".venv/", "tests/")):
                files[name] = None
        frame = frame.f_back
    return list(files)


def walks(run: Callable[[], object], targets: Sequence[Target]) -> dict[Target, list[str]]:
    """Run, and return the files on the stack at each target's first call, in whichever thread that is."""
    names = {name for _, name in targets}
    stacks: dict[Target, list[str]] = {}

    def watch(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name in names:
            for file, name in targets:
                if frame.f_code.co_name == name and frame.f_code.co_filename == str(ROOT / file):
                    stacks.setdefault((file, name), files_on_stack(frame))

    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        run()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    missing = set(targets) - set(stacks)
    assert not missing, f"never called: {missing}"
    return stacks


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_walks_of_a_skull(
    weights: Path, make_pairs: Callable[..., Path], tmp_path: Path, sampler: str
) -> None:
    """From sample.py to the sampler's equation four files, to the PNG five, and nine that the skull goes through."""
    step = {"ddim": ("cldm/ddim.py", "ddim_step"), "dpmpp_2m": ("cldm/multistep.py", "predict")}[sampler]
    skull, hint, png = (
        ("data/images.py", "read_image"),
        ("cldm/controlled.py", "encode_hint"),
        ("data/images.py", "write_png"),
    )
    manifest = make_pairs(test=1) / "split_data/test.json"
    arguments = [f"weights={weights}", f"skull={manifest}", f"out={tmp_path / 'o'}", "device=cpu"]
    command = [*arguments, f"sampling.sampler={sampler}", "precision=fp32"]
    job = prepare.prepare(command)

    def run() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                sample, "check_request", lambda _: Mock(repeat=None)
            )  # the checks read the skull too
            patch.setattr(prepare, "prepare", lambda _: job)
            assert sample.main(command) == 0

    stacks = walks(run, [skull, hint, step, png])
    assert stacks[step][-1] == "sample.py"
    assert len(stacks[step]) <= 4, stacks[step]
    assert len(stacks[png]) <= 5, stacks[png]
    through = {file for stack in stacks.values() for file in stack}
    assert len(through) <= 9, sorted(through)
    assert json.loads((tmp_path / "o/record.json").read_text())["finished"]


def test_walk_to_the_noise_loss(make_tiny_run: Callable[..., list[str]], tmp_path: Path) -> None:
    """From train.py to the noise loss, a function of tensors, four files."""
    loss = ("muti_control/losses/noise.py", "noise_loss")
    init = tmp_path / "init.safetensors"
    fast = ["sampling.steps=1", "sampling.control_scales=[1.0]", "train.num_threads=1"]
    for stage in ("base", "control"):
        command = make_tiny_run(1, f"stage={stage}", f"name={stage}", "train.precision=fp32", *fast)
        if stage == "control":
            command.append(f"init={init}")
            base = tmp_path / "pairs/runs/base/model.safetensors"
            assert tool_add_control.main([str(base), str(init), "branches=[skull]"]) == 0
        stack = walks(partial(train.main, command), [loss])[loss]
        assert stack[-1] == "train.py"
        assert len(stack) <= 4, stack
