"""Tries of the programs in the root and of the lists: command lines, configs, checkpoints, pictures, records, disks."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load, save

from benchmarks.fuzz.inputs import Maker, Sound, broken_json, damaged
from benchmarks.fuzz.sandbox import OUTSIDE, ROOT, Expectation, Try

PERSON = ("sex=male", "age=40", "ethnicity=Asian", "body_mass=4")
DRAW = (
    "weights=in/tiny.safetensors",
    "landmarks=none",
    "num_samples=1",
    "out=out",
    "device=cpu",
    "precision=fp32",
)
SAMPLE_KEYS = (
    "skull limit sex age ethnicity body_mass num_samples seed landmarks landmark_weights texture missing weights model "
    "device precision devices batch_size max_sheets images_dir resume overwrite sampling sampling.steps sampling.eta "
    "sampling.sampler sampling.control_scales sampling.guidance_scale spgd.mode spgd.scale spgd.target nonsense"
)
OTHER_KEYS = {
    "train": "stage name out init train.batch_size train.max_steps optim.lr data.root train.precision model",
    "evaluate": "weights faces mapping split num_probes batch_size data.root train_limit methods out",
    "tool_add_control": "branches num_landmarks control config seed overwrite",
    "data.cohort": "num_subjects size half_field yaw variants variant_ages valid_subjects",
    "data.ct": "step bone_hu pose series biometrics max_gib size",
    "data.split": "valid test by stratify seed images_dir",
    "data.check": "ignore out tolerance workers images_dir",
}
STARTS = {  # what stands before the keys
    "train": ["data.root=in"], "evaluate": ["data.root=in"], "data.cohort": ["out"], "data.ct": ["in/s.png", "out"],
    "tool_add_control": ["in/tiny.safetensors", "new.safetensors"], "data.split": ["in/list.json", "out"],
    "data.check": ["in/list.json"],
}  # fmt: skip
# Texts that stand where a value belongs.
TEXTS = (
    "", " ", "???", "${age}", "${oc.env:HOME}", "[", "[" * 3000, "{a: 1}", "[1, 2]", "&a [*a]", "1:30", "1_000", "0o17",
    "1e999", "nan", "-.inf", "-1", "0", "1000000000", "1e9", "99999999999999999999", "null", "~", "true", "no",
    "forty", "caucasion", "../..", "/", ".", "x" * 5000, "\udcff", "\N{CJK UNIFIED IDEOGRAPH-9AA8}", "a\nb", "a b",
    "'", "!!python/object:os.system ls", "=", "--help=", "%s{}", "0.5", "[1e9]", "1048576", "/dev/zero",
)  # fmt: skip


def sample_line(rng: random.Random, sound: Sound) -> Try:
    """A value of one of sample.py's keys."""
    key = rng.choice(SAMPLE_KEYS.split())
    value = rng.choice(TEXTS)
    bad = value in ("???", "[" * 3000, "${age}") or (
        key in ("limit", "batch_size") and value in ("1:30", "nan", "0")
    )
    line = [*DRAW, *PERSON, "skull=in/s.png", f"{key}={value}"]
    return Try("command line", "sample", line, sound.files, "refused" if bad else "either")


def other_line(rng: random.Random, sound: Sound) -> Try:
    """A value of one of another program's keys, or too few or too many arguments."""
    value = rng.choice(TEXTS)
    program = rng.choice(list(STARTS))
    start = STARTS[program]
    key = rng.choice(OTHER_KEYS[program].split())
    line = [*start, f"{key}={value}"]
    if rng.random() < 0.2:
        line = rng.choice(
            ([], start[:1], [*line, "more", "and=more"], [value], ["--help"], [*start, f"{key}"])
        )
    numbers = (
        "train.batch_size",
        "train.max_steps",
        "num_subjects",
        "size",
        "seed",
        "num_landmarks",
        "split",
    )
    bad = value == "???" and key in numbers and line[-1:] == [f"{key}=???"]
    if program == "data.cohort" and not bad and key != "num_subjects" and "--help" not in line:
        line = [*line, "num_subjects=-3"]  # a sound line would draw heads
        bad = True
    files = sound.files | {"in/list.json": json.dumps(sound.line) + "\n"}
    codes = (0, 1, 2) if program == "data.check" else (0, 2)
    return Try("command line", program, line, files, "refused" if bad else "either", codes)


