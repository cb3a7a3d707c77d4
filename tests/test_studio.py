"""The studio: what it refuses, its queue and drawing process, and whole roads in a real browser."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.images import read_image
from ldm.checkpoint import sha256
from muti_control.case.log import read_log
from muti_control.networks.pipnet.reader import LandmarkReader
from muti_control.sampling.outputs import read_points
from muti_control.studio import texts
from muti_control.studio.__main__ import main
from muti_control.studio.config import StudioConfig

pytest.importorskip("nicegui", reason="the studio's tests are left out: NiceGUI is not installed")
from muti_control.studio.cases import case_files
from muti_control.studio.drawing import Request
from muti_control.studio.routes import Guard
from muti_control.studio.sessions import Sessions, UploadError
from muti_control.studio.worker import QueueFull, Worker

ROOT = Path(__file__).resolve().parent.parent
SKULL = ROOT / "data/pairedCS/skull/s00001.png"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


# --- what is refused before anything is shown -----------------------------------------------------------------
@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("host=0.0.0.0", "host"),
        ("host=192.168.1.7", "host"),
        ("token=short", "token"),
        ("port=70000", "port"),
        ("weights=nowhere.safetensors", "weights"),
        ("colour=red", "colour"),
    ],
)
def test_unsafe_or_wrong_settings_end_with_one_message(
    setting: str, key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([setting, f"out={tmp_path / 'studio'}", "show=false"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and f"{key}: " in message
    assert not (tmp_path / "studio").exists()


def test_a_port_that_is_taken_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main([f"port={port}", "show=false"]) == 2
    assert str(port) in capsys.readouterr().err


def test_every_word_of_the_page_is_in_its_file() -> None:
    source = "".join(path.read_text() for path in (ROOT / "muti_control/studio").glob("*.py"))
    names = set(re.findall(r"texts\.([A-Z][A-Z_]+)", source)) - {"NAME"}
    assert len(names) > 80
    assert all(getattr(texts, name) for name in names)


def test_nothing_else_imports_the_page() -> None:
    product = [
        p for p in ROOT.rglob("*.py") if ".venv" not in p.parts and p.relative_to(ROOT).parts[0] != "tests"
    ]
    inside = ROOT / "muti_control/studio"
    wrong = [
        p
        for p in product
        if inside not in p.parents
        and re.search(r"import nicegui|from nicegui|muti_control\.studio", p.read_text())
    ]
    assert not [p for p in wrong if p.name != "studio.py"]


# --- the guard --------------------------------------------------------------------------------------------------
def ask(guard: Guard, path: str = "/", kind: str = "http", **headers: str) -> tuple[int, dict[str, str]]:
    """Return status and headers of the answer to a request; of a refused web socket, its closing code."""
    where, _, query = path.partition("?")
    own = [(key.replace("_", "-").encode(), value.encode()) for key, value in headers.items()]
    scope = {"type": kind, "path": where, "query_string": query.encode(), "headers": own, "method": "GET"}
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    asyncio.run(guard(scope, receive, send))
    answer = sent[0]
    if answer["type"] == "websocket.close":
        return answer["code"], {}
    return answer.get("status", 101), {k.decode(): v.decode() for k, v in answer.get("headers", [])}


async def inner(scope: Any, _receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
    else:
        await send({"type": "websocket.accept"})


def test_without_a_token_only_this_machine_s_own_names_are_answered() -> None:
    guard = Guard(inner, None)
    for host in ("127.0.0.1:7860", "localhost:7860", "[::1]:7860"):
        status, headers = ask(guard, host=host)
        assert status == 200 and "default-src 'self'" in headers["content-security-policy"]
    assert ask(guard, host="evil.example")[0] == 403  # a name that leads to 127.0.0.1
    assert ask(guard, host="127.0.0.1:7860", origin="http://evil.example")[0] == 403
    assert ask(guard, kind="websocket", host="127.0.0.1:7860", origin="http://evil.example")[0] == 1008
    assert ask(guard, kind="websocket", host="127.0.0.1:7860", origin="http://127.0.0.1:7860")[0] == 101


def test_with_a_token_nothing_is_answered_before_it_was_given() -> None:
    guard = Guard(inner, "correct-horse-battery")
    for path in (
        "/",
        "/?token=wrong-horse-battery",
        "/studio/file/skull?token=correct-horse-battery",
        "/_nicegui/x",
    ):
        assert ask(guard, path, host="10.0.0.5")[0] == 401, path
    assert ask(guard, kind="websocket", host="10.0.0.5")[0] == 1008
    assert ask(guard, host="10.0.0.5", cookie="iccr_studio_token=0; x")[0] == 401
    status, headers = ask(guard, "/?token=correct-horse-battery", host="10.0.0.5")
    assert status == 303 and headers["location"] == "/" and "HttpOnly" in headers["set-cookie"]
    assert "battery" not in headers["set-cookie"]
    cookie = headers["set-cookie"].split(";")[0]
    assert ask(guard, "/studio/file/skull", host="10.0.0.5", cookie=cookie)[0] == 200
    assert ask(guard, kind="websocket", host="10.0.0.5", cookie=cookie)[0] == 101


# --- uploads ----------------------------------------------------------------------------------------------------
class NoWorker:
    """A queue that keeps what it is asked."""

    loading = {"weights": "none"}

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def submit(self, *arguments: Any) -> Any:
        self.asked.append(arguments)
        return SimpleNamespace()

    def cancel(self, _task: Any) -> None: ...


def upload(sessions: Sessions, contents: bytes, identity: str = "a", **changes: Any) -> None:
    async def body() -> Any:
        for k in range(0, len(contents), 1 << 16):
            yield contents[k : k + (1 << 16)]

    words = {"kind": "skull", "batch": "1", "index": 0, "count": 1, "name": "x.png", "size": 0} | changes

    async def send() -> None:
        await sessions.upload(identity, body=body(), **words)

    asyncio.run(send())


def test_uploads_keep_to_their_limits_and_to_their_folder(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path / "root", NoWorker(), StudioConfig(max_sessions=2, max_mib=1))  # type: ignore[arg-type]
    first, second = sessions.of("a"), sessions.of("b")
    assert first is not None and second is not None and first.folder != second.folder
    upload(sessions, SKULL.read_bytes(), name="../../../etc/passwd.PNG")
    assert first.skull is not None and first.skull.name == "skull.png" and first.folder in first.skull.parents
    assert [p.name for p in (tmp_path / "root").rglob("*") if p.is_file()] == ["skull.png"]
    for changes, status in (
        ({"size": 2 << 20}, 413),  # announced
        ({}, 413),  # only found out while it comes
        ({"count": 5000}, 413),
        ({"kind": "texture", "count": 2}, 413),
        ({"kind": "other"}, 400),
        ({"index": 3, "count": 4, "batch": "new"}, 400),
        ({"identity": "nobody"}, 403),
    ):
        with pytest.raises(UploadError) as refused:
            upload(sessions, bytes((1 << 20) + 1), **changes)
        assert refused.value.status == status, changes
    assert [p.name for p in (tmp_path / "root").rglob("*") if p.is_file()] == ["skull.png"]
    assert second.skull is None and not second.files and "5000" in first.problems["skull"]
    for k in range(3):
        upload(sessions, b"x", index=k, count=3, name=f"a/b/{k}.dcm", batch="2")
    assert first.skull is not None and sorted(p.name for p in first.skull.iterdir()) == [
        f"0000{k}.dcm" for k in range(3)
    ]
    first.pages = 1
    assert sessions.of("c") is not None and "b" not in sessions.states  # the empty one made room
    assert sessions.of("c") is not None
    sessions.states["c"].pages = 1
    assert sessions.of("d") is None
    sessions.end("a")
    assert not first.folder.exists()
    sessions.config = StudioConfig(keep=True)
    sessions.end_all()
    assert (tmp_path / "root").exists()


# --- the queue and the process ------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def worker(weights: Path) -> Iterator[Worker]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        own = Worker({"weights": str(weights), "device": "cpu", "precision": "fp32"}, limit=3)
        own.start()
        yield own
        own.close()


def wait_for(condition: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


class Heard(list[tuple[str, Any]]):
    """What a task reports."""

    def __call__(self, kind: str, content: Any) -> None:
        self.append((kind, content))

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self]


def request_of(steps: int, skull: Path = SKULL, **more: Any) -> Request:
    person = {"sex": "female", "age": 40, "ethnicity": "Asian", "body_mass": 4}
    return Request(skull, "skull", person, {"num_samples": 1, "sampling": {"steps": steps}}, **more)


def test_a_short_drawing_comes_between_two_steps_and_cancel_acts_within_a_second(worker: Worker) -> None:
    long, waiting, short = Heard(), Heard(), Heard()
    task = worker.submit("fine", request_of(999), long)
    second = worker.submit("fine", request_of(1), waiting)
    wait_for(lambda: "step" in long.kinds)
    assert worker.ahead(second) == 1 and worker.ahead(task) == 0
    worker.submit("quick", request_of(1), short)
    wait_for(lambda: "done" in short.kinds)
    assert "done" not in long.kinds and not waiting
    start = time.monotonic()
    worker.cancel(task)
    wait_for(lambda: "stopped" in long.kinds)
    assert time.monotonic() - start < 1 and worker.restarts == 0
    wait_for(lambda: "done" in waiting.kinds)
    faces = dict(waiting)["done"]["faces"]
    assert len(faces) == 1 and read_image(faces[0], 64)[0].shape == (64, 64, 3)


def test_a_killed_process_is_started_again_and_the_drawing_with_it(worker: Worker) -> None:
    before, heard, stopped = worker.process, Heard(), Heard()
    worker.submit("fine", request_of(60), heard)
    wait_for(lambda: "step" in heard.kinds)
    os.kill(before or 0, signal.SIGKILL)
    wait_for(lambda: "again" in heard.kinds)
    limit = [worker.submit("fine", request_of(1), stopped) for _ in range(2)]
    with pytest.raises(QueueFull, match="3"):
        worker.submit("fine", request_of(1), stopped)
    for task in limit:
        worker.cancel(task)
    assert stopped.kinds == ["stopped", "stopped"]
    wait_for(lambda: "done" in heard.kinds, 60)
    assert worker.process != before and worker.ready


def test_what_cannot_be_drawn_gets_one_message_without_a_path(worker: Worker, tmp_path: Path) -> None:
    (tmp_path / "skull.png").write_bytes(b"<html><script>alert(1)</script></html>")
    heard = Heard()
    worker.submit("quick", request_of(1, tmp_path / "skull.png", look=True), heard)
    wait_for(lambda: "failed" in heard.kinds)
    message = dict(heard)["failed"]
    assert message.startswith(texts.YOUR_FILE) and str(tmp_path) not in message and "\n" not in message


def test_a_scan_is_drawn_once_and_saved_as_a_case(worker: Worker, tmp_path: Path) -> None:
    pytest.importorskip("vtk", reason="the extra ct is not installed")
    from phantom import sample, write_image

    scan = write_image(tmp_path / "skull.nii.gz", *sample((2.0, 2.0, 3.0)))
    first, second = Heard(), Heard()
    worker.submit("quick", request_of(1, scan, look=True), first)
    wait_for(lambda: first.kinds[-1:] in (["done"], ["failed"]), 60)
    look = dict(first)["checked"]
    assert look["mm_per_px"] == 280 / 64 and any("scan was drawn" in line for line in look["remarks"])
    worker.submit("fine", request_of(1, scan, folder=tmp_path / "case/skull"), second)
    wait_for(lambda: second.kinds[-1:] in (["done"], ["failed"]), 60)
    case = case_files(tmp_path / "case/skull", "skull")
    assert not case.verification.differences and {"scan.png", "skull_0.png"} <= case.verification.files.keys()


# --- in a browser -------------------------------------------------------------------------------------------------
class Studio:
    """A studio of the demo's weights with few steps, and a browser."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        words = f"port=0 show=false out={folder} steps=3 quick_steps=2 num_samples=2 max_mib=8 precision=fp32"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "muti_control.studio", *words.split()],
            cwd=ROOT,
            env={
                k: v for k, v in os.environ.items() if "PYTEST" not in k
            }  # NiceGUI behaves otherwise in its own tests
            | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if match := re.search(r"http://\S+", line):
                self.address = match[0]
                return
        raise AssertionError("".join(lines))


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    if BROWSER is None:
        pytest.skip("the studio's browser tests are left out: no chromium is installed")
    pytest.importorskip("playwright", reason="the studio's browser tests are left out: no playwright")
    own = Studio(tmp_path_factory.mktemp("studio"))
    yield own
    own.process.send_signal(signal.SIGTERM)
    assert own.process.wait(20) == 143
    assert not list(own.folder.rglob("session-*")), "uploads outlive their session"


