"""The engine: batches, averages, schedules, and a run that is stopped and goes on."""

from __future__ import annotations

import csv
import itertools
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tool_add_control
import train
from cldm.config import SamplingConfig
from cldm.controlled import load_model
from data.manifest import ManifestError
from ldm.checkpoint import read_state_dict, write_state_dict
from ldm.config import ModelConfig
from muti_control.optim import OptimConfig
from muti_control.training.config import DataConfig, ExperimentConfig, StageName, TrainConfig
from muti_control.training.ema import Ema
from muti_control.training.optimizers import learning_rate_factor
from muti_control.training.pictures import energy_distance, psnr, rank_one
from muti_control.training.run import prepare
from muti_control.training.seeded_batches import EndlessBatches, generator
from settings.messages import ConfigError

ROOT = Path(__file__).resolve().parent.parent


def run(cfg: ExperimentConfig) -> Path:
    exported = prepare(cfg).fit()
    assert exported is not None
    return exported


def take(batches: EndlessBatches, num: int) -> list[list[int]]:
    return list(itertools.islice(batches, num))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(1, 6), st.integers(0, 30))
def test_batches_go_on_where_they_stopped(num_items: int, batch_size: int, first: int) -> None:
    whole = take(EndlessBatches(num_items, batch_size, seed=1), first + 5)
    assert take(EndlessBatches(num_items, batch_size, seed=1, first_batch=first), 5) == whole[first:]


def test_every_pass_shows_every_item_once_across_ranks() -> None:
    ranks = [take(EndlessBatches(12, 2, seed=3, rank=r, world_size=2), 6) for r in range(2)]
    seen = [index for step in zip(*ranks, strict=True) for batch in step for index in batch]
    assert sorted(seen[:12]) == list(range(12))
    assert sorted(seen[12:]) == list(range(12))
    assert seen[:12] != seen[12:]


def test_streams_are_independent_and_repeatable() -> None:
    def draw(*key: int, stream: str = "eps") -> float:
        return torch.rand(1, generator=generator(*key, stream)).item()

    assert draw(0, 0, 5) == draw(0, 0, 5)
    others = [draw(1, 0, 5), draw(0, 1, 5), draw(0, 0, 6), draw(0, 0, 5, stream="t")]
    assert len({draw(0, 0, 5), *others}) == 5


def test_learning_rate_factor() -> None:
    cosine = OptimConfig(warmup_steps=10, schedule="cosine", final_lr_ratio=0.1)
    assert learning_rate_factor(0, cosine, 110) == pytest.approx(0.1)
    assert learning_rate_factor(10, cosine, 110) == pytest.approx(1.0)
    assert learning_rate_factor(60, cosine, 110) == pytest.approx(0.55)
    assert learning_rate_factor(110, cosine, 110) == pytest.approx(0.1)
    assert learning_rate_factor(99, OptimConfig(warmup_steps=0), 100) == 1.0


def test_ema_follows_and_gives_back() -> None:
    layer = nn.Linear(2, 2, bias=False)
    parameters = dict(layer.named_parameters())
    nn.init.zeros_(layer.weight)
    ema = Ema(parameters, decay=0.5)
    nn.init.ones_(layer.weight)
    ema.update(parameters)  # decay min(0.5, 2 / 11)
    assert torch.allclose(ema.average["weight"], torch.full((2, 2), 1 - 2 / 11))
    with ema.applied(parameters):
        assert torch.allclose(layer.weight, torch.full((2, 2), 1 - 2 / 11))
    assert torch.equal(layer.weight, torch.ones(2, 2))


def test_picture_metrics() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.rand(64, 16, generator=g)
    assert float(energy_distance(x, x + 1)) > 10 * abs(float(energy_distance(x[:32], x[32:])))
    pictures = torch.full((1, 3, 4, 4), 0.5)
    assert float(psnr(pictures, pictures + 0.1)) == pytest.approx(20.0, abs=1e-3)
    assert float(rank_one(x, x)) == 1.0
    assert float(rank_one(x, x.roll(1, 0))) == 0.0


@pytest.mark.parametrize(
    ("own", "key", "value"),
    [
        ("control", "losses.lm", 0.3),
        ("control", "partial.share", 0.25),
        ("control", "skull.dropout", 0.2),
        ("control", "landmarks.predicted", ["p.npz"]),
        ("autoencoder", "autoencoder.gan", 1.0),
        ("autoencoder", "autoencoder.texture_weight", 1.0),
    ],
)
def test_a_setting_that_a_stage_does_not_heed_is_refused(own: str, key: str, value: object) -> None:
    part, name = key.split(".")
    for stage in get_args(StageName):
        settings: dict[str, Any] = {"stage": stage, "name": "x", "init": "x", part: {name: value}}
        if stage == own:
            ExperimentConfig.of(**settings)
            continue
        if (stage, key) == ("pipnet", "partial.share"):
            ExperimentConfig.of(**settings, pipnet={"role": "skull"})  # which reads skulls as well
        with pytest.raises(
            ConfigError, match=rf"^{part}.*expected none: {part}\.\* belong to the {own} stage"
        ):
            ExperimentConfig.of(**settings)


