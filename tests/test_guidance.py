"""Guided reconstruction on a tiny model: energies, what is left as it was, and the program's switch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import ldm.autoencoder
import muti_control.sampling.record
from cldm.branches import Landmarks
from cldm.config import SamplingConfig
from cldm.controlled import ControlledLatentDiffusion, load_model
from cldm.sampling import reconstruct
from cldm.spgd import Spgd
from data.cases import Case, Known, find_cases
from ldm.checkpoint import sha256
from muti_control.networks.config import PatchGanConfig, PipNetConfig
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
)
from muti_control.sampling.spgd import decoder_of, load_spgd
from sample import main as sample
from tests.landmark_pairs import LAYOUT, write_landmark_pairs

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


@pytest.mark.parametrize("recompute", [False, True])
def test_the_decoder_recomputes_where_it_is_asked_to(
    model: ControlledLatentDiffusion, monkeypatch: pytest.MonkeyPatch, recompute: bool
) -> None:
    calls, real = [], ldm.autoencoder.checkpoint

    def counted(*given: Any, **more: Any) -> Any:
        calls.append(given[0])
        return real(*given, **more)

    monkeypatch.setattr(ldm.autoencoder, "checkpoint", counted)
    decode = decoder_of(model, recompute)
    z = torch.randn(1, 4, 8, 8, requires_grad=True)
    (g,) = torch.autograd.grad(decode(z).square().sum(), z)
    decoder = model.first_stage_model.decoder
    blocks = 1 + sum(len(level.block) for level in decoder.up)
    assert len(calls) == (blocks if recompute else 0)
    calls.clear()
    plain = decoder_of(model, False)
    (kept,) = torch.autograd.grad(plain(z).square().sum(), z)
    assert not calls and torch.allclose(g, kept, rtol=1e-4, atol=1e-6)


def test_the_decoder_is_differentiated_as_it_is_fastest(weights: Path) -> None:
    """A model in bf16 lies channels last, in which the backward pass takes half as long again on a CPU."""
    model, _ = load_model(weights, dtype=torch.bfloat16)
    own, layouts = model.first_stage_model.decoder, []
    assert own.conv_in.weight.is_contiguous(memory_format=torch.channels_last)

    def note(module: Any, given: tuple[Tensor, ...]) -> None:
        if isinstance(module, torch.nn.GroupNorm):
            layouts.append(given[0].is_contiguous())

    z = torch.randn(2, 4, 8, 8)
    decode = decoder_of(model, False)
    hook = torch.nn.modules.module.register_module_forward_pre_hook(note)
    try:
        found = decode(z)
    finally:
        hook.remove()
    assert layouts and all(layouts)
    assert own.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(found.float(), model.decode(z.bfloat16()).float(), atol=0.05)


def test_a_landmark_network_lies_as_the_pictures_come_to_it(tmp_path: Path) -> None:
    tiny_reader().save(tmp_path / "face.safetensors")
    net = LandmarkReader.load(tmp_path / "face.safetensors").net
    picture = net.normalise(torch.rand(2, 3, 80, 80))
    for lying in (picture, net.conv1.weight):
        assert lying.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"target": "true"}, "landmarks 1 (those of the true face, which nobody has in practice)"),
        ({"target": "some/points"}, "landmarks 1 (those of points)"),
        ({}, "towards landmarks 1, containment 1"),
        ({"target": "true", "landmarks": 0}, "towards containment 1"),
    ],
)
def test_the_summary_tells_whose_landmarks_are_wanted(settings: dict[str, Any], told: str) -> None:
    assert told in SpgdConfig(mode="spgd", **settings).summary


def test_off_and_weight_zero_change_nothing(model: ControlledLatentDiffusion, reader: LandmarkReader) -> None:
    case = Case("a", Path("a.png"), None)
    for cfg in (
        SpgdConfig(),
        SpgdConfig(mode="spgd", landmarks=0, containment=0),
        SpgdConfig(mode="plain", scale=0.0),
    ):
        assert load_spgd(cfg, model, [case], None, Path("none")) is None
    pictures = skulls(2)
    for terms in ({}, energies(reader, pictures)):
        energy = DecodedEnergies(model.decode, {name: (0.0, term) for name, term in terms.items()}, 2)
        guide = Spgd(SpgdConfig(mode="spgd"), energy)
        assert torch.equal(draw(model, pictures, guide), draw(model, pictures, None))


@pytest.mark.parametrize("gradient", ["estimate", "denoiser"])
def test_a_batch_gives_what_its_faces_give_alone(
    model: ControlledLatentDiffusion, reader: LandmarkReader, gradient: str
) -> None:
    cfg, pictures = SpgdConfig(mode="spgd", gradient=gradient, scale=0.03), skulls(3)
    together = draw(model, pictures, guide_of(model, energies(reader, pictures), cfg, at_once=2))

    def only(energy: Energy) -> Energy:
        return lambda faces, rows: energy(faces, slice(rows.start + 2, rows.stop + 2))

    alone = {name: only(energy) for name, energy in energies(reader, pictures).items()}
    again = draw(model, pictures[2:], guide_of(model, alone, cfg), first=2)
    assert torch.allclose(again, together[2:], atol=2e-3)
    assert float((draw(model, pictures[2:], None, 2) - again).abs().max()) > 0.02


def test_guidance_computes_in_float32_within_a_bf16_model(weights: Path, reader: LandmarkReader) -> None:
    model, _ = load_model(weights, dtype=torch.bfloat16)
    pictures, seen = skulls(2), []
    energy = energies(reader, pictures)["landmarks"]

    def watched(faces: Tensor, rows: slice) -> Tensor:
        seen.append(faces.dtype)
        return energy(faces, rows)

    guide = guide_of(model, {"landmarks": watched}, SpgdConfig(mode="spgd", scale=0.03))
    values, g = guide.energy(torch.randn(2, 4, 8, 8))
    assert g.dtype == values["landmarks"].dtype == torch.float32
    assert not torch.equal(draw(model, pictures, guide), draw(model, pictures, None))
    assert set(seen) == {torch.float32}


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


def test_sample_py_guides_and_says_so(guided_run: Callable[..., list[str]], tmp_path: Path) -> None:
    assert sample(guided_run("off")) == 0
    assert sample(guided_run("zero", "spgd.mode=spgd", "spgd.scale=0")) == 0
    assert sample(guided_run("on", "spgd.mode=spgd", "spgd.scale=0.05")) == 0
    assert sample(guided_run("true", "spgd.mode=spgd", "spgd.scale=0.05", "spgd.target=true")) == 0
    off, zero, on, true = (pixels(tmp_path / name) for name in ("off", "zero", "on", "true"))
    assert off == zero
    assert off[0] != on[0] != true[0] and on[1] != off[1]
    assert json.loads((tmp_path / "off/record.json").read_text())["guidance"] is None
    record = json.loads((tmp_path / "on/record.json").read_text())["guidance"]
    assert (record["mode"], record["scale"], record["beta"]) == ("spgd", 0.05, 0.9)
    assert len(record["face_landmark_weights"]["sha256"]) == 64
    assert record["discriminator"] is record["exemplar"] is record["decoder"] is None


def test_each_record_tells_where_the_points_come_from(
    guided_run: Callable[..., list[str]], tmp_path: Path
) -> None:
    points = tmp_path / "pairs/pairedCS/landmarks"
    for i in range(2):
        shutil.copy(points / f"test_{i}.json", points / f"test_{i}_landmarks.json")
    for name, choice, file, hashed in (
        ("auto", "auto", "skull.safetensors", tmp_path / "skull.safetensors"),
        ("true", "true", "test_1.json", points / "test_1.json"),
        ("given", str(points), "test_1_landmarks.json", points / "test_1_landmarks.json"),
    ):
        assert sample(guided_run(name, "spgd.mode=plain", f"spgd.target={choice}")) == 0
        record = json.loads((tmp_path / name / "record.json").read_text())
        assert record["guidance"]["target"] in ("auto", "true", "landmarks")
        told = record["cases"][1]["spgd_target"]
        assert (told["file"], told["sha256"]) == (file, sha256(hashed))
        with Image.open(tmp_path / name / "test_1_0.png") as picture:
            text = picture.text["iccr-diff"]  # type: ignore[attr-defined]
        assert json.loads(text)["guidance"]["target"] == told
        assert str(tmp_path) not in text
    alone = guided_run("none", "spgd.mode=plain", "spgd.landmarks=0")
    assert sample(alone) == 0
    record = json.loads((tmp_path / "none/record.json").read_text())
    assert record["guidance"]["face_landmark_weights"] is record["guidance"]["target"] is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["spgd.mode=on"], "spgd.mode: got 'on', expected one of off, plain, warmup, spgd"),
        (
            ["spgd.mode=spgd", "skull=none"],
            "spgd: landmarks, containment need a skull, and no_skull has none; spgd.landmarks=0 "
            "spgd.containment=0 leave them out, or spgd.target=PATH gives the landmarks",
        ),
        (
            ["spgd.mode=spgd", "skull=none", "spgd.landmarks=0"],
            "spgd: containment needs a skull, and no_skull has none; spgd.containment=0 leaves it out\n",
        ),
        (
            ["spgd.mode=spgd", "spgd.start=0.4", "spgd.end=0.4"],
            "no step is guided by start=0.4, end=0.4, every=1 at 3 sampling steps",
        ),
        (
            ["spgd.mode=plain", "spgd.every=3"],
            "every=3 at 3 sampling steps, the first of which has no",
        ),
        (["spgd.mode=spgd", "spgd.realism=1"], "needs spgd.discriminator=FILE"),
        (["spgd.mode=spgd", "spgd.texture=1"], "needs spgd.exemplar=FILE"),
        (["spgd.mode=spgd", "spgd.landmarks=-1"], "spgd.landmarks: got -1.0"),
        (
            ["spgd.mode=spgd", "spgd.target=nowhere"],
            "spgd.target: there is no nowhere; expected auto (read off the skull), true (known of the true face, "
            "from the manifest), or a file of points in px of the skull picture or a folder of them",
        ),
        (["spgd.mode=spgd", "spgd.target=ture"], "did you mean true? Expected auto"),
        (
            ["spgd.mode=spgd", "spgd.target=tests"],
            "tests lacks 2 of 2 files, the first test_0_landmarks",
        ),
        (["spgd.mode=spgd", "landmark_weights=none.pth"], "landmark_weights: none.pth not found"),
        (
            ["spgd.mode=spgd", "spgd.face_landmark_weights=none.pth"],
            "leave the energy out by spgd.landmarks=0",
        ),
    ],
)
def test_bad_guidance_is_told_before_anything_is_written(
    guided_run: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    settings: list[str],
    message: str,
) -> None:
    assert sample(guided_run("bad", *settings)) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
    assert not (tmp_path / "bad").exists()


def test_an_unusable_target_is_told(
    guided_run: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content, message in (
        (
            "few",
            '{"points": [[1, 2], [3, 4]]}',
            f"2 points, expected {len(LAYOUT)}, as the network for faces reads",
        ),
        ("odd", "{}", "no landmarks (KeyError: 'points'); expected {\"points\": [[x, y], ...]}"),
        ("torn", "[[1, 2", "no landmarks (JSONDecodeError"),
    ):
        file = tmp_path / f"{name}.json"
        file.write_text(content)
        assert sample(guided_run("bad", "limit=1", "spgd.mode=spgd", f"spgd.target={file}")) == 2
        told = capsys.readouterr().err
        assert f"spgd.target: {file}: {message}" in told and told.count("\n") == 1
    assert not (tmp_path / "bad").exists()


def test_an_exemplar_that_shows_no_surface_is_refused(
    guided_run: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ramp = np.linspace(60, 90, 64).round().astype(np.uint8)[:, None].repeat(64, 1)
    small = np.zeros((64, 64), np.uint8)
    small[20:30, 20:30] = np.arange(100).reshape(10, 10) + 100
    for name, picture, message in (
        ("black", np.zeros((64, 64), np.uint8), "0.0 % of the picture is surface, expected a face on black"),
        ("dim", np.arange(64 * 64).reshape(64, 64).astype(np.uint8) % 20, "0.0 % of the picture is surface"),
        ("small", small, "0.1 % of the picture is surface"),
        ("flat", np.full((64, 64), 128, np.uint8), "the surface is without any detail"),
        ("ramp", ramp, "the surface is without any detail"),
        ("grain", ramp + np.random.default_rng(0).integers(-5, 6, (64, 64)).astype(np.uint8), None),
    ):
        file = tmp_path / f"{name}.png"
        Image.fromarray(picture).save(file)
        settings = ["limit=1", "spgd.mode=spgd", "spgd.texture=1", f"spgd.exemplar={file}"]
        assert sample(guided_run(name, *settings)) == (0 if message is None else 2), name
        if message is not None:
            assert f"spgd.exemplar: {file}: {message}" in capsys.readouterr().err
            assert not (tmp_path / name).exists()


def test_the_introduction_says_how_it_is_guided_or_that_it_is_not(
    guided_run: Callable[..., list[str]],
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    footers = []
    real = muti_control.sampling.record.contact_sheet

    def watched(rows: Any, footer: Any) -> Any:
        footers.append(list(footer))
        return real(rows, footer)

    monkeypatch.setattr(muti_control.sampling.record, "contact_sheet", watched)

    def told(out: str, *settings: str) -> str:
        assert sample(guided_run(out, "limit=1", *settings)) == 0
        return capsys.readouterr().out

    line = "spgd by estimate, scale 0.05, 3 inner steps, towards landmarks 1, containment 1, through the full decoder"
    assert f"guided at 2 of 3 steps: {line}\n" in told("on", "spgd.mode=spgd", "spgd.scale=0.05")
    assert footers.pop()[1:] == [f"guided: {line}"]
    assert "guided" not in told("off", "spgd.scale=0.05")
    weightless = ("spgd.landmarks=0", "spgd.containment=0")
    for name, settings, why in (
        (
            "still",
            ("spgd.mode=plain", "spgd.scale=0"),
            "spgd.mode=plain, but spgd.scale is 0",
        ),
        (
            "light",
            ("spgd.mode=spgd", *weightless),
            "landmarks, containment, realism, texture all have weight 0",
        ),
    ):
        said = told(name, *settings)
        assert "note: not guided: " in said and why in said and "guided at" not in said
        assert len(footers[-1]) == 1
        assert json.loads((tmp_path / name / "record.json").read_text())["guidance"] is None


def test_the_introduction_without_a_skull(
    guided_run: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sample([*guided_run("bare"), "skull=none", "num_samples=2"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("no skull, 2 faces: 3 steps on cpu")
    assert "only the skull shapes" not in told
    assert "the prompt is empty, nothing known of the person shapes the face" in told


def test_a_discriminator_of_single_pictures_is_refused_before_anything_is_written(
    guided_run: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "single.safetensors"
    PatchGan(PatchGanConfig(in_channels=3, width=4, num_layers=1)).save(file)
    settings = ["spgd.mode=spgd", "spgd.realism=1", f"spgd.discriminator={file}"]
    assert sample(guided_run("bad", *settings)) == 2
    assert "takes 3 channels, expected 6" in capsys.readouterr().err
    assert not (tmp_path / "bad").exists()


def test_a_folder_has_no_true_landmarks(
    weights: Path, tmp_path: Path, guided_run: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = f"skull={tmp_path / 'pairs/pairedCS/skull'}"
    assert sample([*guided_run("bad"), folder, "spgd.mode=spgd", "spgd.target=true"]) == 2
    assert "has no known landmarks" in capsys.readouterr().err
    assert len(find_cases(tmp_path / "pairs/pairedCS/skull", Known())) == 2
