"""The page: its frame, the views in it, and the server that shows it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from nicegui import app, ui

from data.sheet import NOTICE
from muti_control.sampling.request import DEMO_SKULLS, ROOT
from muti_control.studio import texts
from muti_control.studio.editing import case_view, landmarks_view, texture_view
from muti_control.studio.parts import Watch, attribute, button, tag
from muti_control.studio.routes import Guard, add_routes
from muti_control.studio.sessions import Sessions
from muti_control.studio.state import Shipped, State
from muti_control.studio.views import faces_view, start_view, who_view
from muti_control.studio.worker import Worker

if TYPE_CHECKING:
    from muti_control.studio.config import StudioConfig

HERE = Path(__file__).parent
NUM_TEST_SKULLS = 9
CT_SKULL = "data/ct/open_ct_skull.png"
FOLLOW = 0.15  # s between two looks at what has changed
ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'%3E%3Crect width='32' height='32' "
    "rx='7' fill='%23245a6b'/%3E%3Cpath d='M8 20V12a8 8 0 0 1 16 0v8l-3 2v4H11v-4z' fill='none' stroke='white' "
    "stroke-width='2'/%3E%3C/svg%3E"
)


def run(config: StudioConfig, port: int, worker: Worker, root: Path, address: str, secret: str) -> None:
    """Serve the page until Ctrl-C; sessions end with it."""
    sessions = Sessions(root, worker, config)
    skulls = _shipped()
    for file in ("studio.js", "studio.css"):
        app.add_static_file(local_file=HERE / file, url_path=f"/studio/{file}", max_cache_age=0)
    for skull in skulls:
        app.add_static_file(local_file=skull.path, url_path=skull.address)
    add_routes(sessions)
    app.add_middleware(Guard, token=config.token)

    @app.on_startup
    def begin() -> None:
        worker.call = asyncio.get_running_loop().call_soon_threadsafe
        print(f"the studio is at {address}\n{NOTICE} Ctrl-C ends it.", flush=True)

    app.on_shutdown(sessions.end_all)

    @ui.page("/", title=texts.TITLE, favicon=ICON, reconnect_timeout=20)
    def page() -> None:
        identity = str(app.storage.browser["id"])
        state = sessions.of(identity)
        _head()
        if state is None:
            with tag("div", classes="alone"):
                tag("h1", texts.TITLE)
                tag("p", texts.FULL.format(limit=config.max_sessions), role="alert")
            return
        _page(state, sessions, identity, skulls)

    ui.run(
        host=config.host,
        port=port,
        show=config.show and (f"/?token={config.token}" if config.token else True),
        reload=False,
        tailwind=False,
        show_welcome_message=False,
        storage_secret=secret,
        session_middleware_kwargs={"session_cookie": f"iccr_studio_{port}", "same_site": "lax"},
        language="en-US",
        dark=None,
    )


def _head() -> None:
    words = json.dumps(texts.WORDS).replace("<", "\\u003c")
    ui.add_head_html(
        f'<link rel="stylesheet" href="/studio/studio.css"><script src="/studio/studio.js"></script>'
        f'<script type="application/json" id="words">{words}</script>'
        '<meta name="description" content="Faces from a skull, on this machine">'
    )


def _page(state: State, sessions: Sessions, identity: str, skulls: list[Shipped]) -> None:
    watch, client = Watch(state), ui.context.client
    with tag("header"):
        tag("strong", texts.TITLE, "brand")
        tag("p", NOTICE, "notice")
        with tag("div", classes="row"):
            tag(
                "button",
                "◐",
                "icon",
                type="button",
                data_theme_switch="",
                aria_label=texts.THEME,
                title=texts.THEME,
            )
            tag("button", texts.END, "quiet", type="button", data_ask="")
    with tag("nav", aria_label=texts.STEPS):
        for number, (name, words) in enumerate(texts.VIEWS.items(), 1):
            with tag("button", type="button", data_view=name):
                tag("i", str(number), aria_hidden="true")
                tag("span", words)
    _status(state, watch)
    views = {
        "start": lambda: start_view(state, watch, skulls),
        "who": lambda: who_view(state, watch),
        "faces": lambda: faces_view(state, watch),
        "landmarks": lambda: landmarks_view(state, watch),
        "texture": lambda: texture_view(state, watch),
        "case": lambda: case_view(state, watch),
    }
    with tag("div", classes="views"):
        for name, build in views.items():
            with tag("div", classes="view", id=f"view-{name}", hidden=name != "start" or None):
                build()
    with tag("dialog", classes="ask", aria_label=texts.END):
        tag("p", texts.END_SURE)
        with tag("div", classes="row"):
            tag("button", texts.CANCEL, "main", type="button", data_close="")
            button(texts.END, lambda: _end(sessions, identity))
    watch.update(always=True)
    ui.timer(FOLLOW, watch.update)

    def come() -> None:
        state.pages += 1
        ui.run_javascript("studio.start()")
        watch.update(always=True)

    def go() -> None:
        state.pages = max(0, state.pages - 1)
        state.seen = monotonic()

    client.on_connect(come)
    client.on_disconnect(go)


def _status(state: State, watch: Watch) -> None:
    """Add the line that says what is drawn, with its progress and the way to stop it."""
    with tag("div", classes="status"):
        words = tag("p", "", role="status")
        bar = tag("progress", max=1, value=0, aria_label=texts.FACES)
        cancel = button(texts.CANCEL, state.cancel)

    def follow(now: tuple[str, float | None, bool]) -> None:
        text, share, busy = now
        words.set_text(text)
        attribute(bar, value=share, hidden=None if busy else True)
        attribute(cancel, hidden=None if busy else True)

    watch(lambda: _doing(state), follow)


def _doing(state: State) -> tuple[str, float | None, bool]:
    """Return what is going on in words, the share that is done (None: unknown), and whether it can be stopped."""
    for drawing in (state.quick, state.fine, state.grid):
        if drawing.phase == "waiting":
            ahead = state.ahead()
            loading = texts.LOADING if not state.worker.ready else texts.NEXT
            return state.notice or (texts.WAITING.format(ahead=ahead) if ahead else loading), None, True
        if drawing.phase == "drawing":
            share = drawing.step / drawing.total if drawing.total else None
            if drawing is state.fine:
                words = texts.DRAWING.format(
                    faces=state.config.num_samples, step=drawing.step, total=drawing.total or "..."
                )
            else:
                words = texts.QUICK if drawing is state.quick else texts.GRID_DRAWING
            return words, share, True
        if drawing.phase == "saving":
            return texts.SAVING, None, True
    if state.quick.phase == "failed":
        return state.quick.message, 0, False
    if state.refused:
        return texts.REFUSED, 0, False
    if state.resting:
        return texts.RESTS, None, True
    return texts.READY if state.skull else texts.NO_SKULL_YET, 0, False


def _end(sessions: Sessions, identity: str) -> None:
    sessions.end(identity)
    ui.run_javascript("location.hash = ''; location.reload()")


def _shipped() -> list[Shipped]:
    """Return skulls that come with this program."""
    skulls = []
    for line in (ROOT / DEMO_SKULLS).read_text(encoding="utf-8").splitlines()[:NUM_TEST_SKULLS]:
        file = json.loads(line)["source"]
        path, name = ROOT / "data/pairedCS/skull" / file, Path(file).stem
        skulls.append(Shipped(name, path, f"/studio/skull/{file}", texts.TEST_SKULL.format(name=name)))
    path = ROOT / CT_SKULL
    return [*skulls, Shipped(path.stem, path, f"/studio/skull/{path.name}", texts.CT_SKULL)]
