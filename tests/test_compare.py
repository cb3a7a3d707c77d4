"""evaluate.py compare: differences skull by skull, and refusals that say what differs."""

import re
from dataclasses import replace

import numpy as np
import pytest

from muti_control.evaluation.compare import main
from muti_control.evaluation.report.page import comparison_page
from muti_control.evaluation.results.comparison import compare, summary
from muti_control.evaluation.results.results_file import ResultsError, read_results, write_results
from tests.made_up_results import made_up
from tests.test_report import Page


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folders = [tmp_path_factory.mktemp(name) for name in ("before", "after")]
    for folder, gain in zip(folders, (0.0, 0.3), strict=True):
        write_results(folder, made_up(folder, gain=gain))
    return folders, [read_results(folder) for folder in folders]


def test_a_run_is_the_same_as_itself(runs):
    comparison = compare(runs[1][0], runs[1][0])
    assert {row.verdict for row in comparison.rows} == {"same"} and not comparison.settings
    assert "No measure says with certainty" in " ".join(summary(comparison))
    assert "Every measure is the same on every skull" in comparison_page(comparison)


def test_the_better_model_is_found_better_and_the_unchanged_are_the_same(runs):
    first, second = runs[1]
    comparison = compare(first, second)
    by_key = {(row.method, row.column.part, row.column.key): row for row in comparison.rows}
    row = by_key["model", "dlib", "rank1"]
    hits = [
        np.array([rank == 1 for rank in run.methods[0].identification["dlib"].ranks], float)
        for run in (first, second)
    ]
    assert (row.first, row.second) == (pytest.approx(hits[0].mean()), pytest.approx(hits[1].mean()))
    assert row.difference.value == pytest.approx((hits[1] - hits[0]).mean()) and row.verdict == "better"
    assert by_key["model", "dlib", "mean_rank"].verdict == "better"  # lower is better there
    assert by_key["model", "pictures", "psnr"].verdict == "better"
    assert {row.column.part for row in comparison.rows} == {"dlib", "landmarks", "pictures", "edits"}
    back = compare(second, first)
    assert "The second is better for ICCR model" in " ".join(summary(comparison))
    assert "The second is worse for ICCR model" in " ".join(summary(back))
    assert "comparisons were made" in " ".join(summary(comparison))


def test_coverage_and_edits_are_compared_where_both_have_them(runs):
    first = runs[1][0]
    part = first.coverage[0]
    all_hit = {name: tuple(part.draws for _ in hits) for name, hits in part.hits.items()}
    second = replace(first, coverage=(replace(part, hits=all_hit),), edits=())
    rows = [row for row in compare(first, second).rows if row.verdict != "same"]
    assert {(row.method, row.column.label) for row in rows} == {
        ("model", "best of 8: within 1"),
        ("shuffled", "best of 8: within 1"),
    }
    assert rows[0].second == 1 and rows[0].first == pytest.approx(np.mean(np.array(part.hits["model"]) > 0))
    last = {name: tuple(1 for _ in ranks) for name, ranks in part.ranks_together.items()}
    third = replace(first, coverage=(replace(part, ranks_together=last),), edits=())
    rows = [row for row in compare(first, third).rows if row.verdict != "same"]
    assert {row.column.label for row in rows} == {"8 together: within 1"} and rows[0].second == 1
    weaker = replace(first.edits[0], projections=tuple(p / 2 for p in first.edits[0].projections))
    (row,) = [r for r in compare(first, replace(first, edits=(weaker,))).rows if r.part == "edits"]
    assert row.first == pytest.approx(first.edits[0].projection.value)  # the weighted mean, as in the run
    assert row.second == pytest.approx(row.first / 2) and row.verdict == "differs"


def of_first(part: str, **changes):
    """A change of the first entry of ``part`` of a run."""

    def change(run):
        first, *others = getattr(run, part)
        return replace(run, **{part: (replace(first, **changes), *others)})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: replace(e, probes=e.probes[:-1], methods=()), "1 of 60 only in the first (59_0.png)"),
        (of_first("probes", skull_sha256="0"), "skull pictures: 1"),
        (of_first("probes", truth_sha256="0"), "true faces: 1"),
        (lambda e: replace(e, probes=e.probes[::-1]), "the order of the skulls"),
        (of_first("recognisers", gallery_sha256="0"), "gallery of dlib"),
        (of_first("recognisers", identity={"dlib": "19"}), "dlib '20' and '19'"),
        (lambda e: replace(e, recognisers=()), "recognisers: the first has dlib, landmarks, the second none"),
        (lambda e: replace(e, methods=(), coverage=(), edits=()), "no method and measure in common"),
    ],
)
def test_runs_that_cannot_be_subtracted_are_refused(runs, change, message):
    first = runs[1][0]
    with pytest.raises(ResultsError, match=re.escape(message)):
        compare(first, change(first))


def test_the_command_prints_and_writes(runs, capsys):
    (before, after), _ = runs
    assert main([str(before), str(after)]) == 0
    output = capsys.readouterr().out
    assert "ICCR model" in output and "second - first" in output and str(after / "compare.html") in output
    page = Page((after / "compare.html").read_text(encoding="utf-8"))
    assert "table" in page.tags and "script" not in page.tags
    assert main([str(before / "metrics.json"), str(after), f"out={before / 'x.html'}"]) == 0
    assert (before / "x.html").is_file()
    other = replace(
        run := runs[1][1], protocol=replace(run.protocol, sampling={"steps": 50, "guidance_scale": 4.0})
    )
    assert compare(runs[1][0], other).settings == (("sampling.steps", "20", "50"),)
    assert "sampling.steps" in comparison_page(compare(runs[1][0], other))


@pytest.mark.parametrize("arguments", [["a"], ["a", "b", "c"], ["a", "b", "to=x"], ["nowhere", "neither"]])
def test_a_wrong_command_is_one_line(arguments, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("evaluate.py compare: ") and error.count("\n") == 1
