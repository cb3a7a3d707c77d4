"""From values per probe to figures: what was not measured is left out, and nothing else."""

import numpy as np
import pytest

from data.biometrics import Biometrics
from muti_control.evaluation.results.results_file import to_json
from muti_control.evaluation.results.summary import (
    Resampling,
    coverage,
    edit,
    groups_of,
    identification,
    measured,
)

rng = np.random.default_rng


GROUPS = [
    groups_of(Biometrics("female" if i % 2 else "male", 10 + 2 * i, body_mass=1 + i % 5)) for i in range(40)
]


def test_figures_are_those_of_the_measured_probes():
    ranks = rng(1).integers(1, 30, 40).tolist()
    ranks[3] = ranks[7] = None
    own = rng(2).uniform(size=40)
    own[[3, 5, 7]] = np.nan  # 5 was measured, but the recogniser found no face
    result = identification(ranks, 30, GROUPS, own, own + 1, missed=1, excluded=4)
    ranks_measured = np.array([rank for rank in ranks if rank])
    assert result.rank1.n == result.mean_rank.n == 38 and result.distance.n == 37
    assert result.rank5.value == pytest.approx((ranks_measured <= 5).mean())
    assert (
        result.mean_average_precision.value
        == result.mean_reciprocal_rank.value
        == (1 / ranks_measured).mean()
    )
    assert result.cmc.value[:10][0] == result.rank1.value and result.cmc.value[9] == result.rank10.value
    assert result.cmc.low[0] == result.rank1.low and result.cmc.value[-1] == 1
    assert result.cmc.x == (*range(1, 21), 25, 30) and (np.diff(result.cmc.value) >= 0).all()
    assert result.ranks[3] is None and result.distances[5] is None and result.ranks[0] == ranks[0]
    assert result.other_distance.value == pytest.approx(result.distance.value + 1)
    assert result.rank1.low <= result.rank1.value <= result.rank1.high
    to_json(result)  # nothing in it that JSON has no form for
    for wrong in (ranks, [None] * 40):  # a rank beyond the gallery; nothing measured
        with pytest.raises(ValueError):
            identification(wrong, 20, GROUPS)
    assert list(dict.fromkeys(group.attribute for group in result.groups)) == ["sex", "age", "body mass"]
    by_mass = [group.rank1 for group in result.groups if group.attribute == "body mass"]
    assert sum(rank1.value * rank1.n for rank1 in by_mass) == pytest.approx(38 * result.rank1.value)


def test_a_mean_of_one_value_has_no_interval_and_none_is_refused():
    figure = Resampling().mean([3.0])
    assert (figure.value, figure.low, figure.high, figure.n) == (3, None, None, 1)
    result = measured([1.0, np.nan, 3.0])
    assert result.values == (1, None, 3) and result.figure.value == 2 and result.figure.n == 2
    for empty in (lambda: Resampling().mean([]), lambda: measured([np.nan])):
        with pytest.raises(ValueError):
            empty()


def test_coverage_begins_at_rank_one_of_a_draw_and_rises():
    ranks = {"model": rng(4).integers(1, 20, (15, 8)), "shuffled": rng(5).integers(10, 40, (15, 8))}
    result = coverage("dlib", ranks, 5, list(range(0, 30, 2)))
    model, shuffled = result.curves["model"], result.curves["shuffled"]
    assert result.draws == 8 and model.x == tuple(range(1, 9))
    assert model.value[0] == pytest.approx((ranks["model"] <= 5).mean())
    assert model.value[-1] == pytest.approx((ranks["model"] <= 5).any(axis=1).mean())
    assert (np.diff(model.value) >= 0).all() and set(shuffled.value) == {0}
    assert not result.together
    falling = np.minimum.accumulate(ranks["model"], axis=1)
    joint = coverage("dlib", ranks, 5, list(range(0, 30, 2)), together={"model": falling})
    assert joint.ranks_together["model"] == tuple(falling[:, -1])
    assert joint.together["model"].value == pytest.approx((falling <= 5).mean(axis=0))
    with pytest.raises(ValueError, match="shape"):
        coverage("dlib", ranks | {"shuffled": ranks["shuffled"][:, :4]}, 5, list(range(15)))


def test_an_edit_that_makes_half_the_change_projects_to_a_half():
    before = rng(6).uniform(50, 200, (6, 68, 2))
    change = rng(7).normal(0, 3, before.shape)
    result = edit(
        "model", "body_mass+2", "two up", "px", (before, before + 0.5 * change), (before, before + change),
        range(6), kept=[1, 1, 1, 0, 1, 1], kept_before=[1] * 6,
    )  # fmt: skip
    assert result.projection.value == pytest.approx(0.5, abs=0.02) and result.angle.value < 5
    assert result.predicted_size.value == pytest.approx(result.true_size.value / 2, rel=0.02)
    assert 2.5 < result.true_size.value < 4.5  # px a point: 3 px each way, less what alignment takes
    assert result.kept.value == pytest.approx(5 / 6)
    turned = before @ np.array([[0.9, -0.2], [0.2, 0.9]]).T + 7
    nothing = edit("model", "e", "e", "px", (before, turned), (before, before + change), range(6))
    assert nothing.projection.value == pytest.approx(0, abs=1e-9)  # turning and moving the head is no edit
    with pytest.raises(ValueError, match="no true face changed"):
        edit("model", "e", "e", "px", (before, before + change), (before, before), range(6))


def test_a_person_who_hardly_changed_hardly_counts():
    before = rng(8).uniform(50, 200, (2, 68, 2))
    true = rng(9).normal(0, 3, before.shape) * np.array([1, 1e-3])[:, None, None]
    predicted = np.stack([true[0], rng(10).normal(0, 3, (68, 2))])
    result = edit("m", "e", "e", "px", (before, before + predicted), (before, before + true), range(2))
    assert abs(result.projections[1]) > 5 and result.projection.value == pytest.approx(1, abs=0.02)