def config_file(rng: random.Random, sound: Sound) -> Try:
    """A damaged YAML config."""
    good = "stage: control\nname: x\ntrain: {batch_size: 1}\ndata: {root: in}\ninit: in/tiny.safetensors\n"
    bad = (
        "a: &a [*a]\n", "x: " + "[" * 5000, "name: " + "${a" * 500, "? [1]\n: 2\n", "name: !!python/name:os.system x\n",
        "a: &a {b: 1}\nc: *a\n", "\x00", "- 1\n", "name: x\nname: y\n", "\t- x", "--- a\n--- b\n", "train: 3\n",
        "x: &x [1,1,1,1,1,1,1,1,1]\n" + "".join(f"x{i}: &x{i} [*x,*x,*x,*x,*x,*x,*x,*x]\n" for i in range(3)),
    )  # fmt: skip
    text = damaged(rng, good.encode(), 90) if rng.random() < 0.5 else rng.choice(bad).encode()
    program = rng.choice(("train", "sample"))
    extra = ["out=out"] if program == "train" else [*DRAW, "skull=in/s.png"]
    return Try(
        "config file",
        program,
        ["in/c.yaml", *extra],
        sound.files | {"in/c.yaml": text},
        codes=(0, 1, 2),
        may_write=("out/",),
    )


def checkpoint_metadata(rng: random.Random, sound: Sound) -> Try:
    """Weights whose metadata have the wrong shape, or sizes that would fill the memory."""
    metadata = dict(sound.metadata)
    key = rng.choice([*metadata, "conditions", "untrained_branches"])
    model = json.loads(metadata["config"]) if "config" in metadata else None
    if model is not None and rng.random() < 0.3:
        place, value = rng.choice((
            ("image_size", 1_048_576), ("image_size", 0), ("image_size", -64), ("image_size", 1e9),
            ("landmarks", 1_500_000), ("channels", 10**7), ("layers", 10**6),
        ))  # fmt: skip
        if place == "landmarks":
            model["control"]["landmarks"]["num_points"] = value
        elif place == "channels":
            model["unet"]["model_channels"] = value
        elif place == "layers":
            model["cond_stage"]["layers"] = value
        else:
            model["image_size"] = value
        metadata["config"] = json.dumps(model)
    else:
        try:
            metadata[key] = broken_json(rng, json.loads(metadata.get(key, "{}"))).decode("utf-8", "replace")
        except ValueError:
            metadata[key] = rng.choice(TEXTS).encode("utf-8", "replace").decode()
    files = {"in/tiny.safetensors": sound.weights(metadata), "in/s.png": sound.skull}
    return _with_weights(rng, "checkpoint metadata", files)


def _with_weights(rng: random.Random, kind: str, files: Mapping[str, Any], expected: Any = "either") -> Try:
    name = next(name for name in files if "tiny" in name)
    if rng.random() < 0.5:
        return Try(kind, "tool_add_control", [name, "new.safetensors", "replace=true"], files, expected)
    line = [f"weights={name}" if one.startswith("weights=") else one for one in DRAW]
    return Try(kind, "sample", [*line, *PERSON, "skull=in/s.png"], files, expected)


class _Bomb:
    """Unpickles to a huge array, if somebody lets it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (7_000_000_000,)


class _Call:
    """Writes a file when it is unpickled, if somebody lets it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


def checkpoint_file(rng: random.Random, sound: Sound) -> Try:
    """Weights that are damaged, of another format than their name says, or a pickle that wants more than tensors."""
    tensors = dict(sound.tensors)
    what = rng.randrange(8)
    name, expected = "in/tiny.safetensors", "either"
    if what < 3:
        content = damaged(rng, sound.weights(), rng.choice((16, 4000)))
        if what == 2:
            content = struct.pack("<Q", rng.choice((2**63, 2**40, 10**8, 1, 0))) + content[8:]
    elif what == 3:  # not of the control network, which replace=true leaves out
        floating = [key for key in tensors if tensors[key].is_floating_point()]
        key = rng.choice([key for key in floating if not key.startswith("control_model.")])
        tensors[key] = torch.full_like(tensors[key], rng.choice((float("nan"), float("inf"))))
        content, expected = save(tensors, sound.metadata), "refused"
    else:
        document: Any = {"state_dict": tensors}
        if what == 4:
            document, expected = (
                rng.choice((_Bomb(), {"state_dict": _Bomb()}, _Call(), {"a": _Call()})),
                "refused",
            )
        elif what == 5:
            document = rng.choice(
                (tensors, {"state_dict": None}, {"state_dict": {}}, [], 3, {"state_dict": list(tensors)})
            )
        buffer = io.BytesIO()
        torch.save(document, buffer, pickle_module=pickle)
        content = buffer.getvalue()
        if what == 6:
            content = damaged(rng, content, len(content))
        if what == 7:
            content = rng.choice(
                (
                    pickle.dumps(document, 0) if what == 4 else b"\x80\x02]q\x00.",
                    b"",
                    b"<html>",
                    content[:999],
                )
            )
        name = rng.choice(("in/tiny.ckpt", "in/tiny.pt", "in/tiny.safetensors"))
    return _with_weights(rng, "checkpoint", {name: content, "in/s.png": sound.skull}, expected)


