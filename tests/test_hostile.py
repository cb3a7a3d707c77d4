"""Hostile and odd files and arguments over all entry points: exit code 2, one message, nothing left behind."""

from __future__ import annotations

import os
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
from data import pack
from data.cohort import __main__ as cohort
from data.cohort import excerpt

ROOT = Path(__file__).resolve().parent.parent
LONG = "n" * 5000
NOWHERE = "/proc/nowhere" if Path("/proc").is_dir() else "a_file/nowhere"  # not writable, for root either

ENTRY: dict[str, tuple[Callable[[list[str]], int], str]] = {  # name -> main, what its messages begin with
    "tool": (tool_add_control.main, "tool_add_control.py: "),
    "sample": (sample.main, "sample.py: "),
    "train": (train.main, "train.py: "),
    "cohort": (cohort.main, "data.cohort: "),
    "excerpt": (excerpt.main, "data.cohort.excerpt: "),
    "evaluate": (evaluate.main, "evaluate.py: "),
    "folders": (diffusers_folder.main, "python -m cldm.diffusers_folder: "),
    "pack": (pack.main, "data.pack: "),
}

# The arguments, then what the message must say: who offends, and what to do.
TOOL = [
    ("none.ckpt out.ckpt", "none.ckpt: no such file; check the path"),
    ("nowhere.ckpt out.ckpt", "nowhere.ckpt: no such file"),
    ("loop.ckpt out.ckpt", "loop.ckpt", "check"),
    (f"{LONG}.ckpt out.ckpt", "too long"),
    ("pipe.ckpt out.ckpt", "pipe.ckpt is no regular file"),
    ("folder.ckpt out.ckpt", "folder.ckpt is a folder; expected a checkpoint file"),
    ("empty.ckpt out.ckpt", "empty.ckpt is an empty file", "Download it again"),
    ("page.ckpt out.ckpt", "page.ckpt is a file starting with b'<html>", "Download it again"),
    ("pointer.ckpt out.ckpt", "Git LFS pointer", "git lfs pull"),
    ("cut.ckpt out.ckpt", "cut.ckpt", "cut short: copy it again"),
    ("cut.safetensors out.ckpt", "cut.safetensors", "cut short: copy it again"),
    ("evil.ckpt out.ckpt", "evil.ckpt wants to run posix.system", "Use a .safetensors file"),
    ("evil_legacy.ckpt out.ckpt", "evil_legacy.ckpt wants to run posix.system", "nothing was executed"),
    ("evil.pkl.ckpt out.ckpt", "evil.pkl.ckpt", "copy it again"),
    ("document.ckpt out.ckpt", "zip archive but no PyTorch checkpoint (it holds word/document.xml)", "unpack"),
    ("deflated.ckpt out.ckpt", "deflated.ckpt is a compressed archive", "as it was downloaded"),
    *((f"lying_{kind}.safetensors out.ckpt", f"lying_{kind}.safetensors is not a readable", "copy it again")
      for kind in ("beyond", "overlap", "type", "shape", "backwards", "length")),
    ("lying_json.safetensors out.ckpt", "lying_json.safetensors", "copy it again"),
    ("list.ckpt out.ckpt", "list.ckpt holds a list; expected a dictionary of tensors"),
    ("tensorless.ckpt out.ckpt", "tensorless.ckpt holds no tensors", "its keys are: epoch, name"),
    ("text_state.ckpt out.ckpt", "text_state.ckpt", "expected a dictionary of tensors"),
    ("skull.png out.ckpt", "skull.png is a file starting with b'\\x89PNG"),
    ("sd2.safetensors out.ckpt", "sd2.safetensors: it is Stable Diffusion 2 (", "config=YAML"),
    ("sdxl.safetensors out.ckpt", "sdxl.safetensors: it is Stable Diffusion XL (conditioner.* keys); expected"),
    ("inpainting.safetensors out.ckpt", "it is an inpainting model (9 input channels", "config=YAML"),
    ("diffusers.safetensors out.ckpt", "it is a diffusers export"),
    ("lora.safetensors out.ckpt", "lora.safetensors: it is a LoRA"),
    ("vae.safetensors out.ckpt", "it is an autoencoder without a UNet"),
    ("control.safetensors out.ckpt", "a control network alone", "control=FILE"),
    ("trained.safetensors out.ckpt", "a trained control network", "replace=true"),
    ("resumable.safetensors out.ckpt", "a training checkpoint of this program", "model.safetensors"),
    ("missing.safetensors out.ckpt", "1 missing (model.diffusion_model.input_blocks.0.0.bias)"),
    ("int8.safetensors out.ckpt", "1 not floating-point (model.diffusion_model.input_blocks.0.0.bias is torch.int8)"),
    ("sparse.ckpt out.ckpt", "input_blocks.0.0.bias"),
    ("unknown_make.safetensors out.ckpt", "of another shape", "config=YAML"),
    ("config_no_json.safetensors out.ckpt", "config_no_json.safetensors", "'config' is no JSON", "YAML"),
    ("config_list.safetensors out.ckpt", "config_list.safetensors", "'config' is [1, 2]", "YAML"),
    ("config_unknown_key.safetensors out.ckpt", "config_unknown_key.safetensors", "unte: unknown setting; known:"),
    ("config_negative.safetensors out.ckpt", "config_negative.safetensors", "model_channels"),
    ("config_no_groups.safetensors out.ckpt", "config_no_groups.safetensors", "norm_groups"),
    ("config_no_heads.safetensors out.ckpt", "config_no_heads.safetensors", "num_heads"),
    ("config_endless.safetensors out.ckpt", "config_endless.safetensors", "num_res_blocks"),
    ("config_gigantic.safetensors out.ckpt", "config_gigantic.safetensors", "model_channels"),
    ("config_no_levels.safetensors out.ckpt", "config_no_levels.safetensors", "channel_mult"),
    ("config_no_steps.safetensors out.ckpt", "config_no_steps.safetensors", "num_timesteps"),
    ("config_text_in_numbers.safetensors out.ckpt", "config_text_in_numbers.safetensors", "image_size"),
    ("base.ckpt base.safetensors", "base.safetensors exists already", "force=true"),
    ("base.ckpt base.ckpt", "base.ckpt is the input itself", "another name"),
    ("base.ckpt link.ckpt force=true", "link.ckpt is the input itself"),
    ("base.ckpt control.safetensors control=control.safetensors force=true", "control.safetensors is the input itself"),
    ("base.ckpt folder.ckpt", "folder.ckpt is a folder; give a file name"),
    ("base.ckpt out", "out: a checkpoint's name must end in one of"),
    ("base.ckpt no/out.ckpt", "no is not an existing folder; create it first (mkdir -p no)"),
    ("base.ckpt a_file/out.ckpt", "a_file is not an existing folder"),
    ("base.ckpt /proc/out.ckpt", "/proc"),
    ("base.ckpt out.ckpt config=none.yaml", "none.yaml: no such config file"),
    ("base.ckpt out.ckpt config=folder.yaml", "folder.yaml: no such config file"),
    ("base.ckpt out.ckpt config=binary.yaml", "binary.yaml: cannot be read as YAML"),
    ("base.ckpt out.ckpt config=tag.yaml", "tag.yaml: cannot be read as YAML"),
    ("base.ckpt out.ckpt config=nested.yaml", "nested.yaml: unet: got 3, expected settings"),
    ("base.ckpt out.ckpt control=none.pth", "none.pth: no such file"),
    ("base.ckpt out.ckpt control=evil.ckpt", "evil.ckpt wants to run posix.system"),
    ("base.ckpt out.ckpt control=vae.safetensors", "vae.safetensors: it has no control network", "an autoencoder"),
    ("base.ckpt out.ckpt control=", "'control=' not understood; expected control=FILE"),
    ("base.ckpt out.ckpt seed=-1", "'seed=-1' not understood", "seed=NUMBER"),
    ("base.ckpt out.ckpt seed=99999999999999999999", "not understood"),
    ("base.ckpt out.ckpt force=perhaps", "'force=perhaps' not understood"),
    ("base.ckpt out.ckpt --force", "'--force' not understood; expected"),
    ("base.ckpt force=true", "'force=true' where a file name belongs"),
]  # fmt: skip

