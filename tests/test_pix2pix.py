"""Pix2Pix: the generator against an independent statement of it, its training, its file, its place in an evaluation."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import evaluate
import train
from data.biometrics import Biometrics
from data.cases import Case
from ldm.checkpoint import read_state_dict, write_state_dict
from muti_control.evaluation.methods.faces import read_grey
from muti_control.evaluation.methods.translated import Translator
from muti_control.evaluation.results.results_file import read_results
from muti_control.networks.config import GeneratorConfig, PatchGanConfig, Pix2PixStageConfig
from muti_control.networks.patchgan import PatchGan
from muti_control.networks.pix2pix import Generator, encode
from muti_control.sampling.draw import ReconstructionError
from muti_control.training.config import ExperimentConfig
from muti_control.training.run import build_stage
from muti_control.training.stages.pix2pix import Pix2PixStage
from settings.reading import parse_command_line
from tests.conftest import write_pairs
from tests.tiny_stages import make_experiment

MAN, WOMAN = Biometrics("male", 13.0, "Asian", 1), Biometrics("female", 70.0, "Asian", 5)
TINY = GeneratorConfig(image_size=32, width=4, levels=4, embedding=6, ethnicities=["Asian"])


def lively(cfg: GeneratorConfig = TINY) -> Generator:
    """Random weights everywhere: also where a fresh network has zeros."""
    net = Generator(cfg)
    for p in net.parameters():
        p.data.normal_(std=0.3)
    return net


def skulls(num: int = 2, size: int = 32) -> Tensor:
    return torch.rand(num, 3, size, size, generator=torch.Generator().manual_seed(5))


def normalised(x: Tensor) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) / ((x - mean).square().mean((2, 3), keepdim=True) + 1e-5).sqrt()


def by_hand(w: dict[str, Tensor], x: Tensor, people: Tensor) -> Tensor:
    """A U-Net of four levels from tensors by name, layer by layer."""
    e = F.silu(F.linear(people, w["embed.0.weight"], w["embed.0.bias"]))
    e = F.silu(F.linear(e, w["embed.2.weight"], w["embed.2.bias"]))

    def film(h: Tensor, k: int) -> Tensor:
        scale, shift = F.linear(e, w[f"tell.{k}.weight"], w[f"tell.{k}.bias"]).chunk(2, 1)
        return h * (1 + scale[..., None, None]) + shift[..., None, None]

    def down(h: Tensor, k: int) -> Tensor:
        return F.conv2d(h, w[f"down.{k}.weight"], w.get(f"down.{k}.bias"), 2, 1)

    def up(h: Tensor, k: int) -> Tensor:
        return F.conv_transpose2d(F.relu(h), w[f"up.{k}.weight"], w.get(f"up.{k}.bias"), 2, 1)

    a = down(2 * x - 1, 0)  # 16 px
    b = film(normalised(down(F.leaky_relu(a, 0.2), 1)), 0)  # 8 px
    c = film(normalised(down(F.leaky_relu(b, 0.2), 2)), 1)  # 4 px
    d = film(down(F.leaky_relu(c, 0.2), 3), 2)  # 2 px
    c = torch.cat([film(normalised(up(d, 0)), 3), c], 1)
    b = torch.cat([film(normalised(up(c, 1)), 4), b], 1)
    a = torch.cat([film(normalised(up(b, 2)), 5), a], 1)
    return torch.tanh(up(a, 3))


def test_the_generator_is_that_of_an_independent_statement() -> None:
    net, people = lively(), encode([MAN, WOMAN], ["Asian"])
    expected = by_hand(net.state_dict(), skulls(), people)
    torch.testing.assert_close(net(skulls(), people), expected, atol=1e-5, rtol=1e-4)


def test_sizes_of_the_paper() -> None:
    cfg = GeneratorConfig(ethnicities=["Asian"])
    assert cfg.channels == [64, 128, 256, 512, 512, 512, 512, 512]
    with torch.device("meta"):
        net = Generator(cfg)
        assert net(torch.empty(1, 3, 256, 256), torch.empty(1, 12)).shape == (1, 3, 256, 256)
    assert [layer.in_channels for layer in net.up] == [512, 1024, 1024, 1024, 1024, 512, 256, 128]


def test_people_are_encoded_as_in_the_prompt_and_change_only_a_trained_generator() -> None:
    assert encode([MAN, WOMAN], ["African", "Asian"]).tolist() == [
        [1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1],
        [-1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 1],
    ]
    with pytest.raises(ValueError, match="ethnicity: got 'Asian'"):
        encode([MAN], ["African"])
    man, woman = encode([MAN, MAN], ["Asian"]), encode([WOMAN, WOMAN], ["Asian"])
    fresh, net = Generator(TINY), lively()
    assert torch.equal(fresh(skulls(), man), fresh(skulls(), woman))
    assert not torch.allclose(net(skulls(), man), net(skulls(), woman), atol=1e-3)


def test_dropout_is_drawn_from_its_generator_only() -> None:
    net, people = lively(), encode([MAN, WOMAN], ["Asian"])
    first, again = (net(skulls(), people, torch.Generator().manual_seed(1)) for _ in range(2))
    other = net(skulls(), people, torch.Generator().manual_seed(2))
    plain = net(skulls(), people)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3) and not torch.allclose(first, plain, atol=1e-3)
    assert torch.equal(plain, net.train()(skulls(), people))


# ---------------------------------------------------------------- the stage
def tiny_stage(root: Path) -> Pix2PixStage:
    generator = GeneratorConfig(image_size=64, width=4, levels=4, embedding=6)
    parts = Pix2PixStageConfig(generator=generator, discriminator=PatchGanConfig(width=4))
    stage = build_stage(make_experiment("pix2pix", root, {}, pix2pix=parts))
    assert isinstance(stage, Pix2PixStage)
    return stage


def losses_of(stage: Pix2PixStage) -> dict[str, float]:
    """Return what the generator's turn logs of the training pairs."""
    return {name: x.item() for name, x in stage.turn_loss("net", batch_of(stage)).items()}