def _endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def pair_list(rng: random.Random, sound: Sound) -> Try:
    """A damaged list of pairs."""
    line = dict(sound.line, source="s.png", target="s.png")
    lines = [json.dumps(line)]
    bad = (
        broken_json(rng, line), broken_json(rng, line), json.dumps(line | {"source": "../../" + OUTSIDE}).encode(),
        json.dumps(line | {"age": rng.choice(("forty", float("nan"), -1, 10**9, [], "1:30"))}).encode(),
        json.dumps(line | {f"k{i}": i for i in range(rng.choice((50, 100_000)))}).encode(),
        json.dumps(line | {"landmarks": rng.choice(("none.json", "/dev/zero", "../x.json", ""))}).encode(),
        json.dumps(line | {rng.choice(("source", "target")): rng.choice(("../PIPE", "/dev/zero"))}).encode(),
        json.dumps(line | {"subject": rng.choice(("\udcff", "\x00", "a/b", "\u202e" * 9, "", 3))}).encode(),
        b'{"source": "s.png", "source": "t.png"}', b"\x00" * 50, b"\xff\xfe{\x00",
    )  # fmt: skip
    text = b"\n".join([rng.choice(bad), *(one.encode() for one in lines * rng.randrange(2))])
    content: Any = text if rng.random() < 0.9 else rng.choice((os.mkfifo, _endless))
    files = sound.files | {
        "split_data/l.json": content,
        "pairedCS/PIPE": os.mkfifo,
        "pairedCS/skull/s.png": sound.skull,
        "pairedCS/craniofacial/s.png": sound.face,
    }
    program, line_ = rng.choice((
        ("sample", [*DRAW, "skull=split_data/l.json"]), ("data.check", ["split_data/l.json"]),
        ("data.split", ["split_data/l.json", "out"]), ("data.pack", [".", "out"]),
        ("evaluate", ["weights=in/tiny.safetensors", "data.root=.", "data.test=split_data/l.json", "out=out"]),
    ))  # fmt: skip
    codes = (0, 1, 2) if program == "data.check" else (0, 2)
    return Try(
        "list", program, line_, files, codes=codes, may_write=("out/",) if program == "evaluate" else ()
    )


def csv_list(rng: random.Random, sound: Sound) -> Try:
    """A damaged table: biometrics of patients, the mapping of faces, a list of skulls."""
    rows = [
        ["id", "sex", "age", "ethnicity", "body_mass"],
        ["p1", "M", "40", "Asian", "4"],
        ["p2", "F", "31", "Asian", "3"],
    ]
    place = rng.choice(("biometrics", "mapping", "skulls"))
    if place == "mapping":
        rows = [["file", "subject"], ["a.png", "s1"]]
    if place == "skulls":
        rows = [["skull", "sex", "age", "ethnicity", "body_mass"], ["in/s.png", "M", "40", "Asian", "4"]]
    row, column = rng.randrange(len(rows)), rng.randrange(2)
    rows[row][column] = rng.choice(
        (*TEXTS[:30], "x" * 200_000, '"', "../../" + OUTSIDE, "1e9", "a;b", "\x00", "-")
    )
    text = rng.choice((",", ";", "\t")).join(rows[0])
    for cells in rows[1:]:
        text += rng.choice(("\n", "\r\n", "\n\n")) + rng.choice((",", ";", "\t")).join(cells)
    content: Any = text.encode("utf-8", "surrogateescape")
    content = rng.choice(
        (content, b"\xef\xbb\xbf" + content, damaged(rng, content), text.encode("utf-16", "replace"), b"")
    )
    if rng.random() < 0.05:
        content = rng.choice((os.mkfifo, _endless))
    files = sound.files | {
        "t.csv": content,
        "patients/p1/a.dcm": b"x",
        "patients/p2/a.dcm": b"x",
        "faces/a.png": sound.face,
    }
    line = {
        "biometrics": ("data.ct", ["patients", "out", "biometrics=t.csv"]),
        "mapping": ("evaluate", ["faces=faces", "mapping=t.csv", "data.root=in", "out=out"]),
        "skulls": ("sample", [*DRAW, "skull=t.csv"]),
    }[place]
    return Try("table", *line, files, codes=(0, 2, 3), may_write=())