SAMPLE = [
    ("skull=none.png", "none.png does not exist; give a picture"),
    (f"skull={LONG}.png", "too long"),
    ("skull=a\0b.png", "does not exist"),
    ("skull=pipe.png", "pipe.png: is no regular file"),
    ("skull=empty.png", "empty.png: the file is empty (0 bytes); copy or export it again"),
    ("skull=cut.png", "cut.png: cannot be read as a picture", "expected a whole PNG"),
    ("skull=text.png", "text.png: cannot be read as a picture"),
    ("skull=scan.dcm", "scan.dcm: cannot be read as a picture"),
    ("skull=bomb.png", "bomb.png: too large", "scale it down first"),
    ("skull=float.tif", "float.tif: holds floating-point values", "export it as"),
    ("skull=no_pictures", "no_pictures holds no picture; pictures end in"),
    ("skull=pairs", "pairs holds no picture; did you mean pairs/pairedCS/skull"),
    ("skull=whole.safetensors", "whole.safetensors: cannot be read as a picture"),
    *((f"skull=pairs/split_data/{name}.json", f"{name}.json: 1 problem", *told) for name, *told in (
        ("no_json", "line 1: is not valid JSON", "one JSON object a line"),
        ("no_lines", ""),
        ("lost", "no file", "lost.png", "mend the name"),
        ("absolute", "'/etc/hostname'", "within the pictures' folder"),
        ("outside", "'../../secret.png'", "within the pictures' folder"),
        ("ancient", "age: got 900", "expected"),
        ("infinite", "age: got inf", "expected"),
        ("digits", "line 1"),
        ("nested", "line 1"),
        ("twice", "age"),
        ("array", "write"),
        ("sex", "gender: got '?'", "expected"),
        ("utf16", "save it as UTF-8"),
        ("binary", "UTF-8"),
    )),
    ("skull=skull.png weights=none.safetensors", "none.safetensors: no such file"),
    ("skull=skull.png weights=folder.ckpt", "folder.ckpt is a folder"),
    ("skull=skull.png weights=skull.png", "skull.png is a file starting with"),
    ("skull=skull.png weights=evil.ckpt", "evil.ckpt wants to run posix.system"),
    ("skull=skull.png weights=cut.safetensors", "cut.safetensors", "copy it again"),
    ("skull=skull.png weights=base.safetensors", "base.safetensors holds no control_model", "tool_add_control.py base"),
    ("skull=skull.png weights=control.safetensors", "a control network alone", "BASE OUT control=control.safetensors"),
    ("skull=skull.png weights=sdxl.safetensors", "sdxl.safetensors: this is Stable Diffusion XL"),
    ("skull=skull.png weights=resumable.safetensors", "this is a training checkpoint of this program"),
    ("skull=skull.png weights=lora.safetensors", "this is a LoRA"),
    ("skull=skull.png weights=config_no_groups.safetensors", "config_no_groups.safetensors", "norm_groups"),
    ("skull=skull.png weights=config_gigantic.safetensors", "config_gigantic.safetensors"),
    ("skull=skull.png weights=bad_advice.safetensors", "weights: their metadata entry 'sampling' is no JSON"),
    ("skull=skull.png model=none.yaml", "none.yaml: no such config file"),
    ("skull=skull.png model=broken.yaml", "broken.yaml: cannot be read as YAML"),
    ("skull=skull.png model=list.yaml", "list.yaml: holds a list, expected settings"),
    ("list.yaml", "list.yaml: holds a list, expected settings"),
    ("tag.yaml", "tag.yaml: cannot be read as YAML"),
    ("reference.yaml", "reference.yaml"),
    ("unknown.yaml", "unknown.yaml: trian: unknown setting"),
    ("binary.yaml", "binary.yaml: cannot be read as YAML"),
    ("list.yaml broken.yaml", "broken.yaml: a second config file"),
    ("skull.png", "skull.png: not understood", "as in skull=skull.png"),
    ("--skull skull.png", "--skull: settings are written without dashes"),
    ("skul=skull.png", "skul: unknown setting; did you mean skull?"),
    ("skull=skull.png sampling=3", "sampling"),
    ("skull=skull.png sampling.control_scales=[1,", "sampling.control_scales: '[1,' cannot be read"),
    ("skull=skull.png sampling.control_scales=[]", "sampling.control_scales: got an empty list; give"),
    ("skull=skull.png sampling.control_scales=[.nan]", "sampling.control_scales", "nan"),
    ("skull=skull.png sampling.guidance_scale=.nan", "sampling.guidance_scale: got nan"),
    ("skull=skull.png sampling.guidance_scale=.inf", "sampling.guidance_scale: got inf"),
    ("skull=skull.png sampling.eta=.nan", "sampling.eta: got nan"),
    ("skull=skull.png sampling.steps=1000", "sampling.steps: got 1000, expected 1..999"),
    ("skull=skull.png sampling.steps=2.5", "sampling.steps", "2.5"),
    ("skull=skull.png sex=F age=.nan body_mass=4", "age: got nan"),
    ("skull=skull.png sex=F age=-5 body_mass=4", "age: got -5"),
    ("skull=skull.png sex=F age=1e400 body_mass=4", "age"),
    ("skull=skull.png sex=X age=40 body_mass=4", "sex: got 'X'"),
    ("skull=skull.png sex=F age=40 body_mass=9", "body_mass: got 9"),
    ("skull=skull.png sex=F age=40 body_mass={}", "body_mass: got {}"),
    ("skull=skull.png sex=F", "age, body_mass missing", "Add"),
    ("skull=skull.png images_dir=pairs", "images_dir: goes with a manifest"),
    ("skull=pairs/split_data/test.json images_dir=a_file", "a_file is no folder"),
    ("skull=skull.png limit=0", "limit: got 0"),
    ("skull=skull.png seed=-1", "seed: got -1"),
    ("skull=skull.png seed=99999999999999999999", "seed"),
    ("skull=skull.png num_samples=0", "num_samples: got 0"),
    ("skull=skull.png batch_size=-3", "batch_size: got -3"),
    ("skull=skull.png device=tpu", "device: got 'tpu'", "expected auto"),
    ("skull=skull.png device=", "device"),
    ("skull=skull.png precision=half", "precision: got 'half'"),
    ("skull=skull.png out=a_file", "a_file is a file; give a folder"),
    ("skull=skull.png out=a_file/deep", "a_file"),
    ("skull=skull.png out=pairs", "pairs exists and is not empty", "out=FOLDER"),
    ("skull=skull.png out=pairs overwrite=true", "pairs holds no record.json"),
    (f"skull=skull.png out={NOWHERE}", NOWHERE),
    (f"skull=skull.png out={LONG}", "too long"),
]  # fmt: skip

