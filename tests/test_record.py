"""Records, output folders, devices: nothing is lost, nothing half-written, nothing private."""

from __future__ import annotations

import getpass
import json
import os
import platform
from pathlib import Path

import pytest
import torch

from ldm.device import choose_device, choose_precision, preferred_layout, prefers_bf16
from muti_control.record import (
    FORMAT,
    OutputError,
    check_overwriting,
    claim_folder,
    environment,
    latest_folder,
    package_version,
    unused_folder,
    write_json,
)

CPU = torch.device("cpu")


def test_environment_says_versions_and_neither_host_nor_user() -> None:
    found = environment(CPU, torch.bfloat16)
    assert found["torch"] == torch.__version__
    assert found["python"] == platform.python_version()
    assert (found["device"], found["precision"]) == ("cpu", "bfloat16")
    assert found["iccr_diff"] == package_version() != "unknown"
    text = json.dumps(found["libraries"]) + found["system"]
    assert platform.node() not in text
    assert getpass.getuser() not in text


def test_json_is_whole_or_not_there(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "颅"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"name": "颅"}
    for bad in ({"x": float("nan")}, {"x": object()}):
        with pytest.raises(ValueError):
            write_json(tmp_path / "a.json", bad)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"name": "颅"}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.skipif(os.name != "posix", reason="permissions are of POSIX")
def test_the_umask_says_who_may_read_a_record(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_json(tmp_path / "a.json", {})
    finally:
        os.umask(before)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o600


def test_default_folders_are_numbered(tmp_path: Path) -> None:
    assert unused_folder(tmp_path / "a") == latest_folder(tmp_path / "a") == tmp_path / "a"
    (tmp_path / "a").mkdir()
    (tmp_path / "a-2").mkdir()
    assert unused_folder(tmp_path / "a") == tmp_path / "a-3"
    assert latest_folder(tmp_path / "a") == tmp_path / "a-2"


def test_a_folder_is_overwritten_only_where_its_record_says_what_is_ours(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert claim_folder(folder) is None
    folder.mkdir()
    assert claim_folder(folder) is None
    for name in ("face_0.png", "holiday.jpg"):
        (folder / name).write_bytes(b"x")
    with pytest.raises(OutputError, match="overwrite=true"):
        claim_folder(folder)
    with pytest.raises(OutputError, match=r"holds no record\.json of an earlier run"):
        claim_folder(folder, overwrite=True)
    (tmp_path / "precious").write_bytes(b"x")
    files = ["face_0.png", "gone.png", "../precious", "record.json"]
    left = [".face_0.png.0123abcd.tmp", ".gone.png.00000000.tmp"]  # of a killed write
    for name in (*left, ".holiday.jpg.01234567.tmp", "face_0.png.tmp"):
        (folder / name).touch()
    for finished in (True, False):
        write_json(folder / "record.json", {"format": FORMAT, "files": files, "finished": finished})
        for asked in ({"overwrite": True}, {"resume": True}):
            earlier = claim_folder(folder, **asked)
            assert earlier is not None
            assert [path.name for path in earlier.files] == [*left, "face_0.png", "record.json"]
            assert earlier.record["finished"] is finished
        with pytest.raises(OutputError) as told:
            claim_folder(folder)
        assert ("resume=true to continue" in str(told.value)) == (not finished)
    write_json(folder / "record.json", {"format": "another program's", "files": files})
    with pytest.raises(OutputError, match="holds no record"):
        claim_folder(folder, overwrite=True)
    with pytest.raises(OutputError, match="is a file"):
        claim_folder(tmp_path / "precious", overwrite=True)


def test_neither_inputs_nor_files_of_the_user_are_overwritten(tmp_path: Path) -> None:
    ours, users, new = tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.png"
    ours.touch()
    users.touch()
    check_overwriting([ours], [ours, new], [users, tmp_path / "none"])
    with pytest.raises(OutputError, match=r"b\.png exists and is not of the earlier run"):
        check_overwriting([ours], [ours, users], [])
    for spelling in (ours, tmp_path / ".." / tmp_path.name / "a.png"):
        with pytest.raises(OutputError, match=r"a\.png is an input of this run"):
            check_overwriting([ours], [new], [spelling])


@pytest.mark.parametrize(
    ("capabilities", "default"),
    [
        ({"avx512_bf16": True, "cpu_name": "AMD EPYC"}, torch.bfloat16),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": True, "cpu_name": "Intel Xeon"}, torch.float32),
        ({"avx512_bf16": True, "amx_bf16": True, "cpu_name": "Intel Xeon"}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"cpu_name": "AMD EPYC"}, torch.float32),
    ],
)
def test_bf16_is_the_default_where_the_processor_is_faster_by_it(
    capabilities: dict[str, object], default: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ICCR_NO_BF16", raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert choose_precision("auto", CPU) == default
    assert choose_precision("auto", torch.device("mps")) == torch.float32
    monkeypatch.setenv("ICCR_NO_BF16", "1")
    assert choose_precision("auto", CPU) == torch.float32
    assert not torch.backends.cudnn.allow_tf32  # fp32 is fp32 then


def test_devices_layouts_and_precisions() -> None:
    assert preferred_layout(CPU, torch.float32) == torch.contiguous_format
    assert preferred_layout(CPU, torch.bfloat16) == torch.channels_last
    assert preferred_layout(torch.device("cuda"), torch.float32) == torch.channels_last
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_precision("auto", CPU) == (torch.bfloat16 if prefers_bf16(CPU) else torch.float32)
    assert choose_precision("fp32", CPU) == torch.float32
    assert choose_precision("bf16", CPU) == torch.bfloat16
    for name in ("gpu", "cuda:99", "meta", ""):
        with pytest.raises(ValueError, match=r"^device: got"):
            choose_device(name)
    for name in ("fp8", "fp16"):
        with pytest.raises(ValueError, match=r"^precision: got"):
            choose_precision(name, CPU)
