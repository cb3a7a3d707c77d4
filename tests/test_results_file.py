"""metrics.json: it comes back as it was, and a damaged one is refused with the place."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from muti_control.evaluation.results.results import Evaluation, Figure, Method, Probe, Protocol, Subject
from muti_control.evaluation.results.results_file import ResultsError, read_results, to_json, write_results


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


def test_numpy_numbers_become_numbers_and_a_nan_is_refused(evaluation):
    written = to_json(Figure(np.float32(0.5), None, np.float64(1), np.int64(3)))
    assert written == {"value": 0.5, "low": None, "high": 1.0, "n": 3}
    for value in (float("nan"), float("inf"), np.float32("nan")):
        with pytest.raises(ValueError, match="ood"):
            replace(evaluation.probes[0], ood=value)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda c: c.update(version=2), "version 2"),
        (lambda c: c["probes"][0].pop("sex"), "probes[0].sex"),
        (lambda c: c["probes"][0].update(sexx="male"), "probes[0].sexx"),
        (lambda c: c["probes"][0].update(age="43"), "probes[0].age"),
        (lambda c: c.update(seconds=float("nan")), "NaN"),
        (lambda c: c["methods"][0].update(kind="modle"), "methods[0].kind"),
        (lambda c: c["probes"].append(c["probes"][0]), "probes: "),
    ],
)
def test_damaged_results_are_refused_with_the_place(evaluation, tmp_path, change, place):
    content = to_json(evaluation)
    change(content)
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    with pytest.raises(ResultsError, match=re.escape(place)):
        read_results(tmp_path)


def test_missing_and_cut_files_are_refused(tmp_path):
    with pytest.raises(ResultsError, match="metrics"):
        read_results(tmp_path)
    (tmp_path / "metrics.json").write_text('{"name": ')
    with pytest.raises(ResultsError):
        read_results(tmp_path)