TRAIN = [
    ("none.yaml", "none.yaml: no such config file"),
    (f"{LONG}.yaml", "too long"),
    ("list.yaml", "list.yaml: holds a list"),
    ("tag.yaml", "tag.yaml: cannot be read as YAML"),
    ("folder.yaml", "folder.yaml: no such config file"),
    ("unknown.yaml", "trian: unknown setting; did you mean"),
    ("skull.png", "skull.png: not understood"),
    ("demo.yaml stage=nothing", "stage: got 'nothing', expected one of"),
    ("demo.yaml name=", "name: got ''"),
    ("demo.yaml train.max_steps=0", "train.max_steps: got 0, expected a positive number"),
    ("demo.yaml train.max_steps=many", "train.max_steps", "many"),
    ("demo.yaml optim.lr=.nan", "optim.lr: got nan"),
    ("demo.yaml optim.lr=.inf", "optim.lr: got inf"),
    ("demo.yaml optim.clip_norm=-1", "optim.clip_norm: got -1"),
    ("demo.yaml train.seed=-1", "train.seed: got -1"),
    ("demo.yaml data.num_workers=-1", "data.num_workers: got -1"),
    ("demo.yaml train.precision=fp8", "train.precision: got 'fp8'"),
    ("demo.yaml train.accelerator=abacus", "train.accelerator", "abacus"),
    ("demo.yaml train.accelerator=gpu train.devices=64", "train."),
    ("demo.yaml init=none.safetensors", "init: none.safetensors not found"),
    ("demo.yaml init=evil.ckpt", "evil.ckpt wants to run posix.system"),
    ("demo.yaml init=base.safetensors", "base.safetensors holds no control_model.*", "tool_add_control.py base"),
    ("demo.yaml init=control.safetensors", "control.safetensors", "control=control.safetensors"),
    ("demo.yaml init=sdxl.safetensors", "sdxl.safetensors", "Stable Diffusion XL"),
    ("demo.yaml init=unknown_make.safetensors", "does not say its architecture", "models/cldm_v15.yaml"),
    ("demo.yaml init=config_no_groups.safetensors", "config_no_groups.safetensors", "norm_groups"),
    ("demo.yaml data.root=nowhere", "train.json not found"),
    ("demo.yaml data.train=nested.json", "nested.json: 1 problem", "line 1"),
    ("demo.yaml data.train=lost.json", "lost.json: 1 problem", "lost.png"),
    ("demo.yaml data.valid=train.json", "is in train as well", "keep all pictures of a person in one list"),
    ("demo.yaml data.skull_folder=heads", "problems", "heads"),
    ("demo.yaml data.root=cut_pairs", "train_2.png: cannot be read as a picture"),
    ("demo.yaml sampling.control_scales=[1,2]", "control_scales: got 2 numbers"),
    ("demo.yaml name=broken", "runs/broken/checkpoints/last.ckpt", "name=NEW"),
    ("demo.yaml name=evil", "runs/evil/checkpoints/last.ckpt", "name=NEW"),
    ("demo.yaml name=other", "last.ckpt is no checkpoint of this program; name=NEW starts another run"),
    ("demo.yaml name=list", "last.ckpt is no checkpoint of this program; name=NEW"),
    ("demo.yaml out=a_file", "a_file"),
    (f"demo.yaml out={NOWHERE}", NOWHERE),
]  # fmt: skip

