"""The views Skull, Person and Faces. They show a session, and call it; they know nothing themselves."""

from __future__ import annotations

from functools import partial
from typing import Any

from nicegui import ui

from data.biometrics import BODY_MASS_WORDS
from muti_control.studio import texts
from muti_control.studio.parts import Watch, attribute, button, choice, drop, on_value, picture, show, tag
from muti_control.studio.state import Shipped, State

AGES = 15, 90  # years of the sliders
SHIPPED_MM = 280 / 256  # mm per px of the test skulls


def start_view(state: State, watch: Watch, skulls: list[Shipped]) -> None:
    """Add the view in which a skull is given and checked."""
    tag("h1", texts.START)
    with tag("div", classes="columns"):
        with tag("section"):
            drop("skull", texts.DROP_SKULL, texts.DROP_SKULL_MORE, folder=True)
            watch.problem("skull")
            tag("h2", texts.TEST_SKULLS)
            with tag("div", classes="thumbs"):
                for skull in skulls:
                    one = button("", partial(state.take_skull, skull.path, skull.name, SHIPPED_MM))
                    attribute(one, aria_label=skull.label, title=skull.label)
                    with one:
                        tag("img", src=skull.address, alt="", loading="lazy")
            watch.area(lambda: (state.skull, state.replaced), lambda: _scale(state))
        with tag("section", classes="card"):
            tag("h2", texts.CHECK)
            watch.area(lambda: (state.look, state.quick.busy, state.skull is None), lambda: _light(state))
            with tag("div", classes="pair"):
                figures = []
                for words in (texts.BEFORE, texts.AFTER):
                    with tag("figure"):
                        figures.append(picture("square"))
                        tag("figcaption", words)
            before, after = figures

            def see(look: dict[str, Any] | None) -> None:
                look = look or {"skull": "", "prepared": ""}
                show(before, look["skull"], f"{texts.SKULL_ALT}, {texts.BEFORE}")
                drawn = "" if state.refused else look["prepared"] or look["skull"]
                show(after, drawn, f"{texts.SKULL_ALT}, {texts.AFTER}")
                if state.pages:
                    ui.run_javascript("studio.look()")

            watch(lambda: state.look, see)


def _scale(state: State) -> None:
    with tag("label", classes="field"):
        tag("span", texts.SCALE)
        scale = tag("input", type="number", min=0.01, max=20, step=0.001, inputmode="decimal",
                    value=None if state.mm_per_px is None else f"{state.mm_per_px:.4g}")  # fmt: skip
        on_value(scale, "change", state.set_scale)


def _light(state: State) -> None:
    look = state.look
    if look is None:
        busy = state.skull is not None and state.quick.busy
        tag("p", texts.CHECKING if busy else texts.NO_SKULL_YET, "empty" + " busy" * busy)
        return
    with tag("p", classes=f"light {look['level']}"):
        tag("i", "", aria_hidden="true")
        tag("strong", texts.LIGHTS[look["level"]])
        tag("span", texts.LIGHT_WORDS[look["level"]])
    if look["findings"] or look["remarks"]:
        with tag("ul"):
            for line in (*look["findings"], *look["remarks"]):
                tag("li", line)
    if state.skull is None:
        tag("p", texts.SKULL_GONE, "soft")
    elif look["level"] != "stop":
        done = "; ".join(look["done"])
        tag("p", texts.DONE.format(what=done) if done else texts.NOTHING_DONE, "soft")
    if look["before"]:
        tag("p", texts.FOUND_BEFORE.format(what="; ".join(look["before"])), "soft")


def who_view(state: State, watch: Watch) -> None:
    """Add the view of what is known of the person."""
    tag("h1", texts.WHO)
    tag("p", texts.WHO_MORE, "lead")
    with tag("div", classes="columns"):
        watch.area(lambda: state.replaced, lambda: _person(state), "card form")
        stage(state, watch)


def _person(state: State) -> None:
    person = state.person
    choice(
        "sex",
        texts.SEX,
        {None: texts.UNKNOWN} | texts.SEXES,
        person["sex"],
        lambda sex: state.state_person(sex=sex),
    )
    age = person["age"]
    low, high = age if isinstance(age, tuple) else (age or 30, age or 50)
    with tag("fieldset", classes="age") as ages:
        with tag("legend", texts.AGE + " "):
            tag("output", texts.UNKNOWN if age is None else f"{low:g}–{high:g}")
        with tag("div", classes="dual"):
            for label, value in ((texts.AGE_FROM, low), (texts.AGE_TO, high)):
                tag("input", type="range", min=AGES[0], max=AGES[1], step=1, value=value, aria_label=label)
        with tag("label", classes="check"):
            tag("input", type="checkbox", checked=True if age is None else None)
            tag("span", texts.AGE_UNKNOWN)
    on_value(
        ages,
        "age",
        lambda ends: state.state_person(age=(float(ends[0]), float(ends[1])) if ends else None),
        "event.detail",
    )
    ethnicities = {None: texts.UNKNOWN} | {word: word for word in state.preset.ethnicities}
    choice("ethnicity", texts.ETHNICITY, ethnicities, person["ethnicity"],
           lambda word: state.state_person(ethnicity=word))  # fmt: skip
    choice("mass", texts.BODY_MASS, {None: texts.UNKNOWN} | BODY_MASS_WORDS, person["body_mass"],
           lambda level: state.state_person(body_mass=level))  # fmt: skip


