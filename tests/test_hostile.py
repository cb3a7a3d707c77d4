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
LONG = "n" * 5000
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


def lines(program: str, template: str, arguments: str) -> list[tuple[str, str]]:
    """Return a program and its command line for each of the arguments, which are separated by blanks."""
    return [(program, template.format(argument)) for argument in arguments.split(" ")]


BAD_CHECKPOINTS = (
    f"none.ckpt nowhere.ckpt loop.ckpt {LONG}.ckpt pipe.ckpt folder.ckpt empty.ckpt page.ckpt pointer.ckpt cut.ckpt "
    "cut.safetensors evil.ckpt evil_legacy.ckpt evil.pkl.ckpt document.ckpt deflated.ckpt lying_beyond.safetensors "
    "lying_overlap.safetensors lying_type.safetensors lying_shape.safetensors lying_backwards.safetensors "
    "lying_length.safetensors lying_json.safetensors list.ckpt tensorless.ckpt text_state.ckpt skull.png"
)
OTHER_MODELS = (
    "sd2.safetensors sdxl.safetensors inpainting.safetensors diffusers.safetensors lora.safetensors vae.safetensors "
    "control.safetensors resumable.safetensors missing.safetensors int8.safetensors sparse.ckpt "
    "unknown_make.safetensors config_no_json.safetensors config_list.safetensors config_unknown_key.safetensors "
    "config_negative.safetensors config_no_groups.safetensors config_no_heads.safetensors "
    "config_endless.safetensors config_gigantic.safetensors config_no_levels.safetensors "
    "config_no_steps.safetensors config_text_in_numbers.safetensors"
)
HOSTILE = [
    *lines("tool", "{} out.ckpt", f"{BAD_CHECKPOINTS} {OTHER_MODELS}"),
    *lines("tool", "base.ckpt {}", "base.safetensors base.ckpt folder.ckpt out no/out.ckpt a_file/out.ckpt"),
    *lines("tool", "base.ckpt {}", "/proc/out.ckpt force=true"),
    ("tool", "base.ckpt link.ckpt force=true"),
    ("tool", "base.ckpt control.safetensors control=control.safetensors force=true"),
    *lines("tool", "base.ckpt out.ckpt config={}.yaml", "none folder binary tag nested"),
    *lines(
        "tool", "base.ckpt out.ckpt {}", "control=none.pth control=evil.ckpt control=vae.safetensors control="
    ),
    *lines("tool", "base.ckpt out.ckpt {}", "seed=-1 seed=99999999999999999999 force=perhaps --force"),
    *lines(
        "sample",
        "skull={}",
        f"none.png {LONG}.png a\0b.png pipe.png empty.png cut.png text.png scan.dcm bomb.png",
    ),
    *lines("sample", "skull={}", "float.tif no_pictures pairs whole.safetensors"),
    *lines(
        "sample", "skull=pairs/split_data/{}.json", "no_json no_lines lost absolute outside ancient infinite"
    ),
    *lines("sample", "skull=pairs/split_data/{}.json", "digits nested twice array sex utf16 binary"),
    *lines(
        "sample",
        "skull=skull.png weights={}",
        "none.safetensors folder.ckpt skull.png evil.ckpt cut.safetensors",
    ),
    *lines(
        "sample",
        "skull=skull.png weights={}.safetensors",
        "base control sdxl resumable lora config_no_groups",
    ),
    *lines("sample", "skull=skull.png weights={}.safetensors", "config_gigantic bad_advice"),
    *lines("sample", "skull=skull.png model={}.yaml", "none broken list"),
    *lines(
        "sample", "{}", "list.yaml tag.yaml reference.yaml unknown.yaml binary.yaml skull.png skul=skull.png"
    ),
    *(("sample", line) for line in ("list.yaml broken.yaml", "--skull skull.png")),
    *lines("sample", "skull=skull.png sampling{}", "=3 .eta=.nan .steps=1000 .steps=2.5"),
    *lines("sample", "skull=skull.png sampling.control_scales={}", "[1, [] [.nan]"),
    *lines("sample", "skull=skull.png sampling.guidance_scale={}", ".nan .inf"),
    *lines("sample", "skull=skull.png sex=F body_mass=4 age={}", ".nan -5 1e400"),
    *lines("sample", "skull=skull.png age=40 {}", "sex=F body_mass=4"),
    *lines("sample", "skull=skull.png sex=F age=40 body_mass={}", "9 {{}}"),
    ("sample", "skull=skull.png sex=X age=40 body_mass=4"),
    ("sample", "skull=pairs/split_data/test.json images_dir=a_file"),
    *lines(
        "sample",
        "skull=skull.png {}",
        "images_dir=pairs limit=0 seed=-1 seed=99999999999999999999 num_samples=0",
    ),
    *lines("sample", "skull=skull.png {}", "batch_size=-3 device=tpu device= precision=half"),
    *lines("sample", "skull=skull.png out={}", f"a_file a_file/deep pairs {NOWHERE} {LONG}"),
    ("sample", "skull=skull.png out=pairs overwrite=true"),
    *lines("train", "{}", f"none.yaml {LONG}.yaml list.yaml folder.yaml unknown.yaml skull.png"),
    ("train", "tag.yaml stage=control"),
    *lines("train", "demo.yaml {}", "stage=nothing name= optim.lr=.nan optim.lr=.inf optim.clip_norm=-1"),
    *lines(
        "train", "demo.yaml train.{}", "max_steps=0 max_steps=many seed=-1 precision=fp8 accelerator=abacus"
    ),
    ("train", "demo.yaml train.accelerator=gpu train.devices=64"),
    *lines("train", "demo.yaml init={}.safetensors", "none base control sdxl unknown_make config_no_groups"),
    *lines("train", "demo.yaml {}", "init=evil.ckpt sampling.control_scales=[1,2]"),
    *lines("train", "demo.yaml data.{}", "num_workers=-1 root=nowhere train=nested.json train=lost.json"),
    *lines("train", "demo.yaml data.{}", "valid=train.json skull_folder=heads root=cut_pairs"),
    *lines("train", "demo.yaml name={}", "broken evil other list"),
    *lines("train", "demo.yaml out={}", f"a_file {NOWHERE}"),
    *lines(
        "cohort",
        "new {}",
        "seeds=3 num_subjects=0 num_subjects=ten num_subjects=3 half_field=100 half_field=nan",
    ),
    *lines("cohort", "new {}", "seed --seed=3"),
    *lines("cohort", "{}", f" a_file pairs cohort_broken cohort_list cohort_other a_file/deep {NOWHERE}"),
    *lines(
        "excerpt", "{} new", "nowhere a_file made_broken made_fieldless made_unaged made_lost made_outside"
    ),
    *lines("excerpt", "pairs {}", f"a_file pairs {NOWHERE}"),
    ("excerpt", ""),
    *lines("evaluate", "{}", "weihgts=3 none.yaml"),
    *lines("evaluate", "data.root={}", "nowhere"),
    *lines("evaluate", "data.root=pairs {}", "split=lost split=nested num=-1 samples=0 picture_distance=far"),
    *lines("evaluate", "data.root=pairs {}", "methods=[model] methods=model models={{'a/b':'none'}}"),
    *lines(
        "evaluate",
        "data.root=pairs {}",
        "models={{'plain':'none.ckpt'}} weights=evil.ckpt weights=base.safetensors",
    ),
    *lines("evaluate", "data.root=pairs faces={}", "nowhere a_file folder.ckpt"),
    *lines("evaluate", "data.root=pairs faces=folder.ckpt mapping={}", "none.csv skull.png"),
    *lines(
        "evaluate",
        "data.root=pairs {}",
        f"mapping=none.csv data.trained_on=none.json out=a_file out={NOWHERE}",
    ),
    *lines("evaluate", "data.root=pairs {}", "recognisers=[] onnx=none.onnx onnx=skull.png kid=none.pth"),
    *lines("evaluate", "data.root=pairs {}", "kid=vae.safetensors lpips=evil.ckpt lpips=vae.safetensors"),
    *(("folders", line) for line in ("", "exprot a b", "export base.ckpt", "import nowhere new.ckpt")),
    *lines("folders", "export {} new", "none.safetensors evil.ckpt"),
    *lines("folders", "export whole.safetensors {}", "pairs a_file"),
    *lines("folders", "export whole.safetensors new {}", "config=none.yaml colour=3"),
    *lines("folders", "import pairs {}", "new.ckpt new.bin base.ckpt"),
    ("folders", "import pairs new.ckpt variant=../x"),
    *lines("pack", "pairs {}", "pairs new"),
    *(("pack", line) for line in ("", "nowhere new", "pairs new colour=3", "pairs new 16", "--check pairs")),
    *lines("check", "{}", "nowhere.json no_pictures pairs/split_data/no_lines.json"),
    *lines("check", "pairs/split_data/{}.json", "array utf16 binary"),
    *lines(
        "check", "pairs/split_data/train.json {}", "tolerence=2 tolerance=0 sheet_cases=many ignore=teeth"
    ),
    *lines("check", "pairs/split_data/train.json {}", "images_dir=nowhere"),
    *lines("split", "pairs/split_data/train.json new {}", "test=1.5 valid=-1 valid=nan test=6 share=0.1 two"),
    *lines("split", "pairs/split_data/train.json new {}", "stratify=height by=extra.site"),
    *lines("split", "{} new", "nowhere.json pairs/split_data/ancient.json pairs/split_data/array.json"),
    *lines("split", "pairs/split_data/train.json {}", "a_file pairs/split_data"),
    *lines("partial", "skull.png new {}", "missing=jaw missing= seed=x"),
    *lines("partial", "{} new missing=left", "empty.png pipe.png no_pictures none.png"),
    *(("partial", line) for line in ("", "skull.png missing=vault", "skull.png . missing=vault")),
]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder full of bad files; nothing may ever be added to it or change in it."""
    root = tmp_path_factory.mktemp("workshop")
    make_hostile_files(root)
    before = Path.cwd()
    os.chdir(root)
    yield root
    os.chdir(before)


def listing(root: Path) -> dict[str, tuple[int, int, int]]:
    """What is in a folder, at any depth: size, time and inode of each file."""
    paths = [
        os.path.join(folder, name) for folder, inside, files in os.walk(root) for name in [*inside, *files]
    ]
    states = {path: os.lstat(path) for path in paths}
    return {path: (one.st_size, one.st_mtime_ns, one.st_ino) for path, one in states.items()}


def check_message(err: str, begins: str) -> None:
    """One message: it begins with the program's name; a list of problems goes on indented."""
    assert err.startswith(begins), err
    assert "Traceback" not in err
    assert len(err) < 12_000
    assert all(line.startswith("  ") for line in err.splitlines()[1:]), err