COHORT = [
    ("", "out"),
    ("new seeds=3", "seeds"),
    ("new num_subjects=0", "num_subjects=0: expected"),
    ("new num_subjects=ten", "num_subjects", "ten"),
    ("new num_subjects=3", "leaves nobody to train on: lower"),
    ("new half_field=100", "half_field=100.0: expected 135"),
    ("new half_field=nan", "half_field=nan"),
    ("new seed", "'seed': expected key=value"),
    ("new --seed=3", "--seed=3"),
    ("a_file", "a_file is not empty and has no cohort.json: choose a new folder"),
    ("pairs", "pairs is not empty and has no cohort.json"),
    ("cohort_broken", "cohort_broken/cohort.json", "choose"),
    ("cohort_list", "cohort_list/cohort.json", "choose"),
    ("cohort_other", "cohort_other holds another cohort", "choose another folder or delete it"),
    ("a_file/deep", "a_file"),
    (NOWHERE, NOWHERE),
]
EXCERPT = [
    ("", "cohort, out"),
    ("nowhere new", "nowhere: no split_data/test.json in it; finish it with"),
    ("a_file new", "a_file"),
    ("made_broken new", "made_broken/split_data/train.json", "line 1"),
    ("made_fieldless new", "made_fieldless/split_data/train.json", "line 1"),
    ("made_unaged new", "made_unaged/split_data/train.json", "line 1", "age"),
    ("made_lost new", "landmarks/lost.json"),
    ("made_outside new", "../../../skull.png"),
    ("pairs a_file", ""),
    ("pairs pairs", ""),
    (f"pairs {NOWHERE}", ""),
]
EVALUATE = [
    ("data.root=nowhere", "nowhere/split_data/test.json"),
    ("data.root=pairs split=lost", "lost.png"),
    ("data.root=pairs split=nested", "nested.json: 1 problem"),
    ("data.root=pairs num=-1", "num: got -1"),
    ("data.root=pairs samples=0", "samples: got 0"),
    ("data.root=pairs picture_distance=far", "picture_distance: got 'far', expected one of"),
    ("data.root=pairs methods=[model]", "methods: model cannot run", "weights=FILE"),
    ("data.root=pairs methods=model", "methods"),
    ("data.root=pairs models={'a/b':'none'}", "models: 'a/b' cannot be a name"),
    ("data.root=pairs models={'plain':'none.ckpt'}", "none.ckpt: no such file"),
    ("data.root=pairs weights=evil.ckpt", "evil.ckpt wants to run"),
    ("data.root=pairs weights=base.safetensors", "tool_add_control.py base.safetensors OUT"),
    ("data.root=pairs faces=nowhere", "faces: nowhere is no folder"),
    ("data.root=pairs faces=a_file", "faces: a_file is no folder"),
    ("data.root=pairs faces=folder.ckpt", "lacks", "mapping=CSV"),
    ("data.root=pairs faces=folder.ckpt mapping=none.csv", "none.csv does not exist"),
    ("data.root=pairs faces=folder.ckpt mapping=skull.png", "cannot be read as UTF-8 CSV"),
    ("data.root=pairs mapping=none.csv", "goes with faces=FOLDER"),
    ("data.root=pairs data.trained_on=none.json", "none.json: 1 problem"),
    ("data.root=pairs out=a_file", "a_file"),
    (f"data.root=pairs out={NOWHERE}", NOWHERE),
    ("data.root=pairs recognisers=[]", "recognisers: got none"),
    ("data.root=pairs onnx=none.onnx", "onnx: none.onnx is no file"),
    ("data.root=pairs onnx=skull.png", "onnx: skull.png cannot be read as a network"),
    ("data.root=pairs kid=none.pth", "none.pth: no such file"),
    ("data.root=pairs kid=vae.safetensors", "no state dict of torchvision's inception_v3 or resnet50"),
    ("data.root=pairs lpips=evil.ckpt", "evil.ckpt wants to run"),
    ("data.root=pairs lpips=vae.safetensors", "vae.safetensors"),
    ("weihgts=3", "weihgts: unknown setting; did you mean weights?"),
    ("none.yaml", "none.yaml: no such config file"),
]

