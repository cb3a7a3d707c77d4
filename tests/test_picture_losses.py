"""Losses of the decoded face: who learns from which, what they are, how they are weighed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from cldm.config import SamplingConfig
from ldm.autoencoder import DiagonalGaussian
from ldm.config import ControlConfig, LandmarkConfig, ModelConfig, TextureConfig
from ldm.schedule import predict_x0, q_sample
from muti_control.losses.config import DiscriminatorConfig, LossesConfig
from muti_control.losses.decoding import differentiate, gated_rows, with_gradient
from muti_control.losses.picture import feature_matching, landmark_error
from muti_control.losses.weights import LossWeights, gradient_norms
from muti_control.networks.config import PatchGanConfig, PipNetConfig
from muti_control.networks.pipnet.network import PipNet
from muti_control.networks.pipnet.reader import LandmarkReader
from muti_control.training.config import DataConfig, ExperimentConfig, TrainConfig
from muti_control.training.run import build_stage
from muti_control.training.stages.control import ControlStage
from tests.landmark_pairs import LAYOUT, write_landmark_pairs

TERMS = ("gan", "fm", "lm")
ZERO_LAYERS = ("control_model.zero_convs.", "control_model.middle_block_out.")
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

    def build(fresh: bool = False, **losses: Any) -> ControlStage:
        settings = {
            "by": "weight",
            "max_t": 999,
            "pipnet": str(reader),
            "measure_every": 0,
            "discriminator": SMALL,
        }
        cfg = ExperimentConfig(
            stage="control",
            name="tiny",
            out=str(tmp_path / "runs"),
            init="none",
            model=tiny_config,
            data=DataConfig(root=str(root)),
            train=TrainConfig(batch_size=4, num_valid=2, precision="32-true"),
            losses=LossesConfig(**settings | losses),
            sampling=SamplingConfig(control_scales=[1.0]),
        )
        cfg.init = None  # fresh weights, which no config file may ask for
        cfg.landmarks.dropout = cfg.texture.dropout = 0.0
        stage = build_stage(cfg)
        assert isinstance(stage, ControlStage)
        with torch.no_grad():
            for name, p in stage.net.named_parameters():
                if not (fresh and name.startswith("control_model.")):
                    p.add_(0.05 * torch.randn_like(p))
        cfg.losses.noise = 0.0  # which no config file may say: the terms by themselves
        return stage

    return build


def batch_of(stage: ControlStage) -> dict[str, Any]:
    return torch.utils.data.default_collate([stage.train_set[i] for i in range(4)])


class Noised(NamedTuple):
    """A batch as the step draws it, and the predicted noise."""

    z: Tensor
    t: Tensor
    x_t: Tensor
    eps: Tensor
    eps_hat: Tensor


def noised(stage: ControlStage, batch: dict[str, Any]) -> Noised:
    """What the step computes before its losses, from the same draws."""
    model = stage.net
    z = model.cfg.scale_factor * DiagonalGaussian(batch["moments"]).sample(stage.draw("posterior"))
    t = torch.randint(0, 1000, (len(z),), generator=stage.draw("t"))
    eps = torch.randn(z.shape, generator=stage.draw("eps"))
    x_t = q_sample(z, t, eps, model.alphas_cumprod)
    dropped = torch.rand(len(z), generator=stage.draw("dropout")) < stage.cfg.diffusion.prompt_dropout
    prompts = ["" if drop else prompt for prompt, drop in zip(batch["prompt"], dropped, strict=True)]
    eps_hat = stage.predict(x_t, t, model.encode_text(prompts), stage.conditions_of(batch))
    return Noised(z, t, x_t, eps, eps_hat)


def gradients(stage: ControlStage) -> dict[str, Tensor | None]:
    stage.net.zero_grad(set_to_none=True)
    stage.loss_of(batch_of(stage))["loss"].backward()
    return {name: p.grad for name, p in stage.net.named_parameters()}


def untouched(stage: ControlStage) -> bool:
    """Neither the discriminator nor the landmark network holds a gradient."""
    assert stage.picture_losses is not None
    judges = [
        net for net in (stage.picture_losses.discriminator, stage.picture_losses.reader) if net is not None
    ]
    return all(p.grad is None for net in judges for p in net.parameters())


# ---------------------------------------------------------------- who learns from what
@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("real", ["decoded", "picture"])
def test_every_trained_tensor_learns_from_every_loss_and_no_frozen_one(
    stage_of: MakeStage, term: str, real: str
) -> None:
    stage = stage_of(**{term: 1.0}, real=real)
    known = {name for name, field in ControlConfig.model_fields.items() if field.default is None}
    assert set(stage.net.control_model.branches) == known, "give this test's model the new branch too"
    for name, grad in gradients(stage).items():
        if name.startswith("control_model."):
            assert grad is not None and torch.isfinite(grad).all() and grad.abs().max() > 0, name
        else:
            assert grad is None, name
    assert untouched(stage)


# ---------------------------------------------------------------- the gradient is that of the whole
@pytest.mark.parametrize(("chunk", "recompute"), [(1, True), (3, False), (4, True)])
def test_chunks_give_the_gradient_of_one_plain_backward_pass(
    stage_of: MakeStage, chunk: int, recompute: bool
) -> None:
    weights = {"gan": 0.7, "fm": 2.0, "lm": 30.0}
    stage = stage_of(**weights, chunk=chunk, recompute=recompute)
    stage.cfg.losses.noise = 0.5
    batch, losses = batch_of(stage), stage.picture_losses
    assert losses is not None
    found = noised(stage, batch)
    stage.cfg.losses.max_t = int(found.t.sort().values[2])
    gate = found.t <= stage.cfg.losses.max_t
    assert int(gate.sum()) == 3
    x_0_hat = predict_x0(found.x_t, found.t, found.eps_hat, stage.net.alphas_cumprod)[gate]
    faces = stage.net.first_stage_model.decode(x_0_hat / stage.net.cfg.scale_factor)
    real = stage.net.first_stage_model.decode(found.z[gate] / stage.net.cfg.scale_factor)
    terms = losses.terms(faces, real.detach(), batch["skull"][gate])
    plain = 0.5 * F.mse_loss(found.eps_hat, found.eps)
    plain = plain + sum(weights[name] * value.sum() / 4 for name, value in terms.items())
    parameters = stage.trained_parameters()
    expected = dict(zip(parameters, torch.autograd.grad(plain, list(parameters.values())), strict=True))
    scalars = stage.loss_of(batch)
    assert float(scalars["loss"].detach()) == pytest.approx(float(plain.detach()), rel=1e-5)
    assert float(scalars["gated"]) == int(gate.sum()) / 4
    for name, grad in gradients(stage).items():
        if name in expected:
            assert grad is not None
            assert torch.allclose(
                grad, expected[name], rtol=1e-3, atol=1e-6 * float(expected[name].abs().max()) + 1e-9
            )


def test_judged_one_by_one_the_gradients_add_up() -> None:
    z, net = torch.randn(3, 2, 4, 4), torch.nn.Conv2d(2, 3, 3, padding=1)

    def terms(faces: Tensor, rows: Tensor) -> dict[str, Tensor]:
        return {"a": faces.square().flatten(1).mean(1), "b": (faces.flatten(1).mean(1) - rows).abs()}

    rows = torch.tensor([0, 2, 5])
    one_by_one = differentiate(net, z, rows, terms, chunk=2)
    weights = {"a": 2.0, "b": 0.3}
    summed = differentiate(net, z, rows, terms, chunk=1, weights=weights)
    assert torch.allclose(
        summed.gradients[""], sum(weights[k] * one_by_one.gradients[k] for k in weights), atol=1e-7
    )
    for name in weights:
        assert torch.allclose(summed.values[name], one_by_one.values[name])
    assert all(p.grad is None for p in net.parameters()) and not z.requires_grad
    leaf = z.clone().requires_grad_(True)
    (found,) = torch.autograd.grad(with_gradient(torch.tensor(3.0), leaf, summed.gradients[""]), leaf)
    assert torch.equal(found, summed.gradients[""])
    assert float(with_gradient(torch.tensor(3.0), leaf, summed.gradients[""])) == pytest.approx(3.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_the_gradient_is_nearly_the_same(stage_of: MakeStage, dtype: torch.dtype) -> None:
    stage = stage_of(gan=1.0, fm=1.0, lm=1.0)
    exact = gradients(stage)
    with torch.autocast("cpu", dtype):
        scalars = stage.loss_of(batch_of(stage))
    assert scalars["loss"].dtype == torch.float32
    stage.net.zero_grad(set_to_none=True)
    scalars["loss"].backward()
    rough = {name: p.grad for name, p in stage.net.named_parameters()}
    names = [name for name, grad in exact.items() if grad is not None]
    one, other = (torch.cat([grads[name].flatten() for name in names]) for grads in (exact, rough))
    assert torch.isfinite(other).all()
    assert float(F.cosine_similarity(one, other, dim=0)) > 0.9


# ---------------------------------------------------------------- what the terms are
def test_feature_matching_is_an_angle_over_channels_at_each_position() -> None:
    torch.manual_seed(0)
    shapes = [[(5, 4), (7, 3), (1, 2)], [(5, 2), (1, 1)]]
    real = [[torch.randn(2, channels, side, side) for channels, side in scale] for scale in shapes]
    fake = [[torch.randn_like(x).requires_grad_(True) for x in scale] for scale in real]
    expected = torch.zeros(2)
    for b in range(2):
        angles = []
        for one, other in zip(real, fake, strict=True):
            for r, f in zip(one[:-1], other[:-1], strict=True):
                places = [
                    float((r[b, :, y, x] @ f[b, :, y, x]) / (r[b, :, y, x].norm() * f[b, :, y, x].norm()))
                    for y in range(r.shape[2])
                    for x in range(r.shape[3])
                ]
                angles.append(1 - sum(places) / len(places))
        expected[b] = sum(angles) / len(angles)
    found = feature_matching(real, fake)
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(feature_matching(real, real), torch.zeros(2), atol=1e-6)
    found.sum().backward()
    assert fake[0][-1].grad is None  # scores are not features
    scaled = [[3.0 * x for x in scale] for scale in real]
    assert torch.allclose(feature_matching(real, scaled), torch.zeros(2), atol=1e-6)


def test_the_landmark_error_is_in_squared_fractions_of_the_picture() -> None:
    real = torch.rand(2, 7, 2)
    moved = real + torch.tensor([0.1, 0.0])
    assert torch.allclose(landmark_error(real, moved), torch.full((2,), 0.005), atol=1e-6)


def test_the_discriminator_learns_from_its_own_loss_alone(stage_of: MakeStage) -> None:
    stage = stage_of(gan=1.0)
    turns = stage.turns()
    assert [turn.name for turn in turns] == ["net", "discriminator"]
    assert turns[1].optim.lr == 1e-4 and turns[1].every == 1 and turns[1].key == "losses.discriminator.optim"
    batch = batch_of(stage)
    stage.turn_loss("net", batch)
    first = stage.turn_loss("discriminator", batch)
    first["loss"].backward()
    assert all(
        p.grad is not None and p.grad.abs().max() > 0 for n, p in turns[1].parameters.items() if "weight" in n
    )
    assert all(p.grad is None for p in stage.net.parameters())
    optimizer = torch.optim.Adam(turns[1].parameters.values(), lr=1e-3)
    for _ in range(15):
        optimizer.zero_grad()
        scalars = stage.turn_loss("discriminator", batch)
        scalars["loss"].backward()
        optimizer.step()
    assert float(scalars["loss"]) < 0.8 * float(first["loss"])
    assert 0.5 < float(scalars["accuracy_real"]) <= 1 and 0.5 < float(scalars["accuracy_fake"]) <= 1
    stage.cfg.losses.min_t = stage.cfg.losses.max_t = 0  # a micro-batch of which nothing is decoded
    stage.turn_loss("net", batch)
    empty = stage.turn_loss("discriminator", batch)
    assert float(empty["loss"]) == 0 and empty.keys() == scalars.keys()
    stage.discriminator.zero_grad(set_to_none=True)
    empty["loss"].backward()
    assert all(p.grad is not None and not p.grad.any() for p in stage.discriminator.parameters())


def test_the_discriminator_is_shown_the_skulls_that_the_network_was(stage_of: MakeStage) -> None:
    stage = stage_of(gan=1.0)
    stage.cfg.partial.share, stage.cfg.skull.dropout = 1.0, 0.5
    batch = batch_of(stage)
    given = stage.conditions_of(batch)
    assert given.skulls is not None and given.skull_present is not None
    assert 0 < int(given.skull_present.sum()) < 4
    assert not torch.equal(given.skulls, batch["skull"])  # bone is missing
    stage.turn_loss("net", batch)
    assert stage._pairs is not None and len(stage._pairs.skulls) == 4
    wanted = given.skulls * given.skull_present[:, None, None, None]
    for skull in stage._pairs.skulls:  # in the order in which they were decoded
        assert any(torch.equal(skull, one) for one in wanted)
    assert float(stage._pairs.skulls.sum()) == pytest.approx(float(wanted.sum()))


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


def test_a_term_has_the_share_of_the_gradient_that_was_asked_for(stage_of: MakeStage) -> None:
    stage = stage_of(by="ratio", gan=0.1, lm=0.5, measure_every=4)
    stage.cfg.losses.noise = 2.0
    scalars = stage.loss_of(batch_of(stage))
    stage.term_weights.every = 0  # from here on as it was measured
    grads = {}
    for name in ("gan", "lm"):
        stage.cfg.losses.noise = 0.0
        stage.term_weights.wanted = {"gan": 0.0, "lm": 0.0, name: {"gan": 0.1, "lm": 0.5}[name]}
        grads[name] = norm(gradients(stage))
    stage.cfg.losses.noise, stage.term_weights.wanted = 2.0, {"gan": 0.0, "lm": 0.0}
    noise = norm(gradients(stage))
    assert float(scalars["gradient_noise"]) == pytest.approx(noise, rel=1e-3)
    assert grads["gan"] == pytest.approx(0.1 * noise, rel=1e-2)
    assert grads["lm"] == pytest.approx(0.5 * noise, rel=1e-2)


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
    other = LossWeights(follow.wanted, True, 10)
    other.load_state_dict(follow.state_dict())
    for _ in range(60):
        for one in (follow, other):
            one.measured({"noise": 1.0, "lm": 1.0, "gan": 2.0})
    assert other.weights() == follow.weights() == pytest.approx({"lm": 0.5, "gan": 0.1}, rel=0.03)
    assert [step for step in range(31) if follow.due(step)] == [0, 10, 20, 30] and not follow.due(10, micro=1)
    assert LossWeights({"lm": 150.0}, ratio=False, every=0).weights() == {"lm": 150.0}
    assert not LossWeights({}, False, 0).due(0)


def test_norms_are_those_of_each_losss_gradient() -> None:
    p, q = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    losses = {"a": (3 * p).sum() + (4 * q).sum(), "b": None, "c": (p * 2).sum()}
    assert gradient_norms(losses, [p, q]) == pytest.approx({"a": math.sqrt(50), "c": math.sqrt(8)})
    assert p.grad is None


def test_picture_losses_ramp_up(stage_of: MakeStage) -> None:
    stage = stage_of(lm=8.0, ramp_steps=4)
    assert [stage._weights()["lm"] for stage.updates in range(6)] == [2.0, 4.0, 6.0, 8.0, 8.0, 8.0]


# ---------------------------------------------------------------- settings and files


def test_a_network_for_skulls_is_refused(stage_of: MakeStage, tmp_path: Path) -> None:
    path = write_reader(tmp_path / "skull.safetensors", "skull")
    with pytest.raises(
        ValueError, match=r"losses.pipnet: .* reads landmarks off skulls, expected one for faces"
    ):
        stage_of(lm=1.0, pipnet=str(path))
