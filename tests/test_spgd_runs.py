"""SPGD on a tiny model: energies, traces, records, and what sample.py refuses."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import ldm.autoencoder
from cldm.branches import Landmarks
from cldm.config import SamplingConfig
from cldm.controlled import ControlledLatentDiffusion, load_model
from cldm.sampling import reconstruct
from cldm.spgd import InnerStep, Spgd, SpgdStep
from cldm.texture import TextureError
from data.images import write_png
from ldm.checkpoint import sha256
from muti_control.evaluation.protocol.run_folder import identity_of
from muti_control.networks.config import GuidanceDecoderConfig, MatchConfig, PatchGanConfig, PipNetConfig
from muti_control.networks.guidance_decoder import GuidanceDecoder, signature
from muti_control.networks.match import MatchNet
from muti_control.networks.patchgan import PatchGan
from muti_control.networks.pipnet.network import PipNet
from muti_control.networks.pipnet.reader import LandmarkReader
from muti_control.sampling.config import SpgdConfig
from muti_control.sampling.energies import (
    ContainmentEnergy,
    DecodedEnergies,
    Energy,
    LandmarkEnergy,
    RealismEnergy,
    TextureEnergy,
    check_exemplar,
)
from muti_control.sampling.spgd import decoder_of
from muti_control.sampling.trace import trace_of, trace_plot
from sample import main as sample
from tests.landmark_pairs import LAYOUT, write_landmark_pairs

TINY_DECODER = GuidanceDecoderConfig(widths=[6, 5, 4], blocks=[1, 0, 0])
PROMPT = "3D face scan,Asian male,age level 3,normal face."
SAMPLING = SamplingConfig(steps=4, spacing="trailing", eta=1.0, guidance_scale=2.0, control_scales=[1.0])


def tiny_reader(role: str = "face") -> LandmarkReader:
    torch.manual_seed(1)
    cfg = PipNetConfig(num_landmarks=len(LAYOUT), num_neighbours=4, image_size=64, width=0.0625)
    reader = LandmarkReader(PipNet(cfg), LAYOUT, role)
    with torch.no_grad():
        for name, parameter in reader.net.named_parameters():
            if name.startswith(("x_layer.w", "y_layer.w", "nb_x_layer.w", "nb_y_layer.w")):
                parameter.mul_(30)  # fresh, the picture would hardly move the points
    return reader.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def reader() -> LandmarkReader:
    return tiny_reader()


@pytest.fixture
def model(weights: Path) -> ControlledLatentDiffusion:
    """Its faces are dark enough to have a background."""
    model, _ = load_model(weights)
    model.first_stage_model.decoder.conv_out.bias.sub_(0.8)
    return model


def targets(num: int) -> Landmarks:
    points = torch.from_numpy(LAYOUT).float().expand(num, -1, -1)
    return Landmarks(points, torch.ones(points.shape[:2]), torch.ones(num, dtype=torch.bool))


def energies(reader: LandmarkReader, skulls: Tensor) -> dict[str, Energy]:
    torch.manual_seed(2)
    net = PatchGan(PatchGanConfig(width=4, num_layers=2)).requires_grad_(False)
    return {
        "landmarks": LandmarkEnergy(reader, targets(len(skulls))),
        "containment": ContainmentEnergy(skulls),
        "realism": RealismEnergy(net, skulls),
        "texture": TextureEnergy(skulls.flip(0)),
    }


def skulls(num: int) -> Tensor:
    """Smooth random blobs on black, (num, 3, 64, 64)."""
    g = torch.Generator().manual_seed(3)
    small = torch.rand(num, 1, 8, 8, generator=g)
    large = torch.nn.functional.interpolate(small, (64, 64), mode="bicubic").clamp(0, 1)
    return (large * (large > 0.4)).expand(-1, 3, -1, -1)


def draw(model: ControlledLatentDiffusion, pictures: Tensor, guide: Spgd | None, first: int = 0) -> Tensor:
    num = len(pictures)
    return reconstruct(
        model, pictures, [PROMPT] * num, range(first, first + num), SAMPLING, spgd=guide
    )  # (num, 3, 64, 64) in [0, 1]


def guide_of(
    model: ControlledLatentDiffusion, terms: dict[str, Energy], cfg: SpgdConfig, at_once: int = 3
) -> Spgd:
    weighted = {name: (1.0, term) for name, term in terms.items()}
    energy = DecodedEnergies(decoder_of(model, False), weighted, at_once)
    return Spgd(cfg, energy)


@pytest.mark.parametrize("name", ["landmarks", "containment", "realism", "texture"])
def test_each_energy_falls_on_nearly_every_face(
    model: ControlledLatentDiffusion, reader: LandmarkReader, name: str
) -> None:
    pictures = skulls(20)
    if name == "texture":
        model.first_stage_model.decoder.conv_out.bias.add_(0.8)
    energy = energies(reader, pictures)[name]
    cfg = SpgdConfig(mode="spgd", scale=0.05)
    free = draw(model, pictures, None) * 2 - 1
    guided = draw(model, pictures, guide_of(model, {name: energy}, cfg, 8)) * 2 - 1
    rows = slice(0, 20)
    lower = energy(guided, rows) < energy(free, rows)
    assert float(lower.float().mean()) >= 0.95


def test_energies_carry_a_gradient_of_each_face_alone(reader: LandmarkReader) -> None:
    pictures = skulls(3)
    faces = (skulls(6)[3:] * 1.6 - 0.9).requires_grad_()
    for name, energy in energies(reader, pictures).items():
        values = energy(faces, slice(0, 3))
        assert values.shape == (3,) and values.dtype == torch.float32
        assert bool((values >= 0).all())
        (g,) = torch.autograd.grad(values[1], faces)
        assert g[1].abs().max() > 0, name
        assert not g[[0, 2]].any(), name
        assert torch.allclose(energy(faces[1:2], slice(1, 2)), values[1:2], rtol=1e-4), name


def test_containment_asks_for_surface_where_there_is_bone_and_for_nothing_else() -> None:
    skull = torch.zeros(1, 3, 32, 32)
    skull[:, :, 8:24, 8:24] = 0.5
    energy = ContainmentEnergy(skull)
    face = torch.full((1, 3, 32, 32), -1.0)
    assert float(energy(face, slice(0, 1))) == pytest.approx(1.0)
    face[:, :, 6:26, 6:26] = 0.2
    assert float(energy(face, slice(0, 1))) == 0.0
    face[:, :, 6:26, 6:16] = -1.0
    assert 0.3 < float(energy(face, slice(0, 1))) < 0.5


def test_texture_knows_no_place() -> None:
    face = skulls(2)[:1]
    assert float(TextureEnergy(face)(face.flip(3) * 2 - 1, slice(0, 1))) < 1e-6
    assert float(TextureEnergy(face)(skulls(2)[1:] * 2 - 1, slice(0, 1))) > 1e-3


def test_the_decoder_recomputes_to_the_same_gradient(
    model: ControlledLatentDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, real = [], ldm.autoencoder.checkpoint
    monkeypatch.setattr(ldm.autoencoder, "checkpoint", lambda *a, **k: calls.append(a) or real(*a, **k))
    z = torch.randn(1, 4, 8, 8, requires_grad=True)
    plain, recomputed = (
        torch.autograd.grad(decoder_of(model, recompute)(z).square().sum(), z)[0]
        for recompute in (False, True)
    )
    assert len(calls) == 1 + sum(len(level.block) for level in model.first_stage_model.decoder.up)
    assert torch.allclose(recomputed, plain, rtol=1e-4, atol=1e-6)


def test_a_batch_gives_what_its_faces_give_alone(
    model: ControlledLatentDiffusion, reader: LandmarkReader
) -> None:
    cfg, pictures = SpgdConfig(mode="spgd", gradient="denoiser", scale=0.03), skulls(3)
    together = draw(model, pictures, guide_of(model, energies(reader, pictures), cfg, at_once=2))

    def only(energy: Energy) -> Energy:
        return lambda faces, rows: energy(faces, slice(rows.start + 2, rows.stop + 2))

    alone = {name: only(energy) for name, energy in energies(reader, pictures).items()}
    again = draw(model, pictures[2:], guide_of(model, alone, cfg), first=2)
    assert torch.allclose(again, together[2:], atol=2e-3)
    assert float((draw(model, pictures[2:], None, 2) - again).abs().max()) > 0.02


def test_spgd_computes_in_float32_within_a_bf16_model(weights: Path, reader: LandmarkReader) -> None:
    model, _ = load_model(weights, dtype=torch.bfloat16)
    pictures, dtypes = skulls(2), set()
    energy = energies(reader, pictures)["landmarks"]

    def watched(faces: Tensor, rows: slice) -> Tensor:
        dtypes.add(faces.dtype)
        return energy(faces, rows)

    z = torch.randn(2, 4, 8, 8)
    values, g = guide_of(model, {"landmarks": watched}, SpgdConfig(mode="spgd", scale=0.03)).energy(z)
    assert {g.dtype, values["landmarks"].dtype, *dtypes} == {torch.float32}
    decoded = decoder_of(model, False)(z)  # by a copy in another memory layout
    assert torch.allclose(decoded.float(), model.decode(z.bfloat16()).float(), atol=0.05)


@pytest.fixture
def guided_run(weights: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Arguments for sample.py of two people with known landmarks, and the networks' files."""
    root = write_landmark_pairs(tmp_path / "pairs", test=2)
    tiny_reader().save(tmp_path / "face.safetensors")
    tiny_reader("skull").save(tmp_path / "skull.safetensors")

    def arguments(out: str, *settings: str) -> list[str]:
        return [
            *(f"skull={root / 'split_data/test.json'}", f"weights={weights}", f"out={tmp_path / out}"),
            *("device=cpu", "precision=fp32", f"landmark_weights={tmp_path / 'skull.safetensors'}"),
            *(f"spgd.face_landmark_weights={tmp_path / 'face.safetensors'}", *settings),
        ]

    return arguments