def picture(rng: random.Random, sound: Sound) -> Try:
    """A picture that is damaged, of another kind than its name says, or of an odd size or depth."""
    what = rng.randrange(6)
    name = rng.choice(("p.png", "p.jpg", "p.tif", "p.bmp", "p.PNG"))
    if what < 2:
        content = damaged(rng, sound.skull, rng.choice((60, 10_000)))
    elif what == 2:
        with Image.open(io.BytesIO(sound.skull)) as image:
            buffer = io.BytesIO()
            image.convert(rng.choice(("L", "RGB"))).save(buffer, rng.choice(("JPEG", "TIFF", "BMP", "GIF")))
            content = buffer.getvalue()
            content = content if rng.random() < 0.3 else damaged(rng, content)
    elif what == 3:
        side = rng.choice(((1, 1), (1, 5000), (3, 2)))
        values = np.random.default_rng(rng.randrange(99)).normal(size=side) * rng.choice((1, 1e38, 0))
        buffer = io.BytesIO()
        Image.fromarray(values.astype(rng.choice((np.float32, np.int32, np.uint8)))).save(buffer, "TIFF")
        content = buffer.getvalue()
    elif what == 4:  # a PNG that claims to be huge
        size = struct.pack(">II", *rng.choice(((2**31 - 1, 2**31 - 1), (60_000, 60_000), (0, 4))))
        content = sound.skull[:16] + size + sound.skull[24:]
    else:
        content = rng.choice(
            (b"", b"%PDF-1.7", b"<svg/>", b"\x00" * 132 + b"DICM", b"GIF89a", sound.weights()[:5000])
        )
    files = sound.files | {f"in/{name}": bytes(content)}
    return Try("picture", "sample", [*DRAW, *PERSON, f"skull=in/{name}"], files)


def odd_name(rng: random.Random, sound: Sound) -> Try:
    """A sound picture whose file name is odd: it is drawn."""
    stem = rng.choice((
        "a b", "\udcff\udcfe", "\u9aa8\u5934", "-x", "a=b", "%d", "x" * 200, "e\u0301", "\u202ex", "'q'", "{a}",
    ))  # fmt: skip
    name = f"{stem}.png"
    folder = rng.random() < 0.5
    files = sound.files | {f"d/{name}": sound.skull}
    skull = "d" if folder else f"d/{name}"
    return Try("file name", "sample", [*DRAW, *PERSON, f"skull={skull}"], files, "accepted")


def damaged_record(rng: random.Random, sound: Sound) -> Try:
    """A finished or broken-off run whose record is damaged, continued or replaced."""
    files = {f"out/{name}": content for name, content in sound.result.items()}
    record = json.loads(sound.result["record.json"])
    files["out/record.json"] = broken_json(rng, record | {"finished": False})
    if rng.random() < 0.3:
        face = rng.choice([name for name in files if name.endswith(".png")])
        files[face] = damaged(rng, files[face])
    key = rng.choice(("resume=true", "overwrite=true"))
    line = [*DRAW, *PERSON, "skull=in/s.png", key]
    return Try("record", "sample", line, sound.files | files, may_write=("out/",), replaced="out/")


def settings_of_folder(rng: random.Random, sound: Sound) -> Try:
    """A folder whose own file of settings is damaged: of a cohort, or of a batch of scans."""
    name, program, line = rng.choice((
        ("cohort.json", "data.cohort", ["out", "num_subjects=3"]),
        ("ct.json", "data.ct", ["patients", "out", "biometrics=t.csv"]),
    ))  # fmt: skip
    files: dict[str, Any] = {
        f"out/{name}": broken_json(rng, {"format": 99, "seed": 1}),
        "patients/p1/a.dcm": b"x",
    }
    files["t.csv"] = "id,sex,age,ethnicity,body_mass\np1,M,40,Asian,4\n"
    return Try("folder", program, line, files, "refused", may_write=("out.private/",), replaced="out/")