FOLDERS = [
    ("", "expected export or import"),
    ("exprot a b", "got 'exprot', expected export or import"),
    ("export base.ckpt", "expected IN and OUT, got 1"),
    ("export none.safetensors new", "none.safetensors: no such file"),
    ("export evil.ckpt new", "evil.ckpt wants to run posix.system"),
    ("export whole.safetensors pairs", "pairs exists and is not empty", "another name"),
    ("export whole.safetensors a_file", "a_file is a file"),
    ("export whole.safetensors new config=none.yaml", "none.yaml: no such config file"),
    ("export whole.safetensors new colour=3", "'colour=3' not understood"),
    ("import nowhere new.ckpt", "nowhere does not exist"),
    ("import pairs new.ckpt", "pairs: it has no unet/config.json; expected a folder with"),
    ("import pairs new.bin", "new.bin: a checkpoint's name must end in one of"),
    ("import pairs base.ckpt", "base.ckpt exists already", "force=true"),
    ("import pairs new.ckpt variant=../x", "'variant=../x' not understood"),
]
PACK = [
    ("", "expected the folder of a data set and the folder for the pack"),
    ("nowhere new", "nowhere: no split_data/*.json in it"),
    ("pairs pairs", "pairs: is the folder to be packed; choose another"),
    ("pairs new shard_mb=0", "shard_mb=0: expected 1 to 4096"),
    ("pairs new colour=3", "'colour' not in", "keys: shard_mb"),
    ("pairs new", "absolute.json: 1 problem", "within the pictures' folder"),
]

