"""A run that stops and goes on, its batches, averages and files."""

from __future__ import annotations

import csv
import itertools
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from conftest import tiny_model_config, write_pairs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import train
from cldm.controlled import load_model
from data.manifest import ManifestError
from ldm.checkpoint import read_state_dict, write_state_dict
from ldm.config import ModelConfig
from muti_control.optim import OptimConfig
from muti_control.training.config import ExperimentConfig
from muti_control.training.pictures import energy_distance, psnr, rank_one
from muti_control.training.run import prepare
from muti_control.training.seeded_batches import EndlessBatches, generator
from settings.messages import ConfigError
from tests.tiny_stages import make_experiment

ROOT = Path(__file__).resolve().parent.parent
MakeConfig = Callable[..., ExperimentConfig]


def take(batches: EndlessBatches, num: int) -> list[list[int]]:
    return list(itertools.islice(batches, num))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(1, 6), st.integers(0, 30))
def test_batches_go_on_where_they_stopped(num_items: int, batch_size: int, first: int) -> None:
    whole = take(EndlessBatches(num_items, batch_size, seed=1), first + 5)
    assert take(EndlessBatches(num_items, batch_size, seed=1, first_batch=first), 5) == whole[first:]


def test_every_pass_has_every_item_once_across_ranks() -> None:
    ranks = [take(EndlessBatches(12, 2, seed=3, rank=r, world_size=2), 6) for r in range(2)]
    indices = [index for step in zip(*ranks, strict=True) for batch in step for index in batch]
    assert sorted(indices[:12]) == sorted(indices[12:]) == list(range(12))
    assert indices[:12] != indices[12:]


def test_streams_are_independent_and_repeatable() -> None:
    keys = [(0, 0, 5, "eps"), (1, 0, 5, "eps"), (0, 1, 5, "eps"), (0, 0, 6, "eps"), (0, 0, 5, "t")]
    draws, again = ([torch.rand(1, generator=generator(*key)).item() for key in keys] for _ in range(2))
    assert draws == again and len(set(draws)) == 5


def test_picture_metrics() -> None:
    x = torch.rand(64, 16, generator=torch.Generator().manual_seed(0))
    assert float(energy_distance(x, x + 1)) > 10 * abs(float(energy_distance(x[:32], x[32:])))
    pictures = torch.full((1, 3, 4, 4), 0.5)
    assert float(psnr(pictures, pictures + 0.1)) == pytest.approx(20.0, abs=1e-3)
    assert (float(rank_one(x, x)), float(rank_one(x, x.roll(1, 0)))) == (1.0, 0.0)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"), train=6, valid=2)


def base_stage(pairs: Path, out: Path, max_steps: int, **more: Any) -> ExperimentConfig:
    """Return the settings of a base stage with two micro-batches a step, saved every second step."""
    steps = {"max_steps": max_steps, "accumulate": 2, "val_every": 4, "save_every": 2, "export": "last"}
    more |= {"out": str(out), "model": tiny_model_config(), "optim": OptimConfig(lr=1e-2, warmup_steps=2)}
    return make_experiment("base", pairs, steps, **more)


@pytest.fixture
def experiment(pairs: Path, tmp_path: Path) -> MakeConfig:
    """experiment(max_steps, ...): of the test's own run."""
    return partial(base_stage, pairs, tmp_path)


def fit(cfg: ExperimentConfig) -> Path:
    exported = prepare(cfg).fit()
    assert exported is not None
    return exported


