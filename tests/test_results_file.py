"""metrics.json: it comes back as it was, and what is no metrics.json is refused with the place."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from muti_control.evaluation.results.results import Evaluation, Figure, Method, Probe, Protocol, Subject
from muti_control.evaluation.results.results_file import (
    ResultsError,
    from_json,
    read_results,
    to_json,
    write_results,
)


@pytest.fixture
def evaluation() -> Evaluation:
    probe = Probe("1_0.png", "1", "aa", "bb", "male", 43.0, "Asian", 4, {"sex": "male"}, 1.5)
    protocol = Protocol("quick", "test", (), 10, 5, ("1", "2"), 0.95, 1000, 0, {"steps": 20}, {"num": None})
    return Evaluation(
        title="t", date="2026-01-01T00:00:00+00:00", command="c", seconds=1.0, notice="n", environment={},
        subject=Subject("model", "m", ()), protocol=protocol, probes=(probe,), recognisers=(), measures=(),
        methods=(Method("model", "Model", "model", "it", {}),),
    )  # fmt: skip


def test_results_come_back_as_they_were(evaluation, tmp_path):
    write_results(tmp_path, evaluation)
    assert read_results(tmp_path) == evaluation == read_results(tmp_path / "metrics.json")


def test_numpy_numbers_become_numbers():
    written = to_json(Figure(np.float32(0.5), None, np.float64(1), np.int64(3)))
    assert written == {"value": 0.5, "low": None, "high": 1.0, "n": 3}
    assert from_json(Figure, written) == Figure(0.5, None, 1.0, 3)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("nan")])
def test_what_is_no_number_is_not_written(evaluation, tmp_path, value):
    with pytest.raises(ResultsError, match=re.escape("probes[0].ood")):
        write_results(tmp_path, replace(evaluation, probes=(replace(evaluation.probes[0], ood=value),)))
    assert not list(tmp_path.iterdir())


def damage(evaluation: Evaluation, change) -> str:
    content = to_json(evaluation)
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(version=2), "version 2, and this program reads version 1"),
        (lambda c: c.pop("version"), "version None"),
        (lambda c: c.update(name="other"), "not the metrics.json of evaluate.py"),
        (lambda c: c["probes"][0].pop("sex"), "probes[0].sex: is missing"),
        (lambda c: c["probes"][0].update(sexx="male"), "probes[0].sexx: not a key"),
        (lambda c: c["probes"][0].update(age="43"), "probes[0].age: got '43', expected float"),
        (lambda c: c["probes"][0].update(body_mass=True), "probes[0].body_mass: got True, expected int"),
        (lambda c: c.update(seconds=float("nan")), "it holds NaN"),
        (lambda c: c.update(methods={}), "methods: got {}, expected tuple"),
        (lambda c: c["methods"][0].update(kind="modle"), "method model: kind: 'modle' is none of"),
        (lambda c: c["probes"].append(c["probes"][0]), "probes: the names ['1_0.png'] stand there more than once"),
    ],
)  # fmt: skip
def test_damaged_results_are_refused_with_the_place(evaluation, tmp_path, change, message):
    (tmp_path / "metrics.json").write_text(damage(evaluation, change))
    with pytest.raises(ResultsError, match=re.escape(message)):
        read_results(tmp_path)


def test_no_results_at_all(tmp_path):
    with pytest.raises(ResultsError, match="give a folder of evaluate"):
        read_results(tmp_path)
    (tmp_path / "metrics.json").write_text('{"name": ')
    with pytest.raises(ResultsError, match="not a whole metrics"):
        read_results(tmp_path)
