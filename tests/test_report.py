"""report.html: one whole page that asks for nothing, and sentences that follow the figures."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from muti_control.evaluation.report import report, svg, write_report
from muti_control.evaluation.report.words import Roles, findings, limits, what_was_evaluated
from muti_control.evaluation.results.results_file import ResultsError, write_results
from muti_control.evaluation.results.summary import identification
from tests.made_up_results import made_up

VOID = {"meta", "img"}


class Page(HTMLParser):
    """Checks that tags close in order, and collects what a reader or a machine would look for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.ids, self.images, self.links, self.tags = [], [], [], [], set()
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        found = dict(attributes)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"]] if tag == "a" else []
        if tag == "img":
            assert found["alt"], "a picture without words"
            self.images.append(found["src"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def evaluation(folder):
    evaluation = made_up(folder)
    write_results(folder, evaluation)
    return evaluation


def test_the_page_is_whole_and_asks_for_nothing(folder, evaluation):
    text = write_report(folder).read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "link", "iframe", "object"} & page.tags
    assert (
        not re.findall(r"""(?:src|href|url\()\s*=?\s*["']?(?:https?:)?//""", text) and "@import" not in text
    )
    assert page.images and all(source.startswith("data:image/jpeg;base64,") for source in page.images)
    assert len(page.ids) == len(set(page.ids))
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert evaluation.notice in text and evaluation.command in text and "nan" not in text.lower().split()
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_every_table_has_a_cell_for_every_column(folder, evaluation):
    for table in re.findall(r"<table .*?</table>", report(evaluation, folder), flags=re.S):
        head, body = table.split("<tbody>")
        columns = len(re.findall("<th", head.split("<tr>")[-1]))
        rows = [row for row in body.split("<tr")[1:] if "colspan" not in row]
        assert rows and {len(re.findall("<t[hd][ >]", row)) for row in rows} == {columns}


def test_the_figures_stand_in_the_main_table(folder, evaluation):
    text = report(evaluation, folder)
    for method in evaluation.methods:
        found = method.identification["dlib"].rank1
        value = f"{100 * found.value:.1f}"
        interval = f"[{100 * found.low:.1f}, {100 * found.high:.1f}]"
        assert re.search(rf">{re.escape(value)}\u2020?<small>{re.escape(interval)}</small>", text), (
            method.name
        )


def with_gain(folder, gain: float):
    return made_up(folder, gain=gain)


def test_who_wins_is_read_off_the_figures(folder):
    loses, wins, same = (" ".join(findings(with_gain(folder, gain))) for gain in (-0.4, 0.6, 0.13))
    assert "The linear baseline wins: PCA + ridge beats ICCR model by" in loses
    assert "ICCR model beats the best baseline, PCA + ridge, by" in wins
    assert "cannot be told apart by rank-1 or MRR" in same
    assert "It uses the skull" in wins


def test_where_rank_one_is_open_all_ranks_decide(evaluation):
    """A model that is never first and a baseline that is so once in a while, but always near."""
    model, ridge = evaluation.methods[:2]

    def with_ranks(method, ranks):
        found = identification(ranks, 100, [probe.groups for probe in evaluation.probes])
        return replace(method, identification={"dlib": found})

    far, near = with_ranks(model, [50] * 60), with_ranks(ridge, [1] + [2] * 59)
    text = " ".join(findings(replace(evaluation, methods=(far, near))))
    assert (
        "The linear baseline wins: PCA + ridge beats ICCR model by all ranks together: MRR \u22120.488"
        in text
    )
    assert "rank-1 alone leaves it open: \u22121.7 points" in text


def test_edits_are_told_of_the_evaluated_method(evaluation):
    other = tuple(replace(edit, method="ridge") for edit in evaluation.edits)
    text = " ".join(findings(replace(evaluation, edits=(*other, *evaluation.edits))))
    assert text.count("Edit, body mass two levels up (60 pairs): ICCR model makes") == 1
    assert "PCA + ridge makes" not in text


def test_a_model_that_ignores_the_skull_is_called_so(evaluation):
    model = evaluation.methods[0]
    blind = tuple(
        replace(m, identification=model.identification) if m.name == "shuffled" else m
        for m in evaluation.methods
    )
    text = " ".join(findings(replace(evaluation, methods=blind)))
    assert "No sign that it uses the skull" in text and "It uses the skull" not in text


def test_a_further_model_is_held_beside_the_first(folder, evaluation):
    other = replace(made_up(folder, gain=0.6).methods[0], name="plain", label="plain ControlNet")
    same = replace(evaluation.methods[0], name="copy", label="the copy")
    text = " ".join(findings(replace(evaluation, methods=(*evaluation.methods, other, same))))
    assert re.search(r"ICCR model beside plain ControlNet: rank-1 \u2212\d+\.\d points \[[^]]+\]\. ", text)
    assert "beside the copy: rank-1 +0.0 points [+0.0, +0.0], which is not certain." in text


def test_a_folder_is_called_a_folder(evaluation):
    folder = replace(evaluation.methods[0], kind="folder", label="faces from elsewhere")
    text = " ".join(findings(replace(evaluation, methods=(folder, *evaluation.methods[1:]))))
    assert text.startswith("The evaluated folder: the true face") and "beats the evaluated folder by" in text


def test_the_first_lines_say_what_and_how_far(evaluation):
    assert "the model iccr_demo" in what_was_evaluated(evaluation) and "60 skulls" in what_was_evaluated(
        evaluation
    )
    assert "synthetic" in limits(evaluation) and "Pix2Pix and KID" in limits(evaluation)
    bare = replace(evaluation, not_run=(), methods=(), recognisers=())
    bare = replace(bare, protocol=replace(evaluation.protocol, cohort={}))
    assert limits(bare) == "Limits: none were noted by the run."


def test_parts_that_are_missing_leave_no_heading(folder, evaluation):
    none = replace(
        evaluation, coverage=(), diversity=(), edits=(), sensitivity=(), ood=None, cases=(), not_run=()
    )
    text = report(none, folder)
    Page(text)
    for heading in (
        "Several faces",
        "Edits",
        "Sensitivity",
        "Unusual skulls",
        "Not measured",
        "Best, median",
    ):
        assert heading not in text
    baselines = tuple(m for m in evaluation.methods if m.kind == "baseline")
    text = report(replace(none, methods=baselines), folder)
    Page(text)
    assert "PCA + ridge: the true face" in text and "Differences skull by skull" not in text
    Page(report(replace(none, methods=(), recognisers=(), measures=()), folder))


def test_names_from_outside_are_text_and_a_lost_picture_is_told(folder, evaluation):
    hostile = replace(evaluation.methods[0], label='<script>alert("x")</script>&')
    case = evaluation.cases[0]
    lost = replace(case, pictures=(replace(case.pictures[0], path="pictures/none.png"),))
    text = report(replace(evaluation, methods=(hostile, *evaluation.methods[1:]), cases=(lost,)), folder)
    page = Page(text)
    assert "script" not in page.tags and "&lt;script&gt;" in text and "picture is missing" in text


def test_roles_are_found_by_kind_and_strength(evaluation):
    roles = Roles.of(evaluation)
    names = [
        method.name
        for method in (
            roles.evaluated,
            roles.baseline,
            roles.shuffled,
            roles.ceiling,
            roles.neutral,
            roles.limit,
        )
    ]
    assert names == ["model", "ridge", "shuffled", "ceiling", "ceiling_neutral", "turned"]


def test_without_results_there_is_no_report(tmp_path):
    with pytest.raises(ResultsError, match="cannot be read"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [0.0, 1e-6, 0.03, 0.2, 1, 7, 99, 100, 101])
def test_axes_end_at_round_values_that_hold_the_data(value):
    top = svg.nice_top(value)
    marks = svg.ticks(top)
    assert top >= value and top <= max(2.6 * value, 1) and 2 <= len(marks) <= 6
    assert marks[0] == 0 and marks[-1] <= top * (1 + 1e-9)