@pytest.fixture(scope="module")
def browser(studio: Studio) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        own = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield own
        own.close()


@pytest.fixture
def page(studio: Studio, browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A page of a new session, which ends afterwards; it asked nothing of anybody else, and made no mistakes."""
    options = {"viewport": {"width": 1280, "height": 1000}} | getattr(request, "param", {})
    context = browser.new_context(accept_downloads=True, reduced_motion="reduce", **options)
    context.set_default_timeout(30_000)
    own, foreign, errors = context.new_page(), [], []
    own.on(
        "request",
        lambda r: foreign.append(r.url) if not r.url.startswith((studio.address, "data:")) else None,
    )
    own.on(
        "websocket", lambda w: foreign.append(w.url) if w.url.split("/")[2] not in studio.address else None
    )
    own.on("pageerror", lambda error: errors.append(str(error)))
    own.goto(studio.address)
    own.wait_for_selector("nav [aria-current]")
    yield own
    with own.expect_navigation():  # nothing is drawn for it any more
        own.click("[data-ask]")
        own.click(f".ask >> text={texts.END}")
    context.close()
    assert not foreign and not errors


def go(page: Any, view: str) -> None:
    page.click(f"nav [data-view={view}]")


def rested(page: Any) -> None:
    """Wait until all that follows the last change is drawn."""
    page.wait_for_function("document.querySelector('.status p').textContent === 'Ready'", timeout=60_000)


def fetched(page: Any, address: str) -> bytes:
    answer = page.context.request.get(urllib.parse.urljoin(page.url, address))
    assert answer.status == 200
    return answer.body()


def give(page: Any, name: str, contents: bytes, kind: str = "skull") -> None:
    place = f"#view-{ {'skull': 'start', 'depths': 'landmarks'}.get(kind, kind) } .drop[data-kind={kind}] input.file"
    page.set_input_files(place, {"name": name, "mimeType": "image/png", "buffer": contents})


def test_the_whole_road_from_a_picture_to_the_report(page: Any) -> None:
    give(page, "Jane Doe.png", SKULL.read_bytes())
    page.wait_for_selector(".light.ok")
    go(page, "who")
    page.click("text=female")
    rested(page)
    go(page, "faces")
    captions = page.locator(".face figcaption span").all_inner_texts()
    assert len(captions) == 2 and all(text.startswith("female, (") for text in captions)
    page.click("#view-faces .face >> nth=0 >> text=Pin")
    page.click("[data-to-tab=compare]")
    page.wait_for_selector(".tab[data-tab=compare] img")
    go(page, "case")
    page.get_by_label(texts.CASE_NUMBER).fill("7/2026")
    page.get_by_label(texts.EXAMINER).fill("A. Name")
    page.click(f"text={texts.WRITE_REPORT}")
    page.wait_for_selector(f"text={texts.DOCUMENTS['zip']}")
    assert page.get_by_label(texts.CASE_NUMBER).input_value() == "7/2026"
    links = {a.inner_text(): a.get_attribute("href") for a in page.locator(".documents a").all()}
    assert fetched(page, links["Report (PDF)"])[:5] == b"%PDF-"
    report = fetched(page, links["Report (page)"]).decode()
    assert "7/2026" in report and "A. Name" in report and "Jane" not in report
    with zipfile.ZipFile(io.BytesIO(fetched(page, links["Whole case (zip)"]))) as archive:
        names = {Path(name).name for name in archive.namelist()}
        archived = archive.fp
    assert {"record.json", "log.jsonl", "report.pdf", "skull_0.png", "skull_mean.png", "skull.png"} <= names
    assert page.locator("#view-case .light.ok").count() == 1
    assert "report written" in page.inner_text("#view-case table")
    contents = archived.getvalue()  # type: ignore[union-attr]
    give(page, "earlier.zip", contents, "case")
    page.wait_for_selector("text=Opened from a case folder", state="attached")
    assert page.locator("#view-case .light.ok").count() == 1
    altered = contents.replace(
        b"A. Name", b"B. Name"
    )  # in the record: a stored zip, so that its checksum fails too
    give(page, "altered.zip", altered, "case")
    page.wait_for_selector("#view-case .problem:not([hidden])")


def test_the_drawn_chin_follows_the_point_and_undo_takes_it_back(page: Any, studio: Studio) -> None:
    page.click(".thumbs button >> nth=0")
    page.wait_for_selector("#view-landmarks .dot.jaw", state="attached")
    reader = LandmarkReader.load(ROOT / "models/demo/pipnet_face.safetensors")

    def chin() -> np.ndarray:
        address = page.get_attribute("#view-landmarks .board >> nth=1 >> img", "src")
        face = np.array(Image.open(io.BytesIO(fetched(page, address))).convert("RGB"))
        return read_points(face[None], reader)[0, 16]

    before = chin()
    go(page, "landmarks")
    dot, board = (page.locator(q).nth(1).bounding_box() for q in (".dot.chosen", ".board svg"))
    x, y = dot["x"] + dot["width"] / 2, dot["y"] + dot["height"] / 2
    drag = 14.0  # px of the picture
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, y + drag / 256 * board["height"], steps=4)
    page.mouse.up()
    page.wait_for_selector(".dot.moved >> nth=0")
    address = page.get_attribute("#view-landmarks .board >> nth=1 >> img", "src")
    page.wait_for_function(
        "a => document.querySelectorAll('#view-landmarks .board img')[1].getAttribute('src') !== a",
        arg=address,
    )
    move = chin() - before
    assert move[1] >= drag / 3 and abs(move[0]) < drag / 4, move
    assert "Points were moved by hand" in page.inner_text("#view-landmarks")
    page.focus(".board svg >> nth=1")
    where = page.inner_text(".where")
    page.keyboard.press("Shift+ArrowUp")
    assert page.inner_text(".where") != where
    page.click(f"text={texts.RESET}")
    page.wait_for_selector(".dot.moved", state="detached")
    page.click(f"text={texts.UNDO}")
    page.wait_for_selector(".dot.moved >> nth=0")
    rested(page)
    folder = max(studio.folder.rglob("log.jsonl"), key=lambda path: path.stat().st_mtime).parent
    entry, file = read_log(folder).entries[-1], folder / f"{folder.name}_landmarks.json"
    num = int(re.findall(r"by hand: (\d+)", page.inner_text("#view-landmarks"))[0])
    assert entry["action"] == "landmarks edited" and num > 20
    assert entry["details"]["landmarks"] == [{"file": file.name, "sha256": sha256(file), "moved": num}]


@pytest.mark.parametrize(
    "page", [{"has_touch": True, "viewport": {"width": 390, "height": 844}}], indirect=True
)
def test_a_finger_moves_a_landmark(page: Any) -> None:
    page.click(".thumbs button >> nth=0")
    page.wait_for_selector("#view-landmarks .dot.jaw", state="attached")
    go(page, "landmarks")
    dot, board = (page.locator(q).nth(0) for q in (".dot.chosen", ".board svg"))
    dot.scroll_into_view_if_needed()

    def place() -> list[float]:
        return [float(number) for number in re.findall(r"[xy] ([\d.]+)", page.inner_text(".where"))]

    (x0, y0), middle = place(), {key: dot.bounding_box()[key] for key in ("x", "y", "width", "height")}
    x, y = middle["x"] + middle["width"] / 2, middle["y"] + middle["height"] / 2
    touch, px = page.context.new_cdp_session(page), board.bounding_box()["height"] / 256
    for kind, down in (("touchStart", 0), ("touchMove", 4), ("touchMove", 10), ("touchEnd", None)):
        points = [] if down is None else [{"x": x, "y": y - down * px}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    page.wait_for_selector(f"text={texts.EDITED.split('{')[0]}")  # the studio has them
    assert place() == pytest.approx([x0, y0 - 10], abs=0.5)
    give(page, "depths.csv", b"landmark,depth\nchin,9\n", "depths")
    page.wait_for_selector("#view-landmarks .problem:has-text('chin')")
    give(page, "depths.csv", b"landmark,depth\njaw 8 right,31\nnasion,5\n", "depths")
    page.wait_for_selector("#view-landmarks .board polyline >> nth=1", state="attached")  # on skull and face
    assert texts.DEPTH_UNSEEN in page.inner_text("#view-landmarks tbody tr >> nth=1")
    page.get_by_role("spinbutton", name="jaw 8 right").fill("30")
    page.click(f"text={texts.MOVE_TO_DEPTHS}")
    row = page.locator("#view-landmarks tbody tr").nth(0)
    row.locator("text=/^(28|29|30|31).* mm now/").wait_for()


def test_a_full_disk_gets_one_message_and_the_earlier_case_stays_whole(
    page: Any, studio: Studio, tmp_path: Path
) -> None:
    resource = pytest.importorskip("resource")
    parent = studio.process.pid
    drawing = [int(k) for k in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]

    def allow(process: int, most: int) -> None:
        """Let a process write files of so many bytes at most."""
        hard = resource.prlimit(process, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(process, resource.RLIMIT_FSIZE, (most, hard))

    page.click(".thumbs button >> nth=0")
    rested(page)
    go(page, "case")
    try:
        page.click(f"text={texts.WRITE_REPORT}")
        page.wait_for_selector(f"text={texts.DOCUMENTS['zip']}")
        assert page.locator("#view-case .light.ok").count() == 1
        page.get_by_label(texts.EXAMINER).fill("A. Name")
        page.wait_for_selector(f"text={texts.OUTDATED}")
        for process in drawing:
            allow(process, 5000)
        go(page, "who")
        page.click("text=female")
        go(page, "faces")
        page.wait_for_selector("#view-faces .problem:has-text('File too large')")
    finally:
        for process in drawing:
            allow(process, resource.RLIM_INFINITY)
    message = page.inner_text("#view-faces .problem")
    assert message.startswith(texts.NOT_SAVED.split("{")[0]) and str(studio.folder) not in message
    go(page, "case")
    earlier = page.locator(".documents a", has_text="Earlier report 1").get_attribute("href")
    with zipfile.ZipFile(io.BytesIO(fetched(page, earlier))) as archive:
        archive.extractall(tmp_path)
    case = case_files(tmp_path / "s00001", "s00001")
    assert not case.verification.differences and "report.pdf" in case.documents
    go(page, "faces")
    page.click(f"text={texts.DRAW_AGAIN}")
    page.wait_for_selector("#view-faces .problem", state="detached")


def test_cancel_acts_within_a_second_and_a_reload_loses_nothing(page: Any) -> None:
    page.click(".thumbs button >> nth=1")
    go(page, "who")
    page.click("#view-who >> text=male >> nth=-1")
    page.wait_for_selector('.status p:text-matches("^Drawing 2")', timeout=40_000)
    start = time.monotonic()
    page.click(".status button")
    page.wait_for_function("document.querySelector('.status p').textContent === 'Ready'", polling=20)
    assert time.monotonic() - start < 1
    go(page, "faces")
    assert texts.STOPPED in page.inner_text("#view-faces")
    page.click(f"text={texts.DRAW_AGAIN}")
    page.wait_for_selector('.status p:text-matches("^Drawing 2")')
    rested(page)
    addresses = [i.get_attribute("src") for i in page.locator(".face img").all()]
    page.reload()
    page.wait_for_selector(".face img[src]")
    assert page.locator("#view-faces").is_visible()
    assert [i.get_attribute("src") for i in page.locator(".face img").all()] == addresses
    assert page.locator("#view-who input[value=male]").is_checked()


def test_two_sessions_are_apart(page: Any, browser: Any, studio: Studio) -> None:
    page.click(".thumbs button >> nth=2")
    page.wait_for_selector(".light")
    address = page.get_attribute("#view-start .pair img", "src")
    fetched(page, address)
    other = browser.new_context()
    try:
        stranger = other.new_page()
        stranger.goto(studio.address)
        stranger.wait_for_selector("nav [aria-current]")
        assert stranger.inner_text("#view-start .card").count(texts.NO_SKULL_YET) == 1
        for path in (address, "/studio/file/..%2f..%2fsession-001", "/studio/../pyproject.toml", "/results/"):
            answer = other.request.get(urllib.parse.urljoin(studio.address, path))
            assert answer.status == 404, path
    finally:
        other.close()
    parts = urllib.parse.urlsplit(studio.address)
    bare = http.client.HTTPConnection(parts.hostname or "", parts.port or 0)
    bare.request("GET", address)
    assert bare.getresponse().status == 404


def bomb() -> bytes:
    """A PNG of 400 million px in a few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")
        )

    head = (20_000).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def packed(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, contents in files.items():
            archive.writestr(name, contents)
    return buffer.getvalue()


def test_hostile_uploads_get_one_clear_message_each(page: Any, studio: Studio) -> None:
    give(page, "../../../x.png", b"<html><script>document.title='owned'</script></html>")
    page.wait_for_selector("#view-start .problem:not([hidden])")
    assert "cannot be read as a picture" in page.inner_text("#view-start .problem")
    assert str(studio.folder) not in page.inner_text("body") and page.title() == texts.TITLE
    give(page, "bomb.png", bomb())
    page.wait_for_function(
        "document.querySelector('#view-start .problem').textContent.includes('million px')"
    )
    give(page, "face.png", (ROOT / "data/pairedCS/craniofacial/s00001.png").read_bytes())
    page.wait_for_selector(".light.stop")
    page.wait_for_selector(f".status >> text={texts.REFUSED}")
    assert page.locator(f"button:disabled >> text={texts.DRAW_AGAIN}").count() == 1
    give(page, "large.png", bytes(9 << 20))
    page.wait_for_function("document.querySelector('#view-start .problem').textContent.includes('8 MiB')")
    go(page, "case")
    record = json.dumps({"cases": []}).encode()
    for contents, words in (
        (packed(**{"../../escape.json": b"{}", "record.json": record}), "names that leave"),
        (packed(**{"record.json": bytes(300 << 20)}), "more than a scan"),
        (packed(**{"record.json": record}), "no case"),
        (b"<html>", "no case"),
    ):
        give(page, "case.zip", contents, "case")
        page.wait_for_function(
            "w => document.querySelectorAll('#view-case .problem')[1].textContent.includes(w)", arg=words
        )
    assert not list(studio.folder.parent.rglob("escape.json"))