@pytest.fixture
def experiment(tiny_config: ModelConfig, make_pairs: Callable[..., Path]) -> Callable[..., ExperimentConfig]:
    root = make_pairs(train=6, valid=2)

    def make(name: str, max_steps: int) -> ExperimentConfig:
        return ExperimentConfig(
            stage="base",
            name=name,
            out=str(root / "runs"),
            model=tiny_config,
            data=DataConfig(root=str(root)),
            train=TrainConfig(
                max_steps=max_steps, batch_size=2, accumulate=2, val_every=4, save_every=2, num_valid=2,
                precision="32-true", accelerator="cpu", export="last",
            ),
            optim=OptimConfig(lr=1e-2, warmup_steps=2),
            sampling=SamplingConfig(steps=2, control_scales=[1.0]),
        )  # fmt: skip

    return make


class Crash(RuntimeError):
    """Stands in for a machine that goes down."""


class At(pl.Callback):
    """Calls ``action`` after one micro-batch of the start it is part of."""

    def __init__(self, micro_batch: int, action: Callable[[], None]) -> None:
        self.countdown, self.action = micro_batch, action

    def on_train_batch_end(self, *args: object, **kwargs: object) -> None:
        self.countdown -= 1
        if self.countdown == 0:
            self.action()


def crash() -> None:
    raise Crash


@pytest.mark.parametrize(
    "stops", [[("crash", 7)], [("ask", 3)], [("ask", 5), ("crash", 1)], [("crash", 6), ("crash", 4)]]
)
def test_a_continued_run_equals_an_unbroken_one(
    experiment: Callable[..., ExperimentConfig], stops: list[tuple[str, int]]
) -> None:
    """Two micro-batches a step, a checkpoint every second step; stops fall between and within steps."""
    unbroken, _ = read_state_dict(run(experiment("unbroken", 6)))
    for how, micro_batch in stops:
        training = prepare(experiment("broken", 6))
        if how == "crash":
            training.trainer.callbacks.insert(0, At(micro_batch, crash))
            with pytest.raises(Crash):
                training.fit()
        else:
            save_last = training.save_last
            training.trainer.callbacks.insert(
                0, At(micro_batch, lambda asked=save_last: setattr(asked, "signal", signal.SIGTERM))
            )
            assert training.fit() is None
            checkpoint = torch.load(save_last.path, weights_only=True)
            assert checkpoint["updates"] == (micro_batch + 1) // 2
    exported = run(experiment("broken", 6))
    continued, metadata = read_state_dict(exported)
    assert metadata["step"] == "6"
    for name, value in unbroken.items():
        assert torch.equal(value, continued[name]), name
    logged = {
        row["step"] for start in exported.parent.glob("csv/version_*/metrics.csv") for row in rows_of(start)
    }
    assert {"0", "5"} <= logged  # of the first start and of the last: none overwrote another's


def test_a_damaged_checkpoint_costs_a_few_steps_and_no_more(
    experiment: Callable[..., ExperimentConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    """The run goes on from the file before, keeps that file, and ends where an unbroken one does."""
    unbroken, _ = read_state_dict(run(experiment("unbroken", 6)))
    run(experiment("cut", 4))
    folder = Path(experiment("cut", 4).run_dir) / "checkpoints"
    last = folder / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1000])
    training = prepare(experiment("cut", 6))
    assert (training.resumed, training.steps_done) == (folder / "previous.ckpt", 2)
    assert "last.ckpt" in capsys.readouterr().err
    exported = training.fit()
    assert exported is not None
    assert {"damaged.ckpt", "last.ckpt", "previous.ckpt"} <= {path.name for path in folder.iterdir()}
    assert [torch.load(folder / f"{n}.ckpt", weights_only=True)["updates"] for n in ("previous", "last")] == [
        4,
        6,
    ]
    continued, _ = read_state_dict(exported)
    assert all(torch.equal(value, continued[name]) for name, value in unbroken.items())


def test_the_base_model_is_known_by_its_hash(
    experiment: Callable[..., ExperimentConfig], weights: Path, tmp_path: Path
) -> None:
    cfg = experiment("based", 2)
    cfg.init = str(tmp_path / "base.safetensors")
    Path(cfg.init).write_bytes(weights.read_bytes())
    run(cfg)
    cfg.train.max_steps = 4
    assert prepare(cfg).steps_done == 2
    state, metadata = read_state_dict(weights)
    state = {name: value.clone() for name, value in state.items()}
    next(iter(state.values())).add_(1e-3)
    write_state_dict(cfg.init, state, metadata)
    with pytest.raises(
        ConfigError, match=r"init: .*base.safetensors is not the file the run began with \(sha256"
    ):
        prepare(cfg)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_checkpoints_hold_the_weights_and_their_averages(experiment: Callable[..., ExperimentConfig]) -> None:
    """The file to go on from holds both, that of a validation the averages alone: they are what is exported."""
    exported = run(experiment("kept", 4))
    folder = exported.parent / "checkpoints"
    last, best = (torch.load(folder / name, weights_only=True) for name in ("last.ckpt", "best-0000004.ckpt"))
    own = {key.removeprefix("net."): value for key, value in last["state_dict"].items()}
    average = last["ema"]["average"]
    assert own.keys() == average.keys() == best["ema"]["average"].keys()
    assert any(not torch.allclose(own[key], average[key]) for key in own)
    state, _ = read_state_dict(exported)
    assert all(torch.equal(state[key], average[key]) for key in average)
    assert all(torch.equal(best["ema"]["average"][key], average[key]) for key in average)


