"""Losses of the decoded face: their gradients, terms and weights."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ldm.autoencoder import DiagonalGaussian
from ldm.config import ControlConfig, LandmarkConfig, ModelConfig, TextureConfig
from ldm.schedule import predict_x0, q_sample
from muti_control.losses.config import DiscriminatorConfig, LossesConfig
from muti_control.losses.decoding import gated_rows
from muti_control.losses.picture import feature_matching, landmark_error
from muti_control.losses.weights import LossWeights, gradient_norms
from muti_control.networks.config import PatchGanConfig, PipNetConfig
from muti_control.networks.pipnet.network import PipNet
from muti_control.networks.pipnet.reader import LandmarkReader
from muti_control.training.run import build_stage
from muti_control.training.stages.control import ControlStage
from tests.landmark_pairs import LAYOUT, write_landmark_pairs
from tests.tiny_stages import make_experiment

TERMS = ("gan", "fm", "lm")
SMALL = DiscriminatorConfig(network=PatchGanConfig(width=8))
MakeStage = Callable[..., ControlStage]


def write_reader(path: Path, role: str = "face") -> Path:
    """A landmark network of random weights that looks at pictures of another size than they come in."""
    torch.manual_seed(1)
    net = PipNet(PipNetConfig(num_landmarks=len(LAYOUT), num_neighbours=4, image_size=96, width=0.125))
    LandmarkReader(net, LAYOUT, role).save(path)
    return path


def lend_exemplars(root: Path, *splits: str) -> None:
    """Every pair's style is that of one picture of noise."""
    noise = np.random.default_rng(0).integers(80, 256, (64, 64)).astype(np.uint8)
    Image.fromarray(noise).save(root / "pairedCS/craniofacial/style.png")
    for split in splits:
        path = root / "split_data" / f"{split}.json"
        lines = [json.loads(line) | {"texture": "style.png"} for line in path.read_text().splitlines()]
        path.write_text("\n".join(map(json.dumps, lines)))


@pytest.fixture
def stage_of(tiny_config: ModelConfig, tmp_path: Path) -> MakeStage:
    """stage_of(gan=1.0, ...): every branch, no zero layer, the noise loss off, all samples decoded."""
    root = write_landmark_pairs(tmp_path / "pairs", train=4, valid=2)
    lend_exemplars(root, "train", "valid")
    reader = write_reader(tmp_path / "reader.safetensors")
    tiny_config.control.landmarks = LandmarkConfig(num_points=len(LAYOUT), widths=[8])
    tiny_config.control.texture = TextureConfig(patch_size=9, num_patches=8, width=8)

    def build(**losses: Any) -> ControlStage:
        settings = {
            "by": "weight",
            "max_t": 999,
            "pipnet": str(reader),
            "measure_every": 0,
            "discriminator": SMALL,
        }
        parts = {"model": tiny_config, "losses": LossesConfig(**settings | losses)}
        cfg = make_experiment("control", root, {"batch_size": 4}, init="none", **parts)
        cfg.init = None  # fresh weights, which no config file may ask for
        cfg.landmarks.dropout = cfg.texture.dropout = 0.0
        stage = build_stage(cfg)
        assert isinstance(stage, ControlStage)
        with torch.no_grad():
            for p in stage.net.parameters():
                p.add_(0.05 * torch.randn_like(p))
        cfg.losses.noise = 0.0  # which no config file may say: the terms by themselves
        return stage

    return build


def batch_of(stage: ControlStage) -> dict[str, Any]:
    return torch.utils.data.default_collate([stage.train_set[i] for i in range(4)])


def noised(stage: ControlStage, batch: dict[str, Any]) -> tuple[Tensor, ...]:
    """Return z, t, x_t, eps and eps_hat as the step computes them before its losses, from the same draws."""
    model = stage.net
    z = model.cfg.scale_factor * DiagonalGaussian(batch["moments"]).sample(stage.draw("posterior"))
    t = torch.randint(0, 1000, (len(z),), generator=stage.draw("t"))
    eps = torch.randn(z.shape, generator=stage.draw("eps"))
    x_t = q_sample(z, t, eps, model.alphas_cumprod)
    dropped = torch.rand(len(z), generator=stage.draw("dropout")) < stage.cfg.diffusion.prompt_dropout
    prompts = ["" if drop else prompt for prompt, drop in zip(batch["prompt"], dropped, strict=True)]
    return z, t, x_t, eps, stage.predict(x_t, t, model.encode_text(prompts), stage.conditions_of(batch))


