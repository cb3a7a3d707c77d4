"""Hostile and odd files and arguments over all entry points: exit code 2, one message, nothing left behind."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hostile_files import MARKER, make_hostile_files

import evaluate
import sample
import tool_add_control
import train
from cldm.diffusers_folder import __main__ as diffusers_folder
from data import pack, partial, split
from data.check import __main__ as check
from data.cohort import __main__ as cohort
from data.cohort import excerpt

ROOT = Path(__file__).resolve().parent.parent
NOWHERE = "/proc/nowhere" if Path("/proc").is_dir() else "a_file/nowhere"  # not writable, for root either

ENTRY: dict[str, tuple[Callable[[list[str]], int], str]] = {  # name -> main, start of its messages
    "tool": (tool_add_control.main, "tool_add_control.py: "),
    "sample": (sample.main, "sample.py: "),
    "train": (train.main, "train.py: "),
    "cohort": (cohort.main, "data.cohort: "),
    "excerpt": (excerpt.main, "data.cohort.excerpt: "),
    "evaluate": (evaluate.main, "evaluate.py: "),
    "folders": (diffusers_folder.main, "python -m cldm.diffusers_folder: "),
    "pack": (pack.main, "data.pack: "),
    "check": (check.main, "data.check: "),
    "split": (split.main, "data.split: "),
    "partial": (partial.main, "data.partial: "),
}


COMMANDS = """
tool | {} out.ckpt | none.ckpt nowhere.ckpt loop.ckpt LONG.ckpt pipe.ckpt folder.ckpt empty.ckpt page.ckpt pointer.ckpt
tool | {} out.ckpt | cut.ckpt cut.safetensors evil.ckpt evil_legacy.ckpt evil.pkl.ckpt document.ckpt
tool | {} out.ckpt | list.ckpt tensorless.ckpt text_state.ckpt skull.png sparse.ckpt
tool | {}.safetensors out.ckpt | lying_beyond lying_overlap lying_type lying_shape lying_backwards lying_length
tool | {}.safetensors out.ckpt | lying_json sd2 sdxl inpainting diffusers lora vae control resumable missing int8
tool | {}.safetensors out.ckpt | nan ema config_points config_side config_wide
tool | config_{}.safetensors out.ckpt | no_json list unknown_key negative no_groups no_heads endless gigantic no_levels
tool | config_{}.safetensors out.ckpt | no_steps text_in_numbers
tool | unknown_make.safetensors out.ckpt |
tool | base.ckpt {} | base.safetensors base.ckpt folder.ckpt out no/out.ckpt a_file/out.ckpt /proc/out.ckpt
tool | base.ckpt {} overwrite=true | base.ckpt
tool | base.ckpt {} overwrite=true | link.ckpt
tool | base.ckpt control.safetensors control=control.safetensors overwrite=true |
tool | base.ckpt out.ckpt config={}.yaml | none folder binary tag nested
tool | base.ckpt out.ckpt {} | control=none.pth control=evil.ckpt control=vae.safetensors control=
tool | base.ckpt out.ckpt {} | seed=-1 seed=99999999999999999999 overwrite=perhaps --overwrite
sample | skull={}.png | none LONG aNULb pipe empty cut text bomb
sample | skull={} | scan.dcm float.tif no_pictures pairs whole.safetensors
sample | skull=pairs/split_data/{}.json | no_json no_lines lost absolute outside ancient infinite
sample | skull=pairs/split_data/{}.json | digits nested twice array sex binary
sample | skull=skull.png weights={} | none.safetensors folder.ckpt skull.png evil.ckpt cut.safetensors
sample | skull=skull.png weights={}.safetensors | base control sdxl resumable lora config_no_groups config_gigantic
sample | skull=skull.png weights={}.safetensors | bad_advice
sample | skull=skull.png model={}.yaml | none broken list
sample | {} | list.yaml tag.yaml reference.yaml unknown.yaml binary.yaml skull.png skul=skull.png
sample | {} | list.yaml+broken.yaml --skull+skull.png
sample | skull=skull.png sampling{} | =3 .eta=.nan .steps=1000 .steps=2.5 .guidance_scale=.inf
sample | skull=skull.png sampling.control_scales={} | [1, [] [.nan]
sample | skull=skull.png sex=F body_mass=4 age={} | .nan -5 1e400
sample | skull=skull.png age=40 {} | sex=X+body_mass=4 sex=F+body_mass=9 sex=F+body_mass={}
sample | skull=pairs/split_data/test.json images_dir={} | a_file
sample | skull=skull.png {} | images_dir=pairs limit=0 seed=-1 seed=99999999999999999999 num_samples=0
sample | skull=skull.png {} | num_samples=1000000000
sample | skull=skull.png {} | batch_size=-3 device=tpu device= precision=half
sample | skull=skull.png out={} | a_file a_file/deep pairs NOWHERE LONG pairs+overwrite=true
train | {} | none.yaml LONG.yaml list.yaml folder.yaml unknown.yaml skull.png tag.yaml+stage=control
train | demo.yaml {} | stage=nothing name= optim.lr=.nan optim.lr=.inf optim.clip_norm=-1
train | demo.yaml train.{} | max_steps=0 max_steps=many seed=-1 precision=fp8 device=abacus
train | demo.yaml train.{} | device=gpu+train.devices=64
train | demo.yaml init={}.safetensors | none base control sdxl unknown_make config_no_groups
train | demo.yaml {} | init=evil.ckpt sampling.control_scales=[1,2]
train | demo.yaml data.{} | num_workers=-1 num_workers=1000000000 root=nowhere train=nested.json train=lost.json
train | demo.yaml data.{} | valid=train.json skull_folder=heads root=cut_pairs
train | demo.yaml name={} | broken evil other list
train | demo.yaml out={} | a_file NOWHERE
cohort | new {} | seeds=3 num_subjects=0 num_subjects=ten num_subjects=3 half_field=100 half_field=nan seed --seed=3
cohort | {} | a_file pairs cohort_broken cohort_list cohort_other a_file/deep NOWHERE
excerpt | {} new | nowhere a_file made_broken made_fieldless made_unaged made_lost made_outside
excerpt | pairs {} | a_file pairs NOWHERE
evaluate | {} | weihgts=3 none.yaml data.root=nowhere
evaluate | data.root=pairs {} | split=lost split=nested num_probes=-1 num_samples=0 picture_distance=far methods=[model]
evaluate | data.root=pairs {} | methods=model models={'a/b':'none'} models={'plain':'none.ckpt'} weights=evil.ckpt
evaluate | data.root=pairs {} | weights=base.safetensors mapping=none.csv data.trained_on=none.json out=a_file
evaluate | data.root=pairs {} | recognisers=[] onnx=none.onnx onnx=skull.png kid=none.pth kid=vae.safetensors
evaluate | data.root=pairs {} | lpips=evil.ckpt lpips=vae.safetensors out=NOWHERE
evaluate | data.root=pairs faces={} | nowhere a_file folder.ckpt
evaluate | data.root=pairs faces=folder.ckpt mapping={} | none.csv skull.png
folders | {} | exprot+a+b export+base.ckpt import+nowhere+new.ckpt import+pairs+new.ckpt+variant=../x
folders | export {} new | none.safetensors evil.ckpt
folders | export whole.safetensors {} | pairs a_file new+config=none.yaml new+colour=3
folders | import pairs {} | new.ckpt new.bin base.ckpt
pack | {} | nowhere+new pairs+pairs pairs+new pairs+new+colour=3 pairs+new+16 --check+pairs
check | pairs/split_data/{}.json | no_lines array binary
check | {} | no_pictures nowhere.json
check | pairs/split_data/train.json {} | tolerence=2 tolerance=0 sheet_cases=many ignore=teeth images_dir=nowhere
split | pairs/split_data/train.json new {} | test=1.5 valid=-1 valid=nan test=6 share=0.1 two by=extra.site
split | {} new | nowhere.json pairs/split_data/ancient.json pairs/split_data/array.json
split | pairs/split_data/train.json {} | a_file pairs/split_data new+stratify=height
partial | skull.png new {} | missing=jaw missing= seed=x
partial | {} new missing=left | empty.png pipe.png no_pictures none.png
partial | skull.png {} | missing=vault .+missing=vault
"""
WITHOUT_ARGUMENTS = ("cohort", "excerpt", "folders", "pack", "check", "split", "partial")


def commands() -> Iterator[tuple[str, str]]:
    """Yield each program of COMMANDS with its command line, once for each of the words that the braces stand for."""
    yield from ((program, "") for program in WITHOUT_ARGUMENTS)
    for line in COMMANDS.strip().splitlines():
        program, template, words = (part.strip() for part in line.split("|"))
        for word in words.split(" "):
            for name, text in {"+": " ", "LONG": "n" * 5000, "NOWHERE": NOWHERE, "NUL": "\0"}.items():
                word = word.replace(name, text)
            yield program, template.replace("{}", word, 1)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder full of bad files; nothing may ever be added to it or change in it."""
    root = tmp_path_factory.mktemp("workshop")
    make_hostile_files(root)
    before = Path.cwd()
    os.chdir(root)
    yield root
    os.chdir(before)


def listing(root: Path) -> dict[Path, tuple[int, int, int]]:
    """Return size, time and inode of each file in a folder, at any depth."""
    states = {path: path.lstat() for path in root.rglob("*")}
    return {path: (one.st_size, one.st_mtime_ns, one.st_ino) for path, one in states.items()}


def check_message(err: str, begins: str) -> None:
    """Check for one message: it begins with the program's name; a list of problems goes on indented."""
    assert err.startswith(begins) and "Traceback" not in err and len(err) < 12_000, err
    assert all(line.startswith("  ") for line in err.splitlines()[1:]), err


@pytest.mark.parametrize(("name", "line"), [*commands()], ids=lambda text: text[:60])
def test_refused_in_one_message_with_nothing_left_behind(workshop, capsys, name, line):
    main, begins = ENTRY[name]
    arguments = line.split(" ") if line else []
    if name == "sample" and "weights=" not in line:
        arguments.append("weights=whole.safetensors")
    before = listing(workshop)
    capsys.readouterr()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    check_message(error, begins)
    # it names a setting or a file of the command line
    names = {part for word in arguments for part in re.split("[/=]|(?<=data)[.]", word)}
    assert not line or any(name in error for name in names if name), error
    assert listing(workshop) == before
    assert not (workshop / MARKER).exists()


def test_no_space_is_seen_before_the_writing(workshop, capsys, monkeypatch):
    usage = shutil.disk_usage(workshop)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    before = listing(workshop)
    assert tool_add_control.main(["base.ckpt", "out.ckpt"]) == 2
    check_message(capsys.readouterr().err, "tool_add_control.py: ")
    assert listing(workshop) == before


@pytest.mark.parametrize("target", ["out.ckpt", "out.safetensors"])
def test_a_disk_that_fills_up_while_writing(workshop, capsys, target):
    before = listing(workshop)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # bytes a file may have
    try:
        assert tool_add_control.main(["base.ckpt", target]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    check_message(capsys.readouterr().err, "tool_add_control.py: ")
    assert listing(workshop) == before


def test_a_job_that_is_stopped_while_writing_leaves_nothing(workshop):
    """SIGTERM, as schedulers send it, at the worst moment: the temporary file stands there, not yet renamed."""
    before = listing(workshop)
    stopped = "import os, runpy, signal, sys; from ldm import checkpoint; script = sys.argv.pop(0) and sys.argv[0]; "
    stopped += "checkpoint._flush = lambda path: os.kill(os.getpid(), signal.SIGTERM); "
    stopped += "runpy.run_path(script, run_name='__main__')"
    done = program(workshop, "-c", stopped, str(ROOT / "tool_add_control.py"), "base.ckpt", "out.ckpt")
    assert (done.returncode, done.stderr) == (143, b"tool_add_control.py: interrupted, nothing written\n")
    assert listing(workshop) == before


def test_as_a_program(workshop):
    before = listing(workshop)
    script, name = str(ROOT / "tool_add_control.py"), b"\xff\n\x1b[2J.ckpt"  # a name that is no text
    done = program(workshop, script, name, "out.ckpt")
    assert (done.returncode, done.stdout) == (2, b""), done.stderr
    assert done.stderr.count(b"\n") == 1 and b"Traceback" not in done.stderr
    assert listing(workshop) == before


def program(folder: Path, *arguments: str | bytes) -> subprocess.CompletedProcess[bytes]:
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, env=os.environ | own, capture_output=True, timeout=300, check=False
    )