def batch_of(stage: Pix2PixStage) -> dict[str, Any]:
    return torch.utils.data.default_collate([stage.train_set[i] for i in range(4)])


def test_each_turn_gives_its_own_network_a_gradient(make_pairs: Callable[..., Path]) -> None:
    stage = tiny_stage(make_pairs(train=4, valid=2))
    for p in stage.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    batch = batch_of(stage)
    assert [turn.key for turn in stage.turns()] == ["optim", "pix2pix.discriminator_optim"]
    for turn in stage.turns():
        names, parameters = zip(*turn.parameters.items(), strict=True)
        loss = stage.turn_loss(turn.name, batch)["loss"]
        for name, gradient in zip(names, torch.autograd.grad(loss, parameters), strict=True):
            assert gradient.isfinite().all(), name
            normalised_away = re.fullmatch(r"discriminator\.scale\d_layer[123]\.0\.bias", name)
            assert normalised_away or gradient.abs().max() > 0, name


def test_the_generators_loss_is_the_weighted_sum(make_pairs: Callable[..., Path]) -> None:
    stage = tiny_stage(make_pairs(train=4, valid=2))
    both = losses_of(stage)
    assert both["loss"] == pytest.approx(100 * 2 * both["l1"] + both["gan"], rel=1e-5)
    stage.cfg.pix2pix.l1_weight, stage.cfg.pix2pix.gan_weight = 1.0, 0.0
    assert losses_of(stage)["loss"] == pytest.approx(2 * both["l1"], rel=1e-5)
    batch = batch_of(stage)
    with torch.no_grad():
        faces = stage.net(batch["skull"], stage.people["train"][:4], stage.draw("dropout"))
    assert both["l1"] == pytest.approx(float((faces - batch["face"]).abs().mean() / 2), rel=1e-5)


