"""The views Landmarks, Texture and Case."""

from __future__ import annotations

import json
from functools import partial

from nicegui import ui
from nicegui.element import Element

from muti_control.case.depths import Marker
from muti_control.studio import texts
from muti_control.studio.parts import (
    Text,
    Watch,
    attribute,
    button,
    choice,
    drop,
    on_value,
    picture,
    show,
    tag,
)
from muti_control.studio.state import State
from muti_control.studio.views import stage

MOST_PULL = 0.1  # scale of SPGD
CHIN = 16  # the point that is chosen at first


def landmarks_view(state: State, watch: Watch) -> None:
    """Add the view of the points that shape the face."""
    tag("h1", texts.LANDMARKS)
    tag("p", texts.LANDMARKS_MORE, "lead")
    none = tag("p", texts.NO_LANDMARKS if state.preset.landmarks else texts.NO_BRANCH, "empty")
    with tag("div", classes="editor", data_group="all", data_how="near") as editor:
        with tag("div", classes="pair"):
            pairs = []
            for where in (texts.ON_SKULL, texts.ON_FACE):
                with tag("figure"):
                    with tag("div", classes="board"):
                        pairs.append(picture("square", zoom=False))
                        tag("svg", viewBox="0 0 1000 1000", tabindex="0", role="application",
                            aria_label=texts.EDITOR.format(where=where))  # fmt: skip
                    tag("figcaption", where)
        with tag("div", classes="card form"):
            tag("p", "", "where", aria_live="polite")
            with tag("div", classes="row"):
                lists: list[Element] = []
                for name, label in (("group", texts.GROUP), ("point", texts.POINT)):
                    with tag("label", classes="field"):
                        tag("span", label)
                        lists.append(tag("select", classes=name))
            choice("how", texts.HOW, texts.HOWS, "near", None)
            moved = tag("p", "", "soft")
            with tag("div", classes="row"):
                undo = button(texts.UNDO, state.undo_points)
                reset = button(texts.RESET, state.reset_points)
            with tag("label", classes="field"):
                tag("span", texts.PULL)
                pull = tag(
                    "input", type="range", min=0, max=MOST_PULL, step=0.005, value=state.spgd, data_pull=""
                )
                tag("output", f"{state.spgd:.3f}" if state.spgd else texts.OFF)
            on_value(pull, "pull", lambda scale: state.set_spgd(float(scale)), "event.detail")
            tag("p", texts.PULL_MORE, "soft")
    editor.on(
        "points", lambda event: state.move_points(event.args), js_handler="(event) => emit(event.detail)"
    )
    with editor:
        _depths(state, watch)
    with tag("figure"):
        trace = picture("wide")
        words = tag("figcaption", texts.NO_TRACE)

    def trace_of(address: str) -> None:
        show(trace, address, texts.TRACE)
        words.set_text(texts.TRACE if address else texts.NO_TRACE)

    watch(lambda: state.case.urls.get("0_spgd", "") if state.case else "", trace_of)
    watch(lambda: state.skull_url, lambda url: show(pairs[0], url, texts.SKULL_ALT))
    watch(lambda: state.newest[0], lambda url: show(pairs[1], url, texts.FACE.format(number=1)))

    def follow(_: object) -> None:
        marks = state.marks
        attribute(editor, hidden=True if marks is None else None)
        attribute(none, hidden=None if marks is None else True)
        if marks is None:
            return
        moved.set_text(texts.EDITED.format(num=marks.num_edited) if marks.edited else "")
        attribute(undo, disabled=None if marks.undo else True)
        attribute(reset, disabled=None if marks.edited else True)
        groups = texts.GROUPS | {group: group for group in marks.groups}
        points = {str(k): f"{k} {name}" for k, name in enumerate(marks.names)}
        for room, options in zip(lists, (groups, points), strict=True):
            if len(list(room)) != len(options):
                room.clear()
                with room:
                    for key, name in options.items():
                        tag("option", name, value=key)
        content = {
            "points": marks.points.tolist(),
            "read": marks.read.tolist(),
            "names": marks.names,
            "groups": marks.groups,
            "chosen": min(CHIN, len(marks.names) - 1),
            "size": 256,
            "depths": [
                [m.bone.tolist(), m.goal.tolist()]
                for m in state.markers
                if m.bone is not None and m.goal is not None
            ],
        }
        ui.run_javascript(f"studio.marks({json.dumps(editor.html_id)}, {json.dumps(content)})")

    watch(
        lambda: (id(state.marks), state.marks and state.marks.points.tobytes(), state.depths, state.side_mm),
        follow,
    )


def _depths(state: State, watch: Watch) -> None:
    """Add the user's depths of soft tissue, and what the picture shows of each."""
    with tag("section", classes="card"):
        tag("h2", texts.DEPTHS)
        tag("p", texts.DEPTHS_MORE, "soft")
        with tag("div", classes="columns"):
            with tag("div"):
                drop("depths", texts.DROP_DEPTHS)
                watch.problem("depths")
            with tag("div") as room, tag("div", classes="scroll"), tag("table"):
                with tag("thead"), tag("tr"):
                    for word in texts.DEPTHS_HEAD:
                        tag("th", word, scope="col")
                body = tag("tbody")
            with room, tag("div", classes="row"):
                move = button(texts.MOVE_TO_DEPTHS, state.move_to_depths, "main")
                button(texts.DROP_IT, state.drop_depths)
    cells: dict[int, Text] = {}

    def rows(_: object) -> None:
        attribute(room, hidden=None if state.depths else True)
        body.clear()
        with body:
            for depth in state.depths:
                name = str(depth.number) if state.marks is None else state.marks.names[depth.number]
                bounds = [f"{one:g}" if one else "" for one in (depth.lower, depth.upper)]
                with tag("tr"):
                    tag("td", name)
                    with tag("td"):
                        one = tag("input", type="number", min=0, max=60, step=0.5, value=depth.mm,
                                  aria_label=f"{texts.DEPTHS}: {name}")  # fmt: skip
                    on_value(one, "change", partial(state.set_depth, depth.number))
                    tag("td", "–".join(bounds) if any(bounds) else "")
                    cells[depth.number] = tag("td", "")

    def follow(now: list[tuple[int, str]]) -> None:
        for number, words in now:
            cells[number].set_text(words)
        attribute(move, disabled=None if any(m.goal is not None for m in state.markers) else True)

    watch(lambda: ([depth.number for depth in state.depths], id(state.marks)), rows)
    watch(lambda: [(m.depth.number, _seen(m, state.side_mm)) for m in state.markers], follow)


