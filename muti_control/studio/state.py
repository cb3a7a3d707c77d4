"""What one session of the studio has: its skull, the person, the faces, the landmarks and the case. No page knows more.

Everything here runs in the thread of the page; what takes time is done by the drawing process, or by a thread.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.biometrics import ATTRIBUTES, Attributes
from data.files import write_text
from data.images import png_of, read_image, to_uint8
from data.landmarks import fractions_of, landmarks_text, pixels_of
from muti_control.case.depths import (
    Depth,
    Marker,
    bone_of,
    depths_text,
    moved_to_depths,
    place_depths,
    read_depths,
)
from muti_control.sampling.config import DEMO_WEIGHTS
from muti_control.sampling.request import shipped
from muti_control.studio import texts
from muti_control.studio.cases import Offer, OpenedCase, case_files, open_case, report_case
from muti_control.studio.config import StudioConfig
from muti_control.studio.drawing import SHOWN, Preset, Request
from muti_control.studio.worker import QueueFull, Task, Worker

REST = 1.2  # s without a change until the faces are drawn finely
AT_ONCE = 4  # faces that are drawn together: the others follow
GRID, GRID_STEPS = "age,body_mass", 6
# Of landmarks that a person moved. A chin drawn from a point 14 px lower is 3.9 px lower at 1, and 11.0 px at 1.5.
MOVED_SCALE = 1.5
GUIDANCE_DECODER = "models/demo/guidance_decoder.safetensors"
NAME = "skull"  # of a case: the name of a file may be that of a person

Phase = Literal["empty", "waiting", "drawing", "saving", "done", "failed", "stopped"]
Points = NDArray[np.float32]


@dataclass
class Drawing:
    """Faces that are drawn, or were. faces: addresses. folder: of the case, where they are saved."""

    phase: Phase = "empty"
    step: int = 0
    total: int = 0
    faces: dict[int, str] = field(default_factory=dict)
    captions: dict[int, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    message: str = ""
    folder: Path | None = None
    name: str = NAME
    task: Task | None = None
    began: float = 0.0

    @property
    def busy(self) -> bool:
        return self.phase in ("waiting", "drawing", "saving")


@dataclass
class Marks:
    """Landmarks. points, read: (N, 2) fractions of the square, now and as read off the skull. head: of their file."""

    points: Points
    read: Points
    confidence: Points
    names: list[str]
    groups: list[str]
    head: dict[str, Any]
    undo: list[Points] = field(default_factory=list)

    @classmethod
    def of(cls, text: str) -> Marks:
        """Read the landmarks that the Python interface gave as an editable file."""
        content = json.loads(text)
        rows = content.pop("points")
        size = content["width"], content["height"]
        points = fractions_of(np.array([[row["x"], row["y"]] for row in rows], np.float32), size)
        confidence = np.array([row["confidence"] for row in rows], np.float32)
        names, groups = ([row[key] for row in rows] for key in ("name", "group"))
        return cls(points, points, confidence, names, groups, content)

    @property
    def edited(self) -> bool:
        return not np.array_equal(self.points, self.read)

    @property
    def num_edited(self) -> int:
        """How many points differ from those that were read, as the log and the report count them."""
        size = self.head["width"], self.head["height"]
        now, before = (pixels_of(points, size).round(1) for points in (self.points, self.read))
        return int((np.linalg.norm(now - before, axis=1) > 0.05).sum())

    def write(self, path: Path) -> None:
        """Write them for ``landmarks=FILE``."""
        size = self.head["width"], self.head["height"]
        points, before = pixels_of(self.points, size), pixels_of(self.read, size)
        write_text(path, landmarks_text(points, self.confidence, self.head, before))


class Shipped(NamedTuple):
    """A skull that comes with this program, in a picture of data.cohort. address: of it on the page."""

    name: str
    path: Path
    address: str
    label: str


@dataclass(eq=False)
class State:
    """See the module.

    version: grows with every change. replaced: grows when a whole case takes the place of all inputs.
    pages: that are open. seen: when the session was last used. side_mm: of the square picture, where that is known.
    """

    folder: Path
    worker: Worker
    config: StudioConfig
    version: int = 0
    replaced: int = 0
    pages: int = 0
    seen: float = 0.0
    skull: Path | None = None
    skull_url: str = ""
    name: str = NAME
    look: dict[str, Any] | None = None
    problems: dict[str, str] = field(default_factory=dict)
    notice: str = ""
    person: dict[str, Any] = field(default_factory=lambda: dict.fromkeys(ATTRIBUTES))
    mm_per_px: float | None = None
    quick: Drawing = field(default_factory=Drawing)
    fine: Drawing = field(default_factory=Drawing)
    grid: Drawing = field(default_factory=Drawing)
    grid_url: str = ""
    marks: Marks | None = None
    depths: list[Depth] = field(default_factory=list)
    side_mm: float | None = None
    spgd: float = 0.0
    texture: Path | None = None
    texture_url: str = ""
    pins: list[tuple[str, str]] = field(default_factory=list)
    heading: dict[str, str] = field(
        default_factory=lambda: dict.fromkeys(("case_number", "examiner", "notes"), "")
    )
    case: OpenedCase | None = None
    case_busy: bool = False
    earlier: list[tuple[str, str]] = field(default_factory=list)  # zips of earlier reports: name, address
    files: dict[str, Offer] = field(default_factory=dict)
    _offers: int = 0
    _folders: int = 0
    _rest: asyncio.TimerHandle | None = None
    _bone: tuple[str, Any] = "", None  # address of a picture of the skull, and where it shows bone

    # --- files ---------------------------------------------------------------------------------------------

    def touch(self) -> None:
        """Let the pages of the session show what has changed."""
        self.version += 1

    def offer(
        self, slot: str, content: bytes | Path, media: str = "image/png", download: str | None = None
    ) -> str:
        """Return the address of a file that only this session gets; it replaces the one in its slot."""
        self._offers += 1
        self.files[slot] = Offer(content, media, download)
        return f"/studio/file/{slot}?v={self._offers}"

    def new_folder(self, kind: str) -> Path:
        """Make a folder of this session."""
        self._folders += 1
        folder = self.folder / kind / f"{self._folders:04d}"
        folder.mkdir(parents=True)
        return folder

    def fail(self, place: str, message: str) -> None:
        """Show why something was not done: place is skull, texture, case, or report."""
        self.problems[place] = message
        self.touch()

    def close(self) -> None:
        """Stop all that is drawn."""
        if self._rest is not None:
            self._rest.cancel()
        for drawing in (self.quick, self.fine, self.grid):
            self._stop(drawing)

    # --- inputs --------------------------------------------------------------------------------------------

    async def take(self, kind: str, path: Path) -> None:
        """Work with what was uploaded."""
        self.problems.pop(kind, None)
        if kind == "skull":
            self.take_skull(path, NAME)
        elif kind == "texture":
            await self._take_texture(path)
        elif kind == "depths":
            self._take_depths(path)
        else:
            await self.open_case(path)

    def take_skull(self, path: Path, name: str, mm_per_px: float | None = None) -> None:
        """Check, prepare and draw another skull; mm_per_px: of its picture, where that is known."""
        self.close()
        if self.skull is not None and self.folder / "uploads" in self.skull.parents:
            shutil.rmtree(self.skull.parent, ignore_errors=True)
        self._leave_case()
        self.skull, self.name, self.look, self.marks = path, name, None, None
        self.mm_per_px, self.side_mm = mm_per_px, None
        self.quick, self.fine, self.grid = Drawing(), Drawing(), Drawing()
        self.skull_url, self.grid_url, self.pins = "", "", []
        self.problems.clear()
        self.redraw()

    async def _take_texture(self, path: Path) -> None:
        try:
            picture = await asyncio.to_thread(lambda: png_of(to_uint8(read_image(path, 256)[0])))
        except (ValueError, OSError) as error:
            shutil.rmtree(path.parent, ignore_errors=True)
            return self.fail("texture", str(error).replace(str(path), texts.YOUR_FILE))
        self.drop_texture(redraw=False)
        self.texture, self.texture_url = path, self.offer("texture", picture)
        self.redraw()

    def drop_texture(self, redraw: bool = True) -> None:
        """Do without an exemplar."""
        if self.texture is not None:
            shutil.rmtree(self.texture.parent, ignore_errors=True)
        self.texture, self.texture_url = None, ""
        if redraw:
            self.redraw()

    def state_person(self, **values: Any) -> None:
        """Say what is known of the person, None for unknown, and draw again."""
        self.person |= values
        self.redraw()

    def set_scale(self, text: str) -> None:
        """Set mm per px of the picture that was given; empty: unknown."""
        self.mm_per_px = float(text) if text else None
        self.redraw()

    # --- landmarks -----------------------------------------------------------------------------------------

    def move_points(self, points: Sequence[Sequence[float]] | Points) -> None:
        """Take moved landmarks, (N, 2) fractions of the square, and draw again."""
        marks = self.marks
        moved = np.array(points, np.float32)
        usable = marks is not None and moved.shape == marks.points.shape and np.isfinite(moved).all()
        if marks is None or not usable or np.allclose(moved, marks.points):
            return
        marks.undo = [*marks.undo[-49:], marks.points]
        marks.points = moved.clip(0, 1)
        self.redraw()

    def undo_points(self) -> None:
        """Take the last move back."""
        if self.marks is not None and self.marks.undo:
            self.marks.points = self.marks.undo.pop()
            self.redraw()

    def reset_points(self) -> None:
        """Return to the landmarks as they were read off the skull."""
        if self.marks is not None and self.marks.edited:
            self.marks.undo = [*self.marks.undo[-49:], self.marks.points]
            self.marks.points = self.marks.read
            self.redraw()

    def _take_depths(self, path: Path) -> None:
        try:
            self.depths = read_depths(path)
        except ValueError as error:
            self.fail("depths", str(error).replace(str(path), texts.YOUR_FILE))
        finally:
            shutil.rmtree(path.parent, ignore_errors=True)
        self.touch()

    def set_depth(self, number: int, text: str) -> None:
        """Set one depth, mm."""
        self.problems.pop("depths", None)
        try:
            mm = float(text or "nan")
            self.depths = [replace(d, mm=mm) if d.number == number else d for d in self.depths]
        except ValueError as error:
            self.fail("depths", str(error))
        self.touch()

    def drop_depths(self) -> None:
        """Do without depths."""
        self.depths = []
        self.touch()

    @property
    def markers(self) -> list[Marker]:
        """The depths in the picture of the skull, as its landmarks are now."""
        offer = self.files.get("prepared" if self.look and self.look["prepared"] else "skull")
        if self.marks is None or self.look is None or offer is None or not self.depths:
            return []
        if self._bone[0] != self.skull_url:
            bone = bone_of(read_image(offer.content, SHOWN)[0])
            self._bone = self.skull_url, bone & self.look["mandible"]  # else the upper jaw were its edge
        return place_depths(self.depths, self.marks.points, self._bone[1], self.side_mm)

    def move_to_depths(self) -> None:
        """Move the outline of the face to where the depths put it."""
        if self.marks is not None:
            self.move_points(moved_to_depths(self.marks.points, self.markers))

    def set_spgd(self, scale: float) -> None:
        """Set how far SPGD pulls the faces; 0 leaves it out."""
        if scale != self.spgd:
            self.spgd = scale
            self.redraw()

    # --- drawing -------------------------------------------------------------------------------------------

    def redraw(self) -> None:
        """Draw one face at once, and all of them finely when nothing changes any more."""
        self.touch()
        if self.skull is None:
            return
        self._stop(self.fine)
        self._stop(self.quick)
        self.quick = Drawing(faces=self.quick.faces, captions=self.quick.captions)
        settings = {**self._settings(self.config.quick_steps), "num_samples": 1}
        self._submit(self.quick, "quick", settings, look=self.look is None)
        self.rest(REST)

    def rest(self, seconds: float) -> None:
        """Draw finely after so many seconds."""
        if self._rest is not None:
            self._rest.cancel()
        self._rest = asyncio.get_running_loop().call_later(seconds, self.draw)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def draw(self) -> None:
        """Draw all faces finely, and save them as a case."""
        if self.look is None and self.quick.busy:  # the check may still stop it
            return self.rest(REST)
        if self.skull is None or self.look is None or self.refused:
            return
        self._stop(self.fine)
        before = self.fine
        self.fine = Drawing(
            folder=self.new_folder("cases") / self.name, name=self.name, faces=dict(before.faces)
        )
        self.fine.faces = {k: url for k, url in before.faces.items() if k < self.config.num_samples}
        if before.folder is not None and not (before.folder / "report.html").exists():
            shutil.rmtree(before.folder.parent, ignore_errors=True)
        self._leave_case()
        settings = self._settings(self.config.steps)
        settings |= {"num_samples": self.config.num_samples, "batch_size": AT_ONCE}
        settings |= {name: self.heading[name] for name in ("case_number", "examiner")}
        if self.spgd > 0:
            demo = self.worker.loading["weights"] == DEMO_WEIGHTS
            settings["spgd"] = {"mode": "spgd", "scale": self.spgd, "trace": True, "inner": 3, "at_once": 1}
            settings["spgd"] |= {"decoder": str(shipped(GUIDANCE_DECODER))} if demo else {}
        self._submit(self.fine, "fine", settings, depths=depths_text(self.depths) if self.depths else "")

    def draw_again(self) -> None:
        """Draw all faces; first look at the skull, where that was stopped."""
        if self.look is None:
            self.redraw()
        else:
            self.draw()

    @property
    def refused(self) -> bool:
        """Whether nothing is drawn of the skull, as its check says stop."""
        return self.look is not None and self.look["level"] == "stop"

    def draw_grid(self) -> None:
        """Draw one face at other ages and body masses."""
        if self.skull is None:
            return
        self._stop(self.grid)
        self.grid = Drawing(folder=self.new_folder("grids") / self.name)
        steps = max(self.config.quick_steps, min(GRID_STEPS, self.config.steps or self.preset.steps))
        settings = {**self._settings(steps), "num_samples": 1, "grid": GRID, "batch_size": AT_ONCE}
        self._submit(self.grid, "fine", settings, grid=True)

    def cancel(self) -> None:
        """Stop drawing."""
        self.close()
        self.touch()

    @property
    def resting(self) -> bool:
        """Whether all faces are drawn soon, if nothing changes."""
        return self._rest is not None and not self._rest.cancelled() and self._rest.when() > self._now()

    @property
    def waits(self) -> bool:
        """Whether a drawing waits, so that its place in the queue changes."""
        return "waiting" in (self.quick.phase, self.fine.phase, self.grid.phase)

    @property
    def newest(self) -> tuple[str, str]:
        """Address and caption of the first face as it was drawn last: finely, or as a draft."""
        one = self.fine if self.fine.phase == "done" and not self.quick.busy else self.quick
        one = one if one.faces else self.fine
        return one.faces.get(0, ""), one.captions.get(0, "")

    def ahead(self) -> int:
        """Return how many drawings of others come before the next one of this session."""
        tasks = [
            one.task for one in (self.quick, self.fine, self.grid) if one.task and one.phase == "waiting"
        ]
        return min((self.worker.ahead(task) for task in tasks), default=0)

    def pin(self, k: int) -> None:
        """Keep a face to compare it; the two pinned last are kept."""
        if self.fine.faces.get(k) is None:
            return
        offered = self.files[f"face-{k}"]
        content = offered.content if isinstance(offered.content, bytes) else offered.content.read_bytes()
        slot = f"pin-{self._offers}"
        kept = [(self.offer(slot, content), self.fine.captions.get(k, "") or texts.FACE.format(number=k + 1))]
        self.pins = [*self.pins, *kept][-2:]
        alive = {url.split("?")[0].rpartition("/")[2] for url, _ in self.pins}
        for gone in [slot for slot in self.files if slot.startswith("pin-") and slot not in alive]:
            del self.files[gone]
        self.touch()

    def unpin(self) -> None:
        """Forget the pinned faces."""
        self.pins = []
        self.touch()

    @property
    def preset(self) -> Preset:
        """What the weights know."""
        assert self.worker.preset is not None
        return self.worker.preset

    def _settings(self, steps: int | None) -> dict[str, Any]:
        sampling: dict[str, Any] = {} if steps is None else {"steps": steps}
        settings: dict[str, Any] = {"seed": 0, "sampling": sampling}
        if self.mm_per_px:
            settings["mm_per_px"] = self.mm_per_px
        if self.texture is not None and self.preset.texture:
            settings["texture"] = str(self.texture)
        if self.marks is not None and self.marks.edited:
            path = self.folder / "landmarks" / f"{self.name}_landmarks.json"
            path.parent.mkdir(exist_ok=True)
            self.marks.write(path)
            settings["landmarks"], sampling["landmark_scale"] = str(path), MOVED_SCALE
        return settings

    def _submit(
        self, drawing: Drawing, lane: Literal["quick", "fine"], settings: Mapping[str, Any], **more: Any
    ) -> None:
        assert self.skull is not None
        request = Request(self.skull, self.name, dict(self.person), settings, folder=drawing.folder, **more)
        drawing.phase, drawing.began = "waiting", monotonic()
        try:
            drawing.task = self.worker.submit(lane, request, self._hearing(drawing))
        except QueueFull as error:
            drawing.phase, drawing.message = "failed", str(error)
        self.touch()

    def _stop(self, drawing: Drawing) -> None:
        if drawing.task is not None and drawing.busy:
            self.worker.cancel(drawing.task)
            drawing.phase = "stopped"

    def _hearing(self, drawing: Drawing) -> Callable[[str, Any], None]:
        def hear(kind: str, content: Any) -> None:
            if drawing.phase == "stopped" or drawing not in (self.quick, self.fine, self.grid):
                if kind in ("done", "stopped", "failed") and drawing.folder is not None:
                    shutil.rmtree(drawing.folder.parent, ignore_errors=True)
                return
            self._hear(drawing, kind, content)
            self.touch()

        return hear

    def _hear(self, drawing: Drawing, kind: str, content: Any) -> None:
        if kind == "started":
            drawing.phase, self.notice = "drawing", ""
        elif kind == "again":
            drawing.phase, self.notice = "waiting", texts.STARTED_AGAIN
        elif kind == "checked":
            self._see(content)
        elif kind == "step":
            drawing.step, drawing.total = content
        elif kind == "faces":
            first, faces = content
            self._show(drawing, faces, first)
        elif kind == "saving":
            drawing.phase = "saving"
        elif kind == "failed":
            unsaved = drawing.phase == "saving"
            drawing.message = texts.NOT_SAVED.format(reason=content) if unsaved else content
            drawing.phase = "failed"
            if self.look is None:
                self.close()
                self.fail("skull", content)
        elif kind == "done":
            drawing.phase = "done"
            if content is not None:
                self._finish(drawing, content)

    def _see(self, look: dict[str, Any]) -> None:
        skull, prepared = look.pop("skull"), look.pop("prepared")
        self.look = look | {"skull": self.offer("skull", skull), "prepared": ""}
        self.skull_url = self.look["skull"]
        if prepared is not None:
            self.look["prepared"] = self.skull_url = self.offer("prepared", prepared)

    def _show(self, drawing: Drawing, faces: Sequence[bytes], first: int = 0) -> None:
        slot = "quick" if drawing is self.quick else "face"
        for k, face in enumerate(faces, first):
            drawing.faces[k] = self.offer(f"{slot}-{k}", face)

    def _finish(self, drawing: Drawing, content: Mapping[str, Any]) -> None:
        if drawing is self.grid:
            self.grid_url = self.offer("grid", content["grid"])
            return
        drawing.faces = {}
        self._show(drawing, content["faces"])
        drawing.captions = {k: texts.caption(person) for k, person in enumerate(content["people"])}
        drawing.warnings, self.side_mm = content["warnings"], content["side_mm"]
        if content["landmarks"] is not None and (self.marks is None or not self.marks.edited):
            undo = [] if self.marks is None else self.marks.undo
            self.marks = Marks.of(content["landmarks"])
            self.marks.undo = undo
        if drawing is self.fine and drawing.folder is not None:
            self._offer_case(case_files(drawing.folder, self.name))

    # --- the case ------------------------------------------------------------------------------------------

    def _leave_case(self) -> None:
        """Make room for another case; the report of this one stays within reach."""
        if self.case is not None and "zip" in self.case.documents:
            offer = self.case.documents["zip"]
            url = self.offer(f"earlier-{len(self.earlier)}", *offer)
            self.earlier = [*self.earlier, (str(offer.download), url)]
        self.case = None

    def _offer_case(self, case: OpenedCase) -> None:
        if self.case is not None and self.case.folder != case.folder:
            self._leave_case()
        self.case = case
        case.urls = {slot: self.offer(slot, *offer) for slot, offer in case.documents.items()}

    def set_heading(self, name: str, text: str) -> None:
        """Set case number, examiner or notes."""
        self.heading[name] = text
        self.touch()

    @property
    def outdated(self) -> bool:
        """Whether case number, examiner or notes were changed after the report was written."""
        case = self.case
        return case is not None and "zip" in case.documents and case.heading != self.heading

    async def write_report(self) -> None:
        """Write report.pdf, report.html and the zip of the case that is shown."""
        if self.case is None or self.case_busy:
            return
        await self._about_case("report", report_case, self.case.folder, self.case.name, dict(self.heading))

    async def open_case(self, path: Path) -> None:
        """Show the case in an uploaded zip, as it is."""
        self.close()
        target = self.new_folder("cases")
        if not await self._about_case("case", open_case, path, target):
            return
        shutil.rmtree(path.parent, ignore_errors=True)
        case = self.case
        assert case is not None
        self.skull, self.name, self.mm_per_px = case.skull, case.name, case.mm_per_px
        self.person = {name: getattr(Attributes(**case.person), name) for name in ATTRIBUTES}
        self.heading |= {name: text for name, text in case.heading.items() if text}
        self.quick, self.grid, self.marks, self.grid_url, self.pins = Drawing(), Drawing(), None, "", []
        self.fine = Drawing("done", folder=case.folder, name=case.name)
        self.fine.faces = {k: self.offer(f"face-{k}", file) for k, file in enumerate(case.faces)}
        self.fine.captions = {k: texts.caption(person) for k, person in enumerate(case.people)}
        skull = case.look.pop("file")
        self.look = case.look | {"skull": self.offer("skull", skull) if skull else "", "prepared": ""}
        self.skull_url = self.look["skull"]
        self.replaced += 1
        self.touch()

    async def _about_case(self, place: str, work: Callable[..., OpenedCase], *arguments: Any) -> bool:
        """Do something with a case in a thread, and show what came out; return whether it was done."""
        self.case_busy = True
        self.problems.pop(place, None)
        self.touch()
        try:
            self._offer_case(await asyncio.to_thread(work, *arguments))
        except OSError as error:
            self.fail(place, texts.NOT_WRITTEN.format(reason=error.strerror or type(error).__name__))
            return False
        except ValueError as error:
            text = str(error)
            for argument in arguments:
                if isinstance(argument, Path):
                    text = text.replace(str(argument), argument.name)
            self.fail(place, text)
            return False
        finally:
            self.case_busy = False
            self.touch()
        return True