def landmark_file(rng: random.Random, sound: Sound) -> Try:
    """A damaged file of landmarks."""
    points = json.loads((ROOT / "data/pairedCS" / "landmarks/s00001.json").read_text(encoding="utf-8"))
    content = broken_json(rng, points)
    name = rng.choice(("in/l.json", "in/l.json", "in/l.txt", "in/l.npy", "in/l.npz"))
    if name.endswith("npz") and rng.random() < 0.5:
        buffer = io.BytesIO()
        np.savez(buffer, points=np.full((106, 2), rng.choice((np.nan, 1e30, 5.0))))
        content = damaged(rng, buffer.getvalue(), 300)
    line = ["landmarks=" + name if one.startswith("landmarks=") else one for one in DRAW]
    return Try("landmarks", "sample", [*line, *PERSON, "skull=in/s.png"], sound.files | {name: content})


def landmark_network(rng: random.Random, sound: Sound) -> Try:
    """A landmark network with NaN, of a size that would fill the memory, or with damaged metadata."""
    size = struct.unpack_from("<Q", sound.reader)[0]
    metadata, tensors = json.loads(sound.reader[8 : 8 + size])["__metadata__"], load(sound.reader)
    what = rng.randrange(4)
    expected: Expectation = "refused"
    if what < 2:
        key = rng.choice([key for key in tensors if tensors[key].is_floating_point()])
        tensors[key] = torch.full_like(tensors[key], rng.choice((float("nan"), float("inf"))))
    elif what == 2:
        size = rng.choice((1_500_000, 0, -1, 10**12))
        metadata["pipnet"] = json.dumps(json.loads(metadata["pipnet"]) | {"num_landmarks": size})
    else:
        key, expected = rng.choice(("pipnet", "meanface")), "either"
        metadata[key] = broken_json(rng, json.loads(metadata[key])).decode("utf-8", "replace")
    line = [one.replace("landmarks=none", "landmark_weights=in/p.safetensors") for one in DRAW]
    files = sound.files | {"in/p.safetensors": save(tensors, metadata)}
    return Try("landmark network", "sample", [*line, *PERSON, "skull=in/s.png"], files, expected)


def case_folder(rng: random.Random, sound: Sound) -> Try:
    """A finished case of which one file is damaged or missing: verified, reported, or drawn again."""
    files: dict[str, Any] = {f"out/{name}": content for name, content in sound.result.items()}
    name = rng.choice(("out/record.json", "out/log.jsonl", rng.choice(sorted(files))))
    before = files[name]
    if name == "out/log.jsonl":
        lines = before.splitlines()
        at = rng.randrange(len(lines))
        before, lines[at] = (
            json.dumps(json.loads(lines[at])).encode(),
            broken_json(rng, json.loads(lines[at])),
        )
        after, files[name] = lines[at], b"\n".join([*lines, b""])
    elif rng.random() < 0.1:
        after = files.pop(name) + b"gone"
    else:
        after = broken_json(rng, json.loads(before)) if name.endswith(".json") else damaged(rng, before)
        files[name] = after
    again = ["repeat=out", "out=again", "skull=in/s.png", "weights=in/tiny.safetensors", "device=cpu"]
    program, line, codes = rng.choice((
        ("muti_control.case.verify", ["out"], (0, 1, 2)), ("muti_control.case.report", ["out", "format=html"], (0, 2)),
        ("muti_control.case.report", ["out", "format=html", "zip=true"], (0, 2)), ("sample", again, (0, 1, 2)),
    ))  # fmt: skip
    seen = program.endswith("verify") and before != after and name != "out/local.json"
    kept = "out/" if program.endswith("report") else None
    return Try(
        "case folder",
        program,
        line,
        sound.files | files,
        "refused" if seen else "either",
        codes,
        replaced=kept,
    )


def skull_template(rng: random.Random, sound: Sound) -> Try:
    """A folder of which a list of skulls is to be made; names are odd, or there is no folder."""
    names = ("a", "b,c", 'd"', "e\nf", "\udcff", "=g", "\u202eh", ".i")
    files: dict[str, Any] = {f"d/{name}.png": sound.skull for name in names if rng.random() < 0.5}
    files |= {
        "d/x.png": sound.skull,
        "d/e/y.png": b"",
        "PIPE": os.mkfifo,
        "LOOP": lambda path: path.symlink_to("LOOP"),
    }
    place = rng.choice(
        ("d", "d", "d", "d/x.png", "none", "", "PIPE", "LOOP", "/dev/zero", "\udcff", "x" * 5000)
    )
    line = rng.choice(
        (["template", place], ["template", place], ["template"], [], [place], ["template", place, "x"])
    )
    stdout: Any = rng.choice(("file", "file", "full", "closed"))
    return Try("template", "data.manifest", line, files, stdout=stdout)


