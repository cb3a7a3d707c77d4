"""Settings of SPGD in evaluations of several models."""

from __future__ import annotations

from muti_control.evaluation.protocol.config import EvaluateConfig
from muti_control.evaluation.protocol.run_folder import identity_of
from muti_control.sampling.config import SpgdConfig


def test_settings_of_models_lie_over_the_common_ones() -> None:
    cfg = EvaluateConfig(
        weights="w",
        models={"plain": "w"},
        spgd=SpgdConfig(mode="spgd", scale=0.5, inner=2),
        guided={"plain": {"mode": "plain", "scale": 0.1}},
    )
    assert cfg.spgd_of("model") == cfg.spgd
    plain = cfg.spgd_of("plain")
    assert (plain.mode, plain.scale, plain.inner) == ("plain", 0.1, 2)


def test_what_changes_no_face_does_not_tell_evaluations_apart() -> None:
    def identity(scale: float, at_once: int, trace: bool) -> object:
        own = {"scale": scale, "at_once": at_once, "recompute": trace, "trace": trace}
        config = {"spgd": own, "guided": {"plain": own, "model": {"mode": "off"}}, "batch_size": at_once}
        return identity_of(config, {})

    assert identity(0.1, 8, False) == identity(0.1, 1, True) != identity(0.2, 8, False)