def gradients(stage: ControlStage) -> dict[str, Tensor | None]:
    stage.net.zero_grad(set_to_none=True)
    stage.loss_of(batch_of(stage))["loss"].backward()
    return {name: p.grad for name, p in stage.net.named_parameters()}


def untouched(stage: ControlStage) -> bool:
    """Return whether neither the discriminator nor the landmark network holds a gradient."""
    assert stage.picture_losses is not None
    networks = (stage.picture_losses.discriminator, stage.picture_losses.reader)
    return all(p.grad is None for net in networks if net is not None for p in net.parameters())


# ---------------------------------------------------------------- who learns from what
@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("real", ["decoded", "picture"])
def test_every_trained_tensor_learns_from_every_loss_and_no_frozen_one(
    stage_of: MakeStage, term: str, real: str
) -> None:
    stage = stage_of(**{term: 1.0}, real=real)
    branches = {name for name, field in ControlConfig.model_fields.items() if field.default is None}
    assert set(stage.net.control_model.branches) == branches, "give this test's model the new branch too"
    for name, grad in gradients(stage).items():
        if name.startswith("control_model."):
            assert grad is not None and torch.isfinite(grad).all() and grad.abs().max() > 0, name
        else:
            assert grad is None, name
    assert untouched(stage)


# ---------------------------------------------------------------- the gradient is that of the whole
@pytest.mark.parametrize(("chunk", "recompute"), [(1, True), (3, False)])
def test_chunks_give_the_gradient_of_one_plain_backward_pass(
    stage_of: MakeStage, chunk: int, recompute: bool
) -> None:
    weights = {"gan": 0.7, "fm": 2.0, "lm": 30.0}
    stage = stage_of(**weights, chunk=chunk, recompute=recompute)
    stage.cfg.losses.noise = 0.5
    batch, losses = batch_of(stage), stage.picture_losses
    assert losses is not None
    z, t, x_t, eps, eps_hat = noised(stage, batch)
    stage.cfg.losses.max_t = int(t.sort().values[2])
    gate = t <= stage.cfg.losses.max_t
    assert int(gate.sum()) == 3
    x_0_hat = predict_x0(x_t, t, eps_hat, stage.net.alphas_cumprod)[gate]
    faces, real = (
        stage.net.first_stage_model.decode(x / stage.net.cfg.scale_factor) for x in (x_0_hat, z[gate])
    )
    terms = losses.terms(faces, real.detach(), batch["skull"][gate])
    plain = 0.5 * F.mse_loss(eps_hat, eps)
    plain = plain + sum(weights[name] * value.sum() / 4 for name, value in terms.items())
    parameters = stage.trained_parameters()
    expected = dict(zip(parameters, torch.autograd.grad(plain, list(parameters.values())), strict=True))
    scalars = stage.loss_of(batch)
    assert float(scalars["loss"].detach()) == pytest.approx(float(plain.detach()), rel=1e-5)
    assert float(scalars["gated"]) == 3 / 4
    chunked = gradients(stage)
    for name, grad in expected.items():
        limit = 1e-6 * float(grad.abs().max()) + 1e-9
        assert torch.allclose(chunked[name], grad, rtol=1e-3, atol=limit), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_the_gradient_is_nearly_the_same(stage_of: MakeStage, dtype: torch.dtype) -> None:
    stage = stage_of(gan=1.0, fm=1.0, lm=1.0)
    exact = gradients(stage)
    with torch.autocast("cpu", dtype):
        scalars = stage.loss_of(batch_of(stage))
    assert scalars["loss"].dtype == torch.float32
    parameters = stage.trained_parameters()
    rough = torch.autograd.grad(scalars["loss"], list(parameters.values()))
    one = torch.cat([exact[name].flatten() for name in parameters])  # type: ignore[union-attr]
    other = torch.cat([grad.flatten() for grad in rough])
    assert torch.isfinite(other).all()
    assert float(F.cosine_similarity(one, other, dim=0)) > 0.9