def stopped(rng: random.Random, sound: Sound) -> Try:
    """A program at work that gets SIGTERM."""
    trial = small_set(rng, sound)
    draw = [*(one for one in DRAW if "num" not in one), *PERSON, "skull=in/s.png", "num_samples=900"]
    people = "id,sex,age,ethnicity,body_mass\n" + "".join(f"p{k},M,40,Asian,4\n" for k in range(9))
    scans: dict[str, Any] = {"t.csv": people} | {f"patients/p{k}.nii": sound.head for k in range(9)}
    program, line, files = rng.choice((
        ("sample", draw, sound.files), ("data.cohort", ["out", "num_subjects=40"], {}),
        ("data.ct", ["patients", "out", "biometrics=t.csv"], scans),
        ("data.ct", ["patients/p1.nii", "out", "size=512"], scans), ("evaluate", list(trial.arguments), trial.files),
    ))  # fmt: skip
    stop = rng.choice((0, 0.1, 1, 3, 6)) * rng.random()
    return Try("SIGTERM", program, line, files, codes=(0, 2), may_write=("out",), stop=stop)


def small_set(rng: random.Random, sound: Sound) -> Try:
    """A data set of very few people, some of them with the same skull: it is evaluated, or refused."""
    files: dict[str, Any] = {f"pairedCS/craniofacial/{k}.png": sound.face for k in range(3)}
    files |= {f"pairedCS/skull/{k}.png": sound.skull for k in range(3)} | {
        f"faces/{k}.png": sound.face for k in range(3)
    }
    for split, people in (("train", rng.randrange(3)), ("valid", 1), ("test", rng.randint(1, 2))):
        lines = [
            sound.line | {"source": f"{k}.png", "target": f"{k}.png", "subject": f"{split}{k}"}
            for k in range(people)
        ]
        files[f"split_data/{split}.json"] = "".join(json.dumps(line) + "\n" for line in lines)
    line = ["faces=faces", "data.root=.", "out=out", "device=cpu", *rng.choice(([], ["train_limit=1"]))]
    return Try("small set", "evaluate", line, files, may_write=("out/",))


def full_disk(rng: random.Random, sound: Sound) -> Try:
    """No file may grow beyond a limit, as on a full disk."""
    earlier = rng.random() < 0.6
    limit = rng.choice((0, 1, 200, 2000, 6000, 20_000))
    files = sound.files | (
        {f"out/{name}": content for name, content in sound.result.items()} if earlier else {}
    )
    line = [*DRAW, *PERSON, "skull=in/s.png", "seed=5", *(["overwrite=true"] if earlier else [])]
    kept = "out/" if earlier else None
    return Try("full disk", "sample", line, files, disk=limit, may_write=("out/",), replaced=kept)


def bad_stdout(rng: random.Random, sound: Sound) -> Try:
    """Nobody reads what the program prints, or the device is full."""
    program, line = rng.choice((
        ("sample", ["--help"]), ("train", ["--help"]), ("evaluate", ["--help"]), ("data.ct", ["--help"]),
        ("sample", [*DRAW, *PERSON, "skull=in/s.png"]), ("data.check", ["split_data/l.json"]),
        ("data.split", ["split_data/l.json", "out"]), ("tool_add_control", ["--help"]),
        ("tool_add_control", ["in/tiny.safetensors", "new.safetensors", "replace=true"]),
    ))  # fmt: skip
    pair = dict(sound.line, source="s.png", target="s.png")
    files = sound.files | {
        "split_data/l.json": json.dumps(pair), "pairedCS/skull/s.png": sound.skull,
        "pairedCS/craniofacial/s.png": sound.face,
    }  # fmt: skip
    stdout: Any = rng.choice(("full", "closed"))
    return Try(
        "stdout",
        program,
        line,
        files,
        codes=(0, 1, 2),
        stdout=stdout,
        may_write=("out/", "results/", "new.safetensors"),
    )


MAKERS: tuple[Maker, ...] = (
    sample_line, other_line, config_file, checkpoint_metadata, checkpoint_file, pair_list, csv_list, picture, odd_name,
    damaged_record, settings_of_folder, landmark_file, landmark_network, case_folder, skull_template, small_set,
    full_disk, bad_stdout, stopped,
)  # fmt: skip