CASES = [
    pytest.param(name, case[0], case[1:], id=f"{name}: {case[0][:60]}")
    for name, cases in (
        ("tool", TOOL), ("sample", SAMPLE), ("train", TRAIN), ("cohort", COHORT), ("excerpt", EXCERPT),
        ("evaluate", EVALUATE), ("folders", FOLDERS), ("pack", PACK),
    )
    for case in cases
]  # fmt: skip


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
    found = {}
    for folder, folders, files in os.walk(root):
        for name in [*folders, *files]:
            status = os.lstat(os.path.join(folder, name))
            size = 0 if name in folders else status.st_size
            found[os.path.relpath(os.path.join(folder, name), root)] = (
                size,
                status.st_mtime_ns,
                status.st_ino,
            )
    return found


def check_message(err: str, begins: str, told: tuple[str, ...]) -> None:
    lines = err.splitlines()
    assert err.startswith(begins), err
    assert "Traceback" not in err
    assert len(err) < 12_000
    assert all(line.startswith("  ") for line in lines[1:]), err  # one message; a list goes on indented
    for words in told:
        assert words in err, err


def test_there_are_enough_of_them() -> None:
    assert len(CASES) > 200
    assert {case.values[0] for case in CASES} == set(ENTRY)


@pytest.mark.parametrize(("name", "line", "told"), CASES)
def test_refused_in_one_message_with_nothing_left_behind(
    workshop: Path, capsys: pytest.CaptureFixture[str], name: str, line: str, told: tuple[str, ...]
) -> None:
    main, begins = ENTRY[name]
    arguments = line.split(" ") if line else []
    if name == "sample" and "weights=" not in line:
        arguments.append("weights=whole.safetensors")
    before = listing(workshop)
    capsys.readouterr()
    assert main(arguments) == 2
    check_message(capsys.readouterr().err, begins, told)
    assert listing(workshop) == before
    assert not (workshop / MARKER).exists()


def test_no_space_is_seen_before_the_writing(
    workshop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(workshop)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    before = listing(workshop)
    assert tool_add_control.main(["base.ckpt", "out.ckpt"]) == 2
    check_message(capsys.readouterr().err, "tool_add_control.py: ", ("out.ckpt needs", "make room there"))
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
    check_message(
        capsys.readouterr().err, "tool_add_control.py: ", (f"{target} could not be written", "disk full")
    )
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
