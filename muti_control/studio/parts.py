"""Plain HTML elements for the views, and parts of a page that follow the state of their session."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from nicegui.element import Element
from nicegui.elements.mixins.text_element import TextElement

from muti_control.studio import texts
from muti_control.studio.state import State

_NOTHING = object()


class Text(TextElement):
    """An element with a text."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(tag=name, text=text)


def tag(name: str, /, text: str = "", classes: str = "", **attributes: Any) -> Text:
    """Return an HTML element with a text. In names of attributes _ stands for a dash; None leaves one out."""
    element = Text(name, text)
    element.classes(classes)
    attribute(element, **attributes)
    return element


def attribute(element: Element, /, **attributes: Any) -> None:
    """Set attributes of an element; None removes one."""
    for key, value in attributes.items():
        key = "^value" if key == "value" else key.replace("_", "-")  # ^: what a person types is not set back
        if value is None:
            element.props.pop(key, None)
        else:
            element.props[key] = value
    element.update()


def button(text: str, act: Callable[[], Any], classes: str = "", **attributes: Any) -> Text:
    """Return a button."""
    element = tag("button", text, classes, type="button", **attributes)
    element.on("click", lambda: act(), js_handler="() => emit()")
    return element


def on_value(
    element: Element, event: str, act: Callable[[Any], Any], value: str = "event.target.value"
) -> None:
    """Call ``act`` with the value of an input after a browser's event; ``value`` is JavaScript."""
    element.on(event, lambda message: act(message.args), js_handler=f"(event) => emit({value})")


def choice(
    name: str, label: str, options: Mapping[Any, str], chosen: Any, act: Callable[[Any], Any] | None
) -> None:
    """Add one of several, as a row of radio buttons; without ``act`` the browser alone follows it."""
    with tag("fieldset", classes="choice"):
        tag("legend", label)
        for key, words in options.items():
            with tag("label"):
                one = tag(
                    "input", type="radio", name=name, value=str(key), checked=True if key == chosen else None
                )
                if act is not None:
                    on_value(one, "change", partial(_choose, act, key))
                tag("span", words)


def _choose(act: Callable[[Any], Any], key: Any, _: object) -> None:
    act(key)


def picture(classes: str = "", zoom: bool = True) -> tuple[Element, Element]:
    """Return a button that enlarges a picture, and the picture; :func:`show` fills it."""
    frame = tag("button" if zoom else "div", classes=f"picture {classes}")
    attribute(frame, **({"type": "button", "data_zoom": ""} if zoom else {}))
    with frame:
        image = tag("img", alt="", hidden=True)
    return frame, image


def show(pair: tuple[Element, Element], address: str | None, words: str) -> None:
    """Show a picture of an address, described by words; none where the address is empty."""
    frame, image = pair
    attribute(image, src=address or None, alt=words, hidden=None if address else True)
    if frame.tag == "button":
        label = texts.ZOOM_LABEL.format(what=words)
        attribute(frame, aria_label=label, disabled=None if address else True)


def drop(kind: str, title: str, more: str = "", folder: bool = False) -> None:
    """Add a place for files; studio.js sends them."""
    with tag("div", classes="drop", data_kind=kind):
        tag("p", title, "drop-title")
        if more:
            tag("p", more, "soft")
        with tag("div", classes="row"):
            tag("button", texts.CHOOSE_FILE, "main", type="button", data_browse=".file")
            if folder:
                tag("button", texts.CHOOSE_FOLDER, type="button", data_browse=".folder")
        tag("input", classes="file", type="file", tabindex="-1", aria_label=texts.FILE_LABEL[kind])
        if folder:
            tag("input", classes="folder", type="file", webkitdirectory="", tabindex="-1",
                aria_label=texts.FOLDER_LABEL)  # fmt: skip
        tag("output", aria_live="polite")


class Watch:
    """What follows a session: each part is brought up to date when what it depends on has changed."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._parts: list[list[Any]] = []
        self._version = -1

    def __call__(self, value: Callable[[], Any], apply: Callable[[Any], object]) -> None:
        """Call ``apply`` with ``value()`` now, and whenever it is another one."""
        self._parts.append([value, apply, _NOTHING])

    def area(self, value: Callable[[], Any], build: Callable[[], object], classes: str = "") -> None:
        """Add an area that ``build`` fills anew whenever ``value()`` has changed."""
        room = tag("div", classes=classes)

        def rebuild(_: Any) -> None:
            room.clear()
            with room:
                build()

        self(value, rebuild)

    def problem(self, place: str) -> None:
        """Add the place of a message on what was not done."""
        message = tag("p", "", "problem", role="alert")

        def say(words: str) -> None:
            message.set_text(words)
            attribute(message, hidden=None if words else True)

        self(lambda: self.state.problems.get(place, ""), say)

    def update(self, always: bool = False) -> None:
        """Bring all parts up to date, if anything has changed."""
        if self._version == self.state.version and not always and not self.state.waits:
            return
        self._version = self.state.version
        for part in self._parts:
            value, apply, before = part
            now = value()
            if now != before or before is _NOTHING:
                part[2] = now
                apply(now)