def stage(state: State, watch: Watch) -> None:
    """Add the skull beside one face that follows every change."""
    with tag("section", classes="card stage"):
        tag("h2", texts.FIRST_FACE)
        with tag("div", classes="pair"):
            skull, face = picture("square"), picture("square")
        caption = tag("p", "", "soft")
        tag("p", texts.FIRST_FACE_MORE, "soft")
        watch(lambda: state.skull_url, lambda url: show(skull, url, texts.SKULL_ALT))

        def follow(now: tuple[str, str, bool]) -> None:
            address, words, busy = now
            show(face, address, texts.face(0, words))
            caption.set_text(words if address else texts.NO_FACE_YET)
            face[0].classes(add="busy" if busy else "", remove="" if busy else "busy")

        watch(lambda: (*state.newest, state.quick.busy), follow)


def faces_view(state: State, watch: Watch) -> None:
    """Add the view of all faces."""
    with tag("div", classes="head"):
        with tag("div"):
            tag("h1", texts.FACES)
            tag("p", texts.FACES_MORE, "lead")
        with tag("div", classes="row"):
            again = button(texts.DRAW_AGAIN, state.draw_again)
            watch(
                lambda: state.skull is None or state.refused or state.fine.busy,
                lambda off: attribute(again, disabled=off or None),
            )
    with tag("div", classes="tabs", role="group", aria_label=texts.TABS_LABEL):
        for name, words in texts.TABS.items():
            tag("button", words, type="button", data_to_tab=name, aria_pressed="false")
    watch.area(
        lambda: (state.fine.phase, state.fine.message, state.skull, state.refused), lambda: _condition(state)
    )
    with tag("div", classes="tab", data_tab="variants"):
        with tag("div", classes="faces"):
            for k in range(state.config.num_samples):
                _variant(state, watch, k)
        tag("p", texts.CAPTION_MORE, "soft")
        watch.area(lambda: state.fine.warnings, lambda: _warnings(state))
    with tag("div", classes="tab", data_tab="together", hidden=True):
        _case_picture(state, watch, "mean", texts.MEAN, "mean")
        _case_picture(state, watch, "spread", texts.SPREAD, "wide")
        tag("p", texts.SPREAD_MORE, "soft")
    with tag("div", classes="tab", data_tab="overlay", hidden=True):
        _wipe(state, watch)
        _case_picture(state, watch, "overlay", texts.OVERLAY, "wide")
    with tag("div", classes="tab", data_tab="grid", hidden=True):
        tag("p", texts.GRID_MORE, "lead")
        draw = button(texts.DRAW_GRID, state.draw_grid, "main")
        watch(lambda: state.skull is None or state.look is None or state.refused or state.grid.busy,
              lambda off: attribute(draw, disabled=off or None))  # fmt: skip
        watch.area(lambda: state.grid.message, lambda: _said(state.grid.message))
        grid = picture("wide")
        watch(lambda: state.grid_url, lambda url: show(grid, url, texts.GRID))
    with tag("div", classes="tab", data_tab="compare", hidden=True):
        watch.area(lambda: state.pins, lambda: _compare(state))


def _said(message: str) -> None:
    if message:
        tag("p", message, "problem", role="alert")


def _condition(state: State) -> None:
    fine = state.fine
    if state.skull is None and fine.phase == "empty":
        tag("p", texts.NO_SKULL_YET, "empty")
    if state.refused:
        tag("p", texts.REFUSED, "empty")
    _said(fine.message)
    if fine.phase == "stopped":
        tag("p", texts.STOPPED, "empty")


def _warnings(state: State) -> None:
    if state.fine.warnings:
        with tag("details"):
            tag("summary", texts.NOTES)
            with tag("ul"):
                for line in state.fine.warnings:
                    tag("li", line)


def _variant(state: State, watch: Watch, k: int) -> None:
    with tag("figure", classes="face"):
        pair = picture("square")
        with tag("figcaption"):
            words = tag("span", texts.FACE.format(number=k + 1))
            pin = button(
                texts.PIN, lambda: state.pin(k), "small", aria_label=texts.PIN_LABEL.format(number=k + 1)
            )

    def follow(now: tuple[str | None, str, bool]) -> None:
        address, caption, busy = now
        show(pair, address, texts.face(k, caption))
        words.set_text(caption or texts.FACE.format(number=k + 1))
        pair[0].classes(add="busy" if busy else "", remove="" if busy else "busy")
        attribute(pin, disabled=None if address and not busy else True)

    watch(lambda: (state.fine.faces.get(k), state.fine.captions.get(k, ""), state.fine.busy), follow)


def _case_picture(state: State, watch: Watch, kind: str, words: str, classes: str) -> None:
    with tag("figure"):
        pair = picture(classes)
        caption = tag("figcaption", words)

    def follow(address: str) -> None:
        show(pair, address, words)
        caption.set_text(words if address else f"{words}. {texts.WAIT_FOR_FACES}")

    watch(lambda: state.case.urls.get(kind, "") if state.case else "", follow)


def _wipe(state: State, watch: Watch) -> None:
    with tag("figure"):
        with tag("div", classes="wipe"):
            with tag("div", classes="layers"):
                under, over = picture("square", zoom=False), picture("square over", zoom=False)
            tag("input", type="range", min=0, max=100, value=50, data_wipe="", aria_label=texts.WIPE)
        tag("figcaption", texts.WIPE_MORE)
    watch(lambda: state.skull_url, lambda url: show(under, url, texts.SKULL_ALT))
    watch(lambda: state.case.urls.get("mean", "") if state.case else state.fine.faces.get(0, ""),
          lambda url: show(over, url, texts.MEAN))  # fmt: skip


def _compare(state: State) -> None:
    if not state.pins:
        tag("p", texts.COMPARE_EMPTY, "empty")
        return
    with tag("div", classes="pair"):
        for address, caption in state.pins:
            with tag("figure"):
                show(picture("square"), address, caption)
                tag("figcaption", caption)
    if len(state.pins) == 1:
        tag("p", texts.COMPARE_ONE, "soft")
    button(texts.UNPIN, state.unpin)
