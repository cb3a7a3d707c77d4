"""report.html: one whole page that asks for nothing, and sentences that follow the figures."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from muti_control.evaluation.report import figures
from muti_control.evaluation.report.page import report, write_report
from muti_control.evaluation.report.words import findings, limits, what_was_evaluated
from muti_control.evaluation.results.results_file import read_results, write_results
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
        values = dict(attributes)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values["href"]] if tag == "a" else []
        if tag == "img":
            assert values["alt"], "a picture without words"
            self.images.append(values["src"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def evaluation(folder):
    write_results(folder, made_up(folder))
    return read_results(folder)


def test_the_page_is_whole_and_asks_for_nothing(folder, evaluation):
    text = write_report(folder).read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "link", "iframe", "object"} & page.tags and "@import" not in text
    assert not re.findall(r"""(?:src|href|url\()\s*=?\s*["']?(?:https?:)?//""", text)
    kinds = {source.split(";")[0] for source in page.images}
    assert kinds == {"data:image/jpeg", "data:image/svg+xml"}
    assert len(page.ids) == len(set(page.ids))
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert evaluation.notice in text and evaluation.command in text and "nan" not in text.lower().split()
    assert "Undefined" not in text and not [path for path in folder.iterdir() if path.name.startswith(".")]
    for table in re.findall(r"<table .*?</table>", text, flags=re.S):  # a cell for every column
        head, body = table.split("<tbody>")
        rows = [row for row in body.split("<tr")[1:] if "colspan" not in row]
        columns = len(re.findall("<th", head.split("<tr>")[-1]))
        assert rows and {len(re.findall("<t[hd][ >]", row)) for row in rows} == {columns}
    for method in evaluation.methods:
        rank1 = method.identification["dlib"].rank1
        value, interval = f"{100 * rank1.value:.1f}", f"[{100 * rank1.low:.1f}, {100 * rank1.high:.1f}]"
        assert re.search(rf">{re.escape(value)}\u2020?<small>{re.escape(interval)}</small>", text)
    one, two = (figures.match_curves(evaluation) for _ in range(2))
    assert one == two and "<svg" in one and "<dc:date>" not in one  # equal results give equal figures


def sentences(evaluation, **changes) -> str:
    return " ".join(findings(replace(evaluation, **changes)))


def test_who_wins_is_read_off_the_figures(folder, evaluation):
    loses, wins, same = (sentences(made_up(folder, gain=gain)) for gain in (-0.4, 0.6, 0.13))
    assert "The linear baseline wins" in loses
    assert "ICCR model is better than the best baseline" in wins and "It uses the skull" in wins
    assert "Neither rank-1 nor MRR separates" in same
    model, ridge = evaluation.methods[:2]

    def with_ranks(method, ranks):
        figures = identification(ranks, 100, [probe.groups for probe in evaluation.probes])
        return replace(method, identification={"dlib": figures})

    far, near = with_ranks(model, [50] * 60), with_ranks(ridge, [1] + [2] * 59)
    text = sentences(evaluation, methods=(far, near))  # rank-1 alone is open
    assert "The linear baseline wins" in text and "\u22120.488" in text and "\u22121.7 points" in text


def test_further_models_and_folders_are_named(folder, evaluation):
    other = replace(made_up(folder, gain=0.6).methods[0], name="plain", label="plain ControlNet")
    same = replace(evaluation.methods[0], name="copy", label="the copy")
    text = sentences(evaluation, methods=(*evaluation.methods, other, same))
    assert re.search(r"ICCR model minus plain ControlNet: rank-1 \u2212\d+\.\d points \[[^]]+\]\. ", text)
    assert "minus the copy: rank-1 +0.0 points [+0.0, +0.0], which is not certain." in text
    elsewhere = replace(evaluation.methods[0], kind="folder", label="faces from elsewhere")
    assert sentences(evaluation, methods=(elsewhere,)).startswith("The evaluated folder ranks")


def test_parts_that_are_missing_leave_no_heading(folder, evaluation):
    parts = ("coverage", "diversity", "edits", "sensitivity", "cases", "not_run")
    none = replace(evaluation, **dict.fromkeys(parts, ()), ood=None)
    text = report(none, folder)
    assert not {"coverage", "edits", "sensitivity", "unusual", "not-run", "cases"} & set(Page(text).ids)
    baselines = tuple(m for m in evaluation.methods if m.kind == "baseline")
    text = report(replace(none, methods=baselines), folder)
    assert "PCA + ridge ranks the true face first" in text and "differences" not in Page(text).ids
    Page(report(replace(none, methods=(), recognisers=(), measures=()), folder))


def test_the_skull_the_edits_and_the_limits_in_words(evaluation):
    model = evaluation.methods[0]
    shuffled = replace(evaluation.method("shuffled"), identification=model.identification)
    text = sentences(evaluation, methods=(model, shuffled))
    assert "No sign that it uses the skull" in text and "It uses the skull" not in text
    of_ridge = tuple(replace(edit, method="ridge") for edit in evaluation.edits)
    text = sentences(evaluation, edits=(*of_ridge, *evaluation.edits))
    assert text.count("Edit, body mass two levels up (60 pairs): ICCR model makes") == 1
    assert "PCA + ridge makes" not in text
    first = what_was_evaluated(evaluation)
    assert "the model iccr_demo" in first and "60 skulls" in first
    assert "synthetic" in limits(evaluation) and "Pix2Pix and KID" in limits(evaluation)


def test_names_from_outside_are_text_and_a_picture_may_be_missing(folder, evaluation):
    hostile = replace(evaluation.methods[0], label='<script>alert("x")</script>&')
    case = evaluation.cases[0]
    lost = replace(case, pictures=(replace(case.pictures[0], path="pictures/none.png"),))
    text = report(replace(evaluation, methods=(hostile, *evaluation.methods[1:]), cases=(lost,)), folder)
    assert "script" not in Page(text).tags and "&lt;script&gt;" in text and "picture is missing" in text