def test_a_run_is_continued_only_as_it_began(experiment: Callable[..., ExperimentConfig]) -> None:
    run(experiment("begun", 2))
    finished = prepare(experiment("begun", 2))
    before = torch.load(finished.save_last.path, weights_only=True)["updates"]
    finished.fit()  # says that it is finished
    assert torch.load(finished.save_last.path, weights_only=True)["updates"] == before
    for part, key, value in (("train", "seed", 5), ("train", "batch_size", 3), ("optim", "lr", 0.5)):
        cfg = experiment("begun", 4)
        setattr(getattr(cfg, part), key, value)
        with pytest.raises(ConfigError, match=f"{part}.{key}: was"):
            prepare(cfg)
    cfg = experiment("begun", 4)
    cfg.resume = False
    with pytest.raises(ConfigError, match="name=NEW"):
        prepare(cfg)


def test_weights_that_are_not_finite_do_not_replace_the_last_checkpoint(
    experiment: Callable[..., ExperimentConfig],
) -> None:
    training = prepare(experiment("diverged", 6))
    weight = next(iter(training.stage.trained_parameters().values()))
    training.trainer.callbacks.append(At(5, lambda: weight.data.fill_(float("nan"))))
    with pytest.raises(FloatingPointError, match="not finite"):
        training.fit()
    state = torch.load(training.save_last.path, weights_only=True)["state_dict"]
    assert all(bool(torch.isfinite(value).all()) for value in state.values())


def test_the_stages_hand_on_to_each_other(
    tiny_config: ModelConfig, make_pairs: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """autoencoder -> base -> tool_add_control.py -> control, each validating after every step."""
    root = make_pairs(train=8, valid=2)

    def stage(name: str, init: Path | None) -> ExperimentConfig:
        return ExperimentConfig(
            stage=name, name=name, out=str(root / "runs"), init=None if init is None else str(init),
            model=tiny_config if init is None else None,
            data=DataConfig(root=str(root)),
            train=TrainConfig(max_steps=6, batch_size=2, val_every=1, save_every=2, num_valid=2, accelerator="cpu"),
            optim=OptimConfig(lr=1e-2, warmup_steps=0),
            sampling=SamplingConfig(steps=2, control_scales=[1.0]),
        )  # fmt: skip

    autoencoder = run(stage("autoencoder", None))
    base = run(stage("base", autoencoder))
    with_control = root / "ini.safetensors"
    assert tool_add_control.main([str(base), str(with_control)]) == 0
    control = run(stage("control", with_control))
    first, base_state, start, end = (
        read_state_dict(p)[0] for p in (autoencoder, base, with_control, control)
    )
    for name, value in end.items():
        frozen = not name.startswith("control_model.")
        assert torch.equal(value, start[name]) or not frozen, name
        if name.startswith("first_stage_model."):
            assert torch.equal(value, first[name]), name
    changed = [
        name for name in base_state if name in first and not torch.equal(base_state[name], first[name])
    ]
    assert any(name.startswith("model.diffusion_model.") for name in changed)
    assert any(name.startswith("cond_stage_model.") for name in changed)
    assert any(not torch.equal(end[name], start[name]) for name in end)
    assert len(list((root / "runs" / "control" / "images").iterdir())) == 6
    model, metadata = load_model(control)
    assert metadata["stage"] == "control"
    assert abs(float(model.cfg.scale_factor) - tiny_config.scale_factor) > 1e-4  # measured, not the default


@pytest.mark.parametrize("stage", ["autoencoder", "base", "control"])
def test_missing_files_are_named_with_their_remedy(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train.main([str(ROOT / f"configs/demo/{stage}.yaml"), "data.root=nowhere", "init=none.ckpt"]) == 2
    message = capsys.readouterr().err
    assert "python -m data.cohort" in message
    assert ("python t" in message) == (stage != "autoencoder")  # where the weights come from
    assert list(tmp_path.iterdir()) == []


def test_folders_are_config_and_no_subject_is_in_both_lists(
    experiment: Callable[..., ExperimentConfig],
) -> None:
    cfg = experiment("folders", 1)
    root = Path(cfg.data.root)
    (root / "pairedCS/skull").rename(root / "pairedCS/bones")
    cfg.data.skull_folder, cfg.data.face_folder = "bones", "craniofacial"
    assert prepare(cfg).steps_done == 0
    lists = root / "split_data"
    (lists / "valid.json").write_bytes((lists / "train.json").read_bytes())
    with pytest.raises(ManifestError, match="'train0' is in train as well"):
        prepare(cfg)