def test_nobody_is_lent_his_own_skull(
    make_pairs: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = tiny_stage(make_pairs(train=4, valid=3))
    stage.valid_set.records = stage.valid_set.records[:2]
    for p in stage.net.parameters():
        p.data.normal_(std=0.3)
    monkeypatch.setattr(stage, "show", lambda *arguments: None)
    items = [stage.valid_set[i] for i in range(2)]
    both = torch.utils.data.default_collate(items)

    def scores(*batches: list[dict[str, Any]]) -> dict[str, float]:
        with torch.no_grad():
            for k, batch in enumerate(batches):
                stage.validate_batch(torch.utils.data.default_collate(batch), k)
        return stage.validation_scores()

    together, alone = scores(items), scores(items[:1], items[1:])
    with torch.no_grad():
        lent = stage.net(both["skull"].flip(0), stage.people["valid"][:2]).clamp(-1, 1)
    expected = float((lent - both["face"]).abs().mean() / 2)
    assert together["valid/l1_other_skull"] == pytest.approx(expected, rel=1e-4)
    assert alone == {key: pytest.approx(together[key], rel=1e-4) for key in ("valid/l1", "valid/rank_1")}


SETTINGS = (
    "train.batch_size=4", "train.num_valid=3", "train.val_every=1000",
    "train.device=cpu", "train.precision=fp32", "optim.lr=5e-3", "optim.warmup_steps=1",
    "optim.ema_decay=0.5", "optim.weight_decay=0", "optim.beta1=0.5", "pix2pix.generator.image_size=64",
    "pix2pix.generator.width=6", "pix2pix.generator.levels=4", "pix2pix.generator.dropout=0.1",
    "pix2pix.discriminator.width=4",
)  # fmt: skip


def arguments(root: Path) -> list[str]:
    """For train.py, on the pairs in ``root``."""
    (root / "config.yaml").write_text("stage: pix2pix\nname: p\n")
    return [str(root / "config.yaml"), *SETTINGS, f"data.root={root}", f"out={root / 'runs'}"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator that has learnt the training pairs, and its run's folder."""
    root = write_pairs(tmp_path_factory.mktemp("pairs"), train=4, valid=3, test=4)
    assert train.main([*arguments(root), "train.max_steps=60", "train.val_every=30"]) == 0
    return root


def test_training_fits_the_pairs_and_writes_what_is_promised(trained: Path) -> None:
    run = trained / "runs/p"
    with (run / "csv/version_0/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    head = rows[0].keys()
    losses = [float(row["train/l1"]) for row in rows if row["train/l1"]]
    assert losses[-1] < 0.5 * losses[0]
    assert {"train/gan", "train/discriminator/loss", "train/discriminator/accuracy"} <= head
    assert {"valid/l1", "valid/l1_other_skull", "valid/rank_1"} <= head
    assert len(list((run / "images").glob("faces_*.png"))) == 2
    net, metadata = Generator.load(run / "model.safetensors")
    assert metadata["stage"] == "pix2pix" and json.loads(metadata["pix2pix"])["ethnicities"] == ["Asian"]
    assert net.cfg.width == 6 and not any(p.requires_grad for p in net.parameters())
    assert PatchGan.load(run / "discriminator.safetensors").cfg.width == 4


def test_a_broken_off_run_goes_on_as_if_it_had_not_been(make_pairs: Callable[..., Path]) -> None:
    root = make_pairs(train=6, valid=3)
    settings = [*arguments(root), "train.save_every=2"]
    assert train.main([*settings, "train.max_steps=4", "name=whole"]) == 0
    for steps in (2, 4):
        assert train.main([*settings, f"train.max_steps={steps}", "name=parts"]) == 0
    for file in ("model.safetensors", "discriminator.safetensors"):
        whole, parts = (read_state_dict(root / "runs" / name / file)[0] for name in ("whole", "parts"))
        assert all(torch.equal(whole[key], parts[key]) for key in whole), file


def test_fine_tuning_keeps_the_meaning_of_the_ethnicities(
    make_pairs: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_pairs(train=2, valid=2)
    begun = lively(GeneratorConfig(image_size=64, width=6, levels=4, ethnicities=["Martian", "Asian"]))
    begun.save(root / "begun.safetensors", torch.float16)
    write_state_dict(root / "bare.safetensors", begun.state_dict(), {})
    settings = [*arguments(root), f"init={root}/begun.safetensors", "train.max_steps=1"]
    key = "pix2pix.generator.ethnicities"
    for more in ([], [f"{key}=[Martian,Asian]"]):
        stage = build_stage(parse_command_line(ExperimentConfig, [*settings, *more]))
        assert isinstance(stage, Pix2PixStage) and stage.net.cfg.ethnicities == ["Martian", "Asian"]
    torch.testing.assert_close(stage.net.state_dict(), begun.state_dict(), atol=2e-3, rtol=2e-3)
    assert all(p.requires_grad for p in stage.net.parameters())
    for setting, message in (
        (f"{key}=[Asian,Martian]", f"{key}: got Asian, Martian"),
        (f"init={root}/bare.safetensors", "bare.safetensors is no Pix2Pix; give what"),
        ("pix2pix.generator.width=8", "the weights do not fit Generator"),
    ):
        assert train.main([*settings, setting]) == 2
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error and not (root / "runs").exists()


# ---------------------------------------------------------------- its file, and evaluate.py
EVALUATION = (
    "recognisers=[picture]",
    "device=cpu",
    "precision=fp32",
    "bootstrap=100",
    "name=run",
    "num_probes=0",
)


def test_it_is_a_baseline_with_its_control(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = trained / "runs/p/model.safetensors"
    assert evaluate.main([f"data.root={trained}", *EVALUATION, f"pix2pix={weights}"]) == 0
    results = read_results(Path("results/run"))
    own, other = results.method("pix2pix"), results.method("pix2pix_shuffled")
    assert own is not None and own.kind == "baseline" and own.label == "Pix2Pix"
    assert other is not None and other.kind == "control"
    assert {"ridge", "permuted"} <= {method.name for method in results.methods}
    assert any(file.path == str(weights) for file in results.subject.files)
    pictures = {p.name: p.read_bytes() for p in Path("results/run/faces/pix2pix").glob("*.png")}
    lent = {p.name: p.read_bytes() for p in Path("results/run/faces/pix2pix_shuffled").glob("*.png")}
    assert len(pictures) == 4 and all(pictures[name] != lent[name] for name in lent) and lent
    assert "Pix2Pix" in capsys.readouterr().out


def test_the_right_picture_is_drawn_for_each_probe(trained: Path, tmp_path: Path) -> None:
    translator = Translator.look(trained / "runs/p/model.safetensors")
    skull = trained / "pairedCS/skull"
    cases = [Case(f"test_{i}", skull / f"test_{i}.png", who) for i, who in enumerate((MAN, WOMAN, MAN))]
    pairs = [(case, tmp_path / f"{case.name}.png") for case in cases]
    done: list[int] = []
    translator.draw(pairs, 2, torch.device("cpu"), done.append)
    assert sum(done) == 3
    for case, target in pairs:
        x = torch.from_numpy(read_grey(case.skull_path, 64)).float().expand(1, 3, 64, 64) / 255
        with torch.no_grad():
            face = translator.net(x, encode([case.biometrics], ["Asian"]))
        expected = ((face[0].mean(0) + 1) / 2 * 255).numpy()
        assert abs(read_grey(target, 64) - expected).max() < 1.6


def test_what_is_no_picture_is_not_written(trained: Path, tmp_path: Path) -> None:
    translator = Translator.look(trained / "runs/p/model.safetensors")
    next(translator.net.parameters()).data.fill_(float("nan"))
    pair = Case("a", trained / "pairedCS/skull/test_0.png", MAN), tmp_path / "a.png"
    with pytest.raises(ReconstructionError, match=r"model.safetensors gave values that are no numbers"):
        translator.draw([pair], 1, torch.device("cpu"), lambda num: None)
    assert not pair[1].exists()


def test_what_cannot_be_evaluated_is_film(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = trained / "runs/p/model.safetensors"
    state, metadata = read_state_dict(weights)
    other = {**json.loads(metadata["pix2pix"]), "ethnicities": ["Martian"]}
    write_state_dict(tmp_path / "other.safetensors", state, {"pix2pix": json.dumps(other)})
    for setting, message in (
        (f"pix2pix={trained / 'runs/p/discriminator.safetensors'}", "is no Pix2Pix"),
        ("methods=[pix2pix]", "pix2pix=FILE"),
        ("pix2pix=other.safetensors", "was trained on Martian"),
    ):
        assert evaluate.main([f"data.root={trained}", *EVALUATION, setting]) == 2
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error and not (tmp_path / "results").exists()