def _seen(marker: Marker, side_mm: float | None) -> str:
    """Return what the picture shows of a depth, in words."""
    if marker.mm is None:
        if not marker.outline:
            return texts.DEPTH_UNSEEN
        return texts.DEPTH_NO_SCALE if side_mm is None else texts.DEPTH_NO_EDGE
    low, high = marker.depth.lower or 0, marker.depth.upper or float("inf")
    return texts.DEPTH_NOW.format(mm=marker.mm) + ("" if low <= marker.mm <= high else texts.DEPTH_OUTSIDE)


def texture_view(state: State, watch: Watch) -> None:
    """Add the view of the exemplar."""
    tag("h1", texts.TEXTURE)
    tag("p", texts.TEXTURE_MORE, "lead")
    with tag("div", classes="columns"):
        with tag("section", classes="card"):
            if state.preset.texture:
                drop("texture", texts.DROP_TEXTURE)
            else:
                tag("p", texts.NO_TEXTURE_BRANCH, "empty")
            watch.problem("texture")
            exemplar = picture("thumb")
            watch(lambda: state.texture_url, lambda url: show(exemplar, url, texts.TEXTURE_ALT))
            without = button(texts.DROP_IT, state.drop_texture)
            watch(lambda: state.texture is None, lambda off: attribute(without, disabled=off or None))
        stage(state, watch)


def case_view(state: State, watch: Watch) -> None:
    """Add the view of the case: its words, its report, its log, and cases of before."""
    tag("h1", texts.CASE)
    with tag("div", classes="columns"):
        with tag("section", classes="card form"):
            watch.area(lambda: state.replaced, lambda: _heading(state))
            tag("p", texts.CASE_PRIVATE, "soft")
            write = button(texts.WRITE_REPORT, state.write_report, "main")
            watch(
                lambda: state.case_busy,
                lambda busy: write.set_text(texts.WRITING if busy else texts.WRITE_REPORT),
            )
            watch(
                lambda: state.case is None or state.case_busy,
                lambda off: attribute(write, disabled=off or None),
            )
            watch.problem("report")
            watch.area(
                lambda: (dict(state.case.urls) if state.case else {}, state.earlier, state.outdated),
                lambda: _documents(state),
                "documents",
            )
        with tag("section", classes="card"):
            tag("h2", texts.OPEN_CASE)
            drop("case", texts.DROP_CASE)
            watch.problem("case")
    watch.area(lambda: state.case and state.case.verification, lambda: _log(state))


def _heading(state: State) -> None:
    for name, label in (
        ("case_number", texts.CASE_NUMBER),
        ("examiner", texts.EXAMINER),
        ("notes", texts.CASE_NOTES),
    ):
        with tag("label", classes="field"):
            tag("span", label)
            text = state.heading[name]
            if name == "notes":
                one = tag("textarea", text, rows=3, maxlength="2000")
            else:
                one = tag("input", type="text", value=text, maxlength="120", autocomplete="off")
            on_value(one, "input", partial(state.set_heading, name))


def _documents(state: State) -> None:
    urls = state.case.urls if state.case else {}
    if not urls:
        tag("p", texts.NO_CASE_YET, "empty")
    for name, words in texts.DOCUMENTS.items():
        if name in urls:
            tag("a", words, href=urls[name], target="_blank", rel="noopener")
    if state.outdated:
        tag("p", texts.OUTDATED, "problem", role="alert")
    for number, (name, url) in enumerate(state.earlier, 1):
        tag("a", texts.EARLIER.format(number=number, name=name), href=url)


def _log(state: State) -> None:
    if state.case is None:
        return
    verification = state.case.verification
    with tag("section", classes="card"):
        tag("h2", texts.LOG)
        good = not verification.differences
        with tag("p", classes=f"light {'ok' if good else 'stop'}"):
            tag("i", "", aria_hidden="true")
            tag(
                "strong",
                texts.VERIFIED if good else texts.DIFFERENCES.format(num=len(verification.differences)),
            )
        with tag("ul"):
            for line in (*verification.differences[:20], *verification.notes):
                tag("li", line)
        with tag("div", classes="scroll", tabindex="0", role="region", aria_label=texts.LOG), tag("table"):
            with tag("thead"), tag("tr"):
                for word in texts.LOG_HEAD:
                    tag("th", word, scope="col")
            with tag("tbody"):
                for entry in verification.log.entries:
                    with tag("tr"):
                        time = str(entry["time"]).replace("T", " ").removesuffix("+00:00")
                        for text in (entry["number"], time, entry["action"], len(entry["files"])):
                            tag("td", str(text))
        tag("p", texts.HEAD.format(head=verification.log.head or "-"), "soft hash")