# ---------------------------------------------------------------- what the terms are
def test_feature_matching_is_an_angle_over_channels_at_each_position() -> None:
    torch.manual_seed(0)
    shapes = [[(5, 4), (7, 3), (1, 2)], [(5, 2), (1, 1)]]
    real = [[torch.randn(2, channels, side, side) for channels, side in scale] for scale in shapes]
    fake = [[torch.randn_like(x).requires_grad_(True) for x in scale] for scale in real]
    layers = [pair for r, f in zip(real, fake, strict=True) for pair in zip(r[:-1], f[:-1], strict=True)]
    expected = torch.zeros(2)
    for b in range(2):
        angles = []
        for r, f in layers:
            pixels = zip(r[b].flatten(1).T, f[b].detach().flatten(1).T, strict=True)
            angles.append(1 - np.mean([float(x @ y / (x.norm() * y.norm())) for x, y in pixels]))
        expected[b] = float(np.mean(angles))
    distance = feature_matching(real, fake)
    assert torch.allclose(distance, expected, atol=1e-6)
    distance.sum().backward()
    assert fake[0][-1].grad is None  # scores are not features
    for other in (real, [[3.0 * x for x in scale] for scale in real]):
        assert torch.allclose(feature_matching(real, other), torch.zeros(2), atol=1e-6)


def test_the_landmark_error_is_in_squared_fractions_of_the_picture() -> None:
    real = torch.rand(2, 7, 2)
    moved = real + torch.tensor([0.1, 0.0])
    assert torch.allclose(landmark_error(real, moved), torch.full((2,), 0.005), atol=1e-6)


def test_the_discriminator_learns_from_its_own_loss_alone(stage_of: MakeStage) -> None:
    stage = stage_of(gan=1.0)
    turn = stage.turns()[1]
    assert turn.name == "discriminator" and turn.key == "losses.discriminator.optim"
    batch = batch_of(stage)
    stage.turn_loss("net", batch)
    optimizer = torch.optim.Adam(turn.parameters.values(), lr=1e-3)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        scalars = stage.turn_loss("discriminator", batch)
        scalars["loss"].backward()
        losses.append(float(scalars["loss"]))
        optimizer.step()
    assert all(p.grad is not None and p.grad.any() for n, p in turn.parameters.items() if "weight" in n)
    assert all(p.grad is None for p in stage.net.parameters())
    assert losses[-1] < 0.8 * losses[0]
    assert 0.5 < float(scalars["accuracy_real"]) <= 1 and 0.5 < float(scalars["accuracy_fake"]) <= 1
    stage.cfg.losses.max_t = 0  # a micro-batch of which nothing is decoded
    stage.turn_loss("net", batch)
    empty = stage.turn_loss("discriminator", batch)
    optimizer.zero_grad()
    empty["loss"].backward()
    assert float(empty["loss"]) == 0 and empty.keys() == scalars.keys()
    assert all(p.grad is not None and not p.grad.any() for p in turn.parameters.values())


def test_the_discriminator_gets_the_skulls_that_the_network_got(stage_of: MakeStage) -> None:
    stage = stage_of(gan=1.0)
    stage.cfg.partial.share, stage.cfg.skull.dropout = 1.0, 0.5
    batch = batch_of(stage)
    conditions = stage.conditions_of(batch)
    assert conditions.skulls is not None and conditions.skull_present is not None
    assert 0 < int(conditions.skull_present.sum()) < 4
    assert not torch.equal(conditions.skulls, batch["skull"])  # bone is missing
    stage.turn_loss("net", batch)
    assert stage._pairs is not None
    visible = conditions.skulls * conditions.skull_present[:, None, None, None]
    assert torch.equal(stage._pairs.skulls, visible)