@pytest.fixture(scope="module")
def unbroken(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return read_state_dict(fit(base_stage(pairs, tmp_path_factory.mktemp("unbroken"), 6)))[0]


class Crash(RuntimeError):
    """Stands in for a machine that goes down."""


def crash() -> None:
    raise Crash


class At(pl.Callback):
    """Calls ``action`` after one micro-batch of the start it is part of."""

    def __init__(self, micro_batch: int, action: Callable[[], object]) -> None:
        self.countdown, self.action = micro_batch, action

    def on_train_batch_end(self, *args: object, **kwargs: object) -> None:
        self.countdown -= 1
        if self.countdown == 0:
            self.action()


@pytest.mark.parametrize("stops", [[("ask", 5), ("crash", 1)], [("crash", 7), ("ask", 3)]])
def test_a_continued_run_equals_an_unbroken_one(
    experiment: MakeConfig, unbroken: dict[str, Tensor], stops: list[tuple[str, int]]
) -> None:
    """Stops fall between and within steps; a request to stop waits for the end of the step."""
    for how, micro_batch in stops:
        training = prepare(experiment(6))
        save_last, before = training.save_last, training.steps_done
        if how == "crash":
            training.trainer.callbacks.insert(0, At(micro_batch, crash))
            with pytest.raises(Crash):
                training.fit()
        else:
            ask = At(micro_batch, lambda x=save_last: setattr(x, "signal", signal.SIGTERM))
            training.trainer.callbacks.insert(0, ask)
            assert training.fit() is None
            saved = torch.load(save_last.path, weights_only=True)["updates"]
            assert saved == before + (micro_batch + 1) // 2
    exported = fit(experiment(6))
    continued, metadata = read_state_dict(exported)
    assert metadata["step"] == "6"
    assert all(torch.equal(value, continued[name]) for name, value in unbroken.items())
    logs = exported.parent.glob("csv/version_*/metrics.csv")
    logged = {row["step"] for log in logs for row in csv.DictReader(log.open())}
    assert {"0", "5"} <= logged  # of the first start and of the last: none overwrote another's


def test_a_damaged_checkpoint_costs_a_few_steps_and_no_more(
    experiment: MakeConfig,
    unbroken: dict[str, Tensor],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The run goes on from the file before, keeps that file, and ends where an unbroken one does."""
    folder = fit(experiment(4)).parent / "checkpoints"
    last = folder / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1000])
    training = prepare(experiment(6))
    assert (training.resumed, training.steps_done) == (folder / "previous.ckpt", 2)
    assert "last.ckpt" in capsys.readouterr().err
    exported = training.fit()
    assert exported is not None and (folder / "damaged.ckpt").is_file()
    names = ("previous.ckpt", "last.ckpt")
    assert [torch.load(folder / name, weights_only=True)["updates"] for name in names] == [4, 6]
    continued, _ = read_state_dict(exported)
    assert all(torch.equal(value, continued[name]) for name, value in unbroken.items())


def test_the_base_model_is_identified_by_its_hash(
    experiment: MakeConfig, weights: Path, tmp_path: Path
) -> None:
    init = tmp_path / "base.safetensors"
    init.write_bytes(weights.read_bytes())
    fit(experiment(2, init=str(init)))
    assert prepare(experiment(4, init=str(init))).steps_done == 2
    state, metadata = read_state_dict(weights)
    name = next(iter(state))
    write_state_dict(init, {**state, name: state[name] + 1e-3}, metadata)
    with pytest.raises(ConfigError, match=r"^init: .*base\.safetensors"):
        prepare(experiment(4, init=str(init)))


def test_checkpoints_hold_the_weights_and_their_averages(experiment: MakeConfig) -> None:
    """The file to go on from holds both, that of a validation the averages alone: they are what is exported."""
    exported = fit(experiment(4))
    folder = exported.parent / "checkpoints"
    last, best = (torch.load(folder / name, weights_only=True) for name in ("last.ckpt", "best-0000004.ckpt"))
    own = {key.removeprefix("net."): value for key, value in last["state_dict"].items()}
    average, averages_of_best = last["ema"]["average"], best["ema"]["average"]
    assert own.keys() == average.keys() == averages_of_best.keys()
    assert any(not torch.allclose(own[key], average[key]) for key in own)
    state, _ = read_state_dict(exported)
    for key, value in average.items():
        assert torch.equal(state[key], value) and torch.equal(averages_of_best[key], value)


def test_a_run_is_continued_only_as_it_began(experiment: MakeConfig) -> None:
    last = fit(experiment(2)).parent / "checkpoints/last.ckpt"
    before = last.stat().st_mtime_ns
    fit(experiment(2))  # is finished
    assert last.stat().st_mtime_ns == before
    for part, key, value in (("train", "seed", 5), ("train", "batch_size", 3), ("optim", "lr", 0.5)):
        cfg = experiment(4)
        setattr(getattr(cfg, part), key, value)
        with pytest.raises(ConfigError, match=rf"^{part}\.{key}: "):
            prepare(cfg)
    with pytest.raises(ConfigError, match="name=NEW"):
        prepare(experiment(4, resume=False))


def test_weights_that_are_not_finite_do_not_replace_the_last_checkpoint(
    experiment: MakeConfig,
) -> None:
    training = prepare(experiment(6))
    weight = next(iter(training.stage.trained_parameters().values()))
    training.trainer.callbacks.append(At(5, lambda: weight.data.fill_(float("nan"))))
    with pytest.raises(FloatingPointError):
        training.fit()
    state = torch.load(training.save_last.path, weights_only=True)["state_dict"]
    assert all(bool(torch.isfinite(value).all()) for value in state.values())


def test_the_stages_hand_on_to_each_other(trained: Callable[[str], Path]) -> None:
    """autoencoder -> grain -> base -> tool_add_control.py -> control: each changes its own part only."""
    files = [trained(stage) / "model.safetensors" for stage in ("autoencoder", "base", "control")]
    files.insert(2, files[0].parent.parent / "control_ini.safetensors")
    autoencoder, base, start, control = (read_state_dict(path)[0] for path in files)

    def changed(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
        names = {name for name in one.keys() & other.keys() if not torch.equal(one[name], other[name])}
        return {".".join(name.split(".")[: 2 if name.startswith("model.") else 1]) for name in names}

    assert changed(autoencoder, base) == {"model.diffusion_model", "cond_stage_model"}
    assert changed(base, start) == set() and changed(start, control) == {"control_model"}
    assert len(list((trained("control") / "images").iterdir())) == 2
    model, metadata = load_model(files[3])
    assert metadata["stage"] == "control"
    assert abs(model.cfg.scale_factor - ModelConfig().scale_factor) > 1e-4  # measured, not the default


@pytest.mark.parametrize("stage", ["autoencoder", "base", "control"])
def test_missing_files_are_named_with_their_remedy(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train.main([str(ROOT / f"configs/demo/{stage}.yaml"), "data.root=nowhere", "init=none.ckpt"]) == 2
    message = capsys.readouterr().err
    assert "data.root: " in message and "init: " in message
    assert ("python t" in message) == (stage != "autoencoder")  # where the weights come from
    assert list(tmp_path.iterdir()) == []


def test_folders_are_settings_and_no_subject_is_in_both_lists(
    make_pairs: Callable[..., Path], experiment: MakeConfig
) -> None:
    root, cfg = make_pairs(train=4, valid=2), experiment(1)
    (root / "pairedCS/skull").rename(root / "pairedCS/bones")
    cfg.data.root, cfg.data.skull_folder, cfg.data.face_folder = str(root), "bones", "craniofacial"
    assert prepare(cfg).steps_done == 0
    lists = root / "split_data"
    (lists / "valid.json").write_bytes((lists / "train.json").read_bytes())
    with pytest.raises(ManifestError, match="'train0'"):
        prepare(cfg)