def pixels(folder: Path) -> list[bytes]:
    return [Image.open(folder / f"test_{i}_0.png").tobytes() for i in range(2)]


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "record.json").read_text())


def test_sample_py_guides_and_records_it(
    guided_run: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    on, faces = ("spgd.mode=spgd", "spgd.scale=0.05"), {}
    matching = tmp_path / "matching.safetensors"
    MatchNet(MatchConfig(image_size=32, widths=[4, 4, 8, 8], hidden=16)).save(matching, torch.float32, {})
    for name, acts, *settings in (
        ("off", False),
        ("zero", False, "spgd.mode=spgd", "spgd.scale=0"),
        ("weightless", False, *on, "spgd.landmarks=0", "spgd.containment=0"),
        ("auto", True, *on),
        ("true", True, *on, "spgd.target=true"),
        (
            "match",
            True,
            *on,
            *("spgd.landmarks=0", "spgd.containment=0", "spgd.match=1"),
            f"spgd.match_weights={matching}",
        ),
    ):
        assert sample(guided_run(name, *settings)) == 0
        output = capsys.readouterr().out
        assert ("SPGD at 2 of 3 steps" in output) == acts
        assert ("note: not guided" in output) == (name in ("zero", "weightless"))
        faces[name] = pixels(tmp_path / name)
        assert (record_of(tmp_path / name)["spgd"] is not None) == acts
    assert faces["off"] == faces["zero"] == faces["weightless"]
    assert faces["off"][0] != faces["auto"][0] != faces["true"][0] and faces["auto"][1] != faces["off"][1]
    assert faces["match"][0] not in (faces["off"][0], faces["auto"][0])
    assert record_of(tmp_path / "match")["spgd"]["match_weights"]["sha256"] == sha256(matching)
    record = record_of(tmp_path / "auto")["spgd"]
    assert (record["mode"], record["scale"], record["beta"]) == ("spgd", 0.05, 0.9)
    assert len(record["face_landmark_weights"]["sha256"]) == 64
    assert record["discriminator"] is record["exemplar"] is record["decoder"] is None


def test_each_record_holds_the_source_of_the_points(
    guided_run: Callable[..., list[str]], tmp_path: Path
) -> None:
    points = tmp_path / "pairs/pairedCS/landmarks"
    for i in range(2):
        shutil.copy(points / f"test_{i}.json", points / f"test_{i}_landmarks.json")
    for choice, file in (
        ("auto", tmp_path / "skull.safetensors"),
        ("true", points / "test_1.json"),
        (str(points), points / "test_1_landmarks.json"),
    ):
        out = tmp_path / f"from_{file.stem}"
        assert sample(guided_run(out.name, "spgd.mode=plain", f"spgd.target={choice}")) == 0
        record = record_of(out)
        assert record["spgd"]["target"] == Path(choice).name
        target = record["cases"][1]["spgd_target"]
        assert (target["file"], target["sha256"]) == (file.name, sha256(file))
        with Image.open(out / "test_1_0.png") as picture:
            text = picture.info["iccr-diff"]
        assert json.loads(text)["spgd"]["target"] == target
        assert str(tmp_path) not in text
    assert sample(guided_run("none", "spgd.mode=plain", "spgd.landmarks=0")) == 0
    record = record_of(tmp_path / "none")["spgd"]
    assert record["face_landmark_weights"] is record["target"] is None


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ("skull=none", "spgd: .*spgd.containment=0 spgd.landmarks=0.*spgd.target=PATH"),
        ("spgd.realism=1 spgd.discriminator=single.safetensors", "spgd.discriminator"),
        ("spgd.texture=1 spgd.exemplar=black.png", "spgd.exemplar"),
        ("spgd.match=1 spgd.match_weights=foreign.safetensors", "foreign.safetensors is no matching network"),
        ("spgd.match=1 spgd.match_weights=none.safetensors", "spgd.match_weights: .*spgd.match=0"),
        ("spgd.target=ture", "spgd.target: .*did you mean true"),
        ("spgd.target=pairs", "spgd.target"),
        ("spgd.target=true skull=pairs/pairedCS/skull", "spgd.target=true"),
        ("spgd.target=torn.json limit=1", "spgd.target"),
        ("spgd.face_landmark_weights=none.pth", "spgd.face_landmark_weights: .*spgd.landmarks=0"),
        ("spgd.decoder=foreign.safetensors", "foreign.safetensors"),
    ],
)
def test_a_bad_setting_is_one_line_before_anything_is_written(
    guided_run: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    settings: str,
    key: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    PatchGan(PatchGanConfig(in_channels=3, width=4, num_layers=1)).save("single.safetensors")
    GuidanceDecoder(TINY_DECODER).save("foreign.safetensors", [1.0, 2.0])
    Image.new("L", (64, 64)).save("black.png")
    Path("torn.json").write_text("[[1, 2")
    assert sample(guided_run("bad", "spgd.mode=spgd", *settings.split())) == 2
    message = capsys.readouterr().err
    assert re.match(f"sample.py: .*{key}", message), message
    assert message.count("\n") == 1
    assert not Path("bad").exists()


def test_an_exemplar_must_show_a_surface_with_detail() -> None:
    ramp = np.linspace(60, 90, 64).round()[:, None].repeat(64, 1)
    small = np.zeros((64, 64))
    small[20:30, 20:30] = np.arange(100).reshape(10, 10) + 100
    for picture, good in (
        (np.zeros((64, 64)), False),
        (np.arange(64 * 64).reshape(64, 64) % 20, False),  # too dark
        (small, False),
        (np.full((64, 64), 128), False),
        (ramp, False),
        (ramp + np.random.default_rng(0).integers(-5, 6, (64, 64)), True),
    ):
        exemplar = torch.from_numpy(picture / 255).float().expand(3, -1, -1)
        with nullcontext() if good else pytest.raises(TextureError):
            check_exemplar(exemplar)


def test_a_small_decoder_serves_the_energies_alone(
    guided_run: Callable[..., list[str]], weights: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.safetensors"
    GuidanceDecoder(TINY_DECODER).save(own, signature(load_model(weights)[0].first_stage_model))
    run = ("limit=1", "spgd.mode=spgd", "spgd.scale=0.1")
    assert sample(guided_run("full", *run)) == 0
    assert sample(guided_run("small", *run, f"spgd.decoder={own}")) == 0
    full, small = (Image.open(tmp_path / name / "test_0_0.png").tobytes() for name in ("full", "small"))
    assert full != small
    assert record_of(tmp_path / "small")["spgd"]["decoder"]["file"] == "own.safetensors"


TRACED = ("spgd.mode=spgd", "spgd.trace=true", "spgd.inner=2")


def test_a_trace_is_written_for_each_face(guided_run: Callable[..., list[str]], tmp_path: Path) -> None:
    settings = (*TRACED, "spgd.gradient=denoiser", "spgd.scale=1", "spgd.clip=0.05")
    assert sample(guided_run("traced", *settings)) == 0
    assert sample(guided_run("untraced", *settings, "spgd.trace=false")) == 0
    folder = tmp_path / "traced"
    trace = json.loads((folder / "test_1_0_spgd.json").read_text())
    assert trace["spgd"]["mode"] == "spgd"
    assert [step["step"] for step in trace["steps"]] == [1, 2, 3]
    inner = [inner for step in trace["steps"] for inner in step["inner"]]
    assert len(inner) == 6 and inner[0]["energies"].keys() == {"landmarks", "containment"}
    assert all(0 <= step["to_denoising"] <= 180 for step in trace["steps"])
    assert inner[0]["turn"] is None and inner[2]["turn"] >= 0
    lengths = [step["length"] for step in inner]
    assert lengths[0] == pytest.approx(0.05, rel=1e-4)  # scale 1, clipped
    assert max(lengths) <= 0.05 * (1 + 1e-4)
    assert pixels(folder) == pixels(tmp_path / "untraced")


def test_a_resumed_run_keeps_its_traces_and_adds_those_it_lacks(
    guided_run: Callable[..., list[str]], tmp_path: Path
) -> None:
    folder = tmp_path / "traced"

    def resume() -> dict[str, int]:
        assert sample([*guided_run("traced", *TRACED), "resume=true"]) == 0
        beside = {".log.lock", "local.json", "log.jsonl"}
        assert {*record_of(folder)["files"]} | beside == {path.name for path in folder.iterdir()}
        return {path.name: path.stat().st_mtime_ns for path in folder.glob("test_*_0*")}

    assert sample(guided_run("traced", *TRACED, "spgd.trace=false")) == 0
    face = (folder / "test_0_0.png").read_bytes()
    before = resume()  # the trace is asked for when the faces are there
    assert (folder / "test_0_0.png").read_bytes() == face
    assert resume() == before
    (folder / "test_1_0_spgd.png").unlink()
    after = resume()
    assert {name for name in before if before[name] != after[name]} == {
        *("test_1_0.png", "test_1_0_spgd.json", "test_1_0_spgd.png")
    }


def test_a_run_under_the_settings_earlier_name_is_continued(
    guided_run: Callable[..., list[str]], tmp_path: Path
) -> None:
    run, face = guided_run("old", "spgd.mode=plain"), tmp_path / "old/test_0_0.png"
    assert sample(run) == 0
    with Image.open(face) as image:
        text, picture = json.loads(image.info["iccr-diff"]), np.asarray(image)
    text["guidance"] = text.pop("spgd")
    write_png(face, picture, {"iccr-diff": json.dumps(text)})
    before = face.read_bytes()
    assert sample([*run, "resume=true"]) == 0
    assert face.read_bytes() == before
    assert sample([*run, "resume=true", "spgd.scale=0.5"]) == 2


def test_a_trace_holds_no_nan_and_its_plot_shows_every_line() -> None:
    row = torch.tensor([1.0, math.nan])
    inner = InnerStep({"landmarks": row}, row, row, row, torch.tensor([False, True]))
    step = SpgdStep(0, 900, 1.0, [inner, inner], row)
    plots = []
    for sample_ in (0, 1):
        trace = trace_of([step, step], sample_, {"mode": "spgd", "scale": 0.1})
        json.dumps(trace, allow_nan=False)
        assert trace["steps"][0]["inner"][1]["skipped"] is bool(sample_)
        plots.append(trace_plot(trace, "title"))
    assert plots[0].dtype == np.uint8 and plots[0].shape == plots[1].shape
    assert (plots[0] != plots[1]).any()


def test_settings_that_change_no_face_do_not_distinguish_evaluations() -> None:
    def identity(scale: float, at_once: int, trace: bool) -> object:
        own = {"scale": scale, "at_once": at_once, "recompute": trace, "trace": trace}
        return identity_of({"spgd": own, "guided": {"plain": own}, "batch_size": at_once}, {})

    assert identity(0.1, 8, False) == identity(0.1, 1, True) != identity(0.2, 8, False)