# ---------------------------------------------------------------- gates and weights
def test_the_gate_is_drawn_within_its_limits() -> None:
    t = torch.randint(0, 1000, (64,))
    draws = [gated_rows(t, 100, 400, 5, torch.Generator().manual_seed(seed)) for seed in range(20)]
    for rows in draws:
        assert len(rows) == 5 and bool(((t[rows] >= 100) & (t[rows] <= 400)).all())
        assert rows.tolist() == sorted(set(rows.tolist()))
    assert len({tuple(rows.tolist()) for rows in draws}) > 15
    every = gated_rows(t, 100, 400, 64, torch.Generator())
    assert every.tolist() == [i for i in range(64) if 100 <= t[i] <= 400]
    assert set(torch.cat(draws).tolist()) == set(every.tolist())
    assert len(gated_rows(t, 1000, 1000, 5, torch.Generator())) == 0


def test_a_term_has_its_share_of_the_gradient(stage_of: MakeStage) -> None:
    stage = stage_of(by="ratio", gan=0.1, lm=0.5, measure_every=4)
    stage.cfg.losses.noise = 2.0
    scalars = stage.loss_of(batch_of(stage))
    stage.term_weights.every = 0  # from here on as it was measured
    norms = []
    for noise, targets in (
        (2.0, {"gan": 0.0, "lm": 0.0}),
        (0.0, {"gan": 0.1, "lm": 0.0}),
        (0.0, {"gan": 0.0, "lm": 0.5}),
    ):
        stage.cfg.losses.noise, stage.term_weights.targets = noise, targets
        norms.append(norm(gradients(stage)))
    assert float(scalars["gradient_noise"]) == pytest.approx(norms[0], rel=1e-3)
    assert norms[1:] == pytest.approx([0.1 * norms[0], 0.5 * norms[0]], rel=1e-2)


def norm(grads: dict[str, Tensor | None]) -> float:
    return math.sqrt(sum(float(g.square().sum()) for g in grads.values() if g is not None))


def test_weights_follow_the_average_of_what_was_measured() -> None:
    follow = LossWeights({"lm": 0.5, "gan": 0.2}, ratio=True, every=10)
    assert follow.due(3) and follow.due(3, micro=1)
    assert follow.weights() == {"lm": 0.0, "gan": 0.0}  # not seen yet
    for noise, lm in ((1.0, 4.0), (3.0, 6.0)):
        follow.measured({"noise": noise, "lm": lm, "gan": float("nan")})
    assert follow.norms == pytest.approx({"noise": 2.0, "lm": 5.0})
    assert follow.weights() == pytest.approx({"lm": 0.2, "gan": 0.0})
    for _ in range(60):
        follow.measured({"noise": 1.0, "lm": 1.0, "gan": 2.0})
    assert follow.weights() == pytest.approx({"lm": 0.5, "gan": 0.1}, rel=0.03)
    assert [step for step in range(31) if follow.due(step)] == [0, 10, 20, 30] and not follow.due(10, micro=1)
    assert LossWeights({"lm": 150.0}, ratio=False, every=0).weights() == {"lm": 150.0}
    assert not LossWeights({}, False, 0).due(0)


def test_each_loss_has_the_norm_of_its_gradient() -> None:
    p, q = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    losses = {"a": (3 * p).sum() + (4 * q).sum(), "b": None, "c": (p * 2).sum()}
    assert gradient_norms(losses, [p, q]) == pytest.approx({"a": math.sqrt(50), "c": math.sqrt(8)})
    assert p.grad is None


def test_picture_losses_ramp_up(stage_of: MakeStage) -> None:
    stage = stage_of(lm=8.0, ramp_steps=4)
    assert [stage._weights()["lm"] for stage.updates in range(6)] == [2.0, 4.0, 6.0, 8.0, 8.0, 8.0]


def test_a_network_for_skulls_is_refused(stage_of: MakeStage, tmp_path: Path) -> None:
    path = write_reader(tmp_path / "skull.safetensors", "skull")
    with pytest.raises(ValueError, match=r"^losses\.pipnet: "):
        stage_of(lm=1.0, pipnet=str(path))