@pytest.mark.parametrize(("name", "line"), HOSTILE, ids=lambda text: text[:60])
def test_refused_in_one_message_with_nothing_left_behind(
    workshop: Path, capsys: pytest.CaptureFixture[str], name: str, line: str
) -> None:
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


def test_no_space_is_seen_before_the_writing(
    workshop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(workshop)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    before = listing(workshop)
    assert tool_add_control.main(["base.ckpt", "out.ckpt"]) == 2
    check_message(capsys.readouterr().err, "tool_add_control.py: ")
    assert listing(workshop) == before


@pytest.mark.parametrize("target", ["out.ckpt", "out.safetensors"])
def test_a_disk_that_fills_up_while_writing(
    workshop: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    before = listing(workshop)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # bytes a file may have
    try:
        assert tool_add_control.main(["base.ckpt", target]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    check_message(capsys.readouterr().err, "tool_add_control.py: ")
    assert listing(workshop) == before


def test_a_job_that_is_stopped_while_writing_leaves_nothing(workshop: Path) -> None:
    """SIGTERM, as schedulers send it, at the worst moment: the temporary file stands there, not yet renamed."""
    before = listing(workshop)
    stopped = "import os, runpy, signal, sys; from ldm import checkpoint; script = sys.argv.pop(0) and sys.argv[0]; "
    stopped += "checkpoint._flush = lambda path: os.kill(os.getpid(), signal.SIGTERM); "
    stopped += "runpy.run_path(script, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", stopped, str(ROOT / "tool_add_control.py"), "base.ckpt", "out.ckpt"],
        cwd=workshop,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr == b"tool_add_control.py: interrupted, nothing written\n"
    assert listing(workshop) == before


@pytest.mark.parametrize(
    "words",
    [
        ("tool_add_control.py", b"\xff\n\x1b[2J.ckpt", "out.ckpt"),  # a name that is no text
        ("train.py", "demo.yaml", "name=evil"),
    ],
)
def test_as_a_program(workshop: Path, words: tuple[str | bytes, ...]) -> None:
    before = listing(workshop)
    done = subprocess.run(
        [sys.executable, str(ROOT / str(words[0])), *words[1:]],
        cwd=workshop,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, b""), done.stderr
    assert done.stderr.count(b"\n") == 1
    assert b"Traceback" not in done.stderr
    assert listing(workshop) == before
