"""JSON, YAML and names of files that are odd or damaged: refused in one line that names file and key, or read."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sample
import train
from cldm.branches import untrained_branches
from cldm.controlled import model_config_from_metadata
from data import pack
from data.landmarks import LandmarksError, read_landmarks
from data.manifest import ManifestError, read_manifest
from data.workers import claim
from ldm.checkpoint import read_state_dict, write_state_dict
from muti_control.case.verify import verify
from muti_control.evaluation.results.results import HashedFile
from muti_control.evaluation.results.results_file import to_json
from muti_control.networks.config import PipNetConfig
from muti_control.networks.pipnet.network import PipNet
from muti_control.networks.pipnet.reader import LandmarkReader
from muti_control.record import FORMAT, RECORD, OutputError, claim_folder
from muti_control.sampling.config import SampleConfig
from muti_control.sampling.prepare import recommended_sampling
from muti_control.training.checkpoints import BEST_INDEX, BestCheckpoints
from settings.messages import ConfigError
from settings.parsing import MAX_DEPTH, ContentError, parse_json
from settings.reading import from_json, parse_command_line

DEEP = {
    "levels": "[" * 100_000,
    "closed": '{"a":' * 3000 + "1" + "}" * 3000,
    "few": "[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2),
}
SHAPES = ["[]", "null", "3", '"a"', "{", "", '{"a": 1, "a": 2}', "9" * 5000, *DEEP.values()]
READERS: dict[str, Callable[[str], Any]] = {  # what the message begins with -> the reader of a metadata entry
    "checkpoint metadata: 'config'": lambda text: model_config_from_metadata({"config": text}),
    "checkpoint metadata: 'untrained_branches'": lambda text: untrained_branches(
        {"untrained_branches": text}
    ),
    "weights: their metadata entry 'sampling'": lambda text: recommended_sampling({"sampling": text}, 13),
    "settings": lambda text: from_json(SampleConfig, text),
}


@pytest.mark.parametrize("start", READERS)
def test_metadata_of_another_shape_is_refused_by_its_name(start: str) -> None:
    for text in SHAPES:
        if text == "[]" and "untrained" in start:
            continue
        with pytest.raises(ValueError, match=f"^{start}: ") as caught:
            READERS[start](text)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_content_has_its_type_or_the_key_is_named() -> None:
    assert parse_json("[[1]]", "", list[list[int]]) == [[1]]
    deepest = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert json.dumps(parse_json(deepest, "")) == deepest
    for text, kind, message in (
        ('{"a": [1, "x"]}', dict[str, list[int]], "f: a[1]: got 'x', expected a whole number"),
        ('{"a": null}', dict[str, str], "f: a: got null, expected a text"),
        ("[NaN]", list[float], "f: is not valid JSON: NaN"),
        ('{"a": {"b": 1, "b": 2}}', Any, "f: b: stands twice"),
    ):
        with pytest.raises(ContentError) as caught:
            parse_json(text, "f", kind, finite=True)
        assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "text", [*SHAPES, '{"best": null}', '{"best": [{"step": 1, "score": "x", "file": "a"}]}']
)
def test_a_damaged_index_of_checkpoints_is_refused_by_its_name(tmp_path: Path, text: str) -> None:
    (tmp_path / BEST_INDEX).write_text(text)
    with pytest.raises(ConfigError, match=BEST_INDEX):
        BestCheckpoints(tmp_path, "valid/loss", "min", 2).entries()


@pytest.mark.parametrize("text", [*SHAPES, f'{{"format": "{FORMAT}", "files": 3}}'])
def test_records_of_another_shape_claim_no_folder(tmp_path: Path, text: str) -> None:
    for name in (RECORD, "ct.json"):
        (tmp_path / name).write_text(text)
    with pytest.raises(OutputError, match=r"^out: "):
        claim_folder(tmp_path, overwrite=True)
    with pytest.raises(ValueError, match=str(tmp_path)):
        claim(tmp_path / "ct.json", {"step": 1})
    with pytest.raises(LandmarksError, match=r"ct\.json"):
        read_landmarks(tmp_path / "ct.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ct.json", RECORD]


@pytest.mark.parametrize(
    "text",
    [
        "[" * 999,
        "{a: " * 60 + "1" + "}" * 60,
        "&a [*a]",
        "'" + "${" * 500 + "'",
        "[" + "&a [1], *a, " * 40_000 + "]",
    ],
)
def test_deep_settings_are_refused_by_key_and_file(tmp_path: Path, text: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"body_mass: {text}\n")
    for argument, start in ((str(file), f"{file}: "), (f"body_mass={text[:100_000]}", "body_mass: ")):
        with pytest.raises(ConfigError) as caught:
            parse_command_line(SampleConfig, [argument])
        assert str(caught.value).startswith(start)


def test_a_line_of_very_many_keys_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps({f"key{k}": k for k in range(50_000)}))
    started = time.process_time()
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    assert len(caught.value.problems) > 50_000 and time.process_time() - started < 5  # a minute before
    path.write_text("{" + ", ".join(f'"key{k}": 1' for k in [*range(50_000), 7]) + "}")
    with pytest.raises(ManifestError, match="line 1: key7: stands twice"):
        read_manifest(path)


def test_a_landmark_network_that_answers_nan_is_refused() -> None:
    net = PipNet(PipNetConfig(num_landmarks=4, num_neighbours=1, image_size=64))
    reader = LandmarkReader(net, np.random.default_rng(0).random((4, 2)), "skull").eval()
    picture = torch.zeros(1, 3, 64, 64)
    assert reader(picture)[0].isfinite().all()
    net.cls_layer.bias.data[0] = torch.nan
    with pytest.raises(ValueError, match="landmark network for skulls answers with NaN"), torch.no_grad():
        reader(picture)


def test_names_that_are_no_utf_8_work_and_are_escaped(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, skull = (os.fsdecode(name) for name in (b"f\xff", b"sk\xfcll.png"))
    Path(tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.full((64, 64), 9, np.uint8)).save(skull)
    state, metadata = read_state_dict(weights)
    for suffix in (".ckpt", ".safetensors"):
        copy = f"{folder}/w\udcff{suffix}"
        write_state_dict(copy, state, metadata)
        assert read_state_dict(copy)[0].keys() == state.keys()
    assert sorted(os.listdir(folder)) == ["w\udcff.ckpt", "w\udcff.safetensors"]
    command = [
        f"skull={skull}",
        f"weights={copy}",
        f"out={folder}/o",
        "device=cpu",
        "precision=fp32",
        "num_samples=1",
    ]
    assert sample.main([*command, "landmarks=none", "report=html"]) == 0
    assert verify(Path(folder, "o")).differences == []
    assert "sk\\udcfcll.png" in Path(folder, "o/report.html").read_text()
    record = json.loads(Path(folder, "o/record.json").read_text(encoding="utf-8"))
    assert record["weights"]["file"] == "w\udcff.safetensors"
    with Image.open(Path(folder, "o/sk_ll_0.png")) as face:
        assert json.loads(face.info["iccr-diff"])["weights"]["file"] == "w\udcff.safetensors"


def test_names_that_a_format_cannot_hold_are_named(
    make_pairs: Callable[..., Path],
    make_tiny_run: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, name = make_pairs(train=2), os.fsdecode(b"\xff.png")
    line = json.loads((root / "split_data/train.json").read_text().splitlines()[0])
    (root / "pairedCS/skull" / line["source"]).rename(root / "pairedCS/skull" / name)
    (root / "split_data/train.json").write_text(json.dumps(line | {"source": name}))
    with redirect_stderr(io.StringIO()) as errors:  # takes what the standard stream escapes
        assert pack.main([str(root), str(root.with_name("packed"))]) == 2
        assert train.main([*make_tiny_run(1), f"name={name}", "train.logger=tensorboard"]) == 2
    first, second = errors.getvalue().splitlines()[-2:]
    assert f"skull/{name}: " in first and "train.logger=csv" in second
    assert not root.with_name("packed").exists()
    assert to_json(HashedFile(name, "0")) == {"path": "\\udcff.png", "sha256": "0"}
