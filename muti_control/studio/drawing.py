"""The drawing process: it has the one loaded model, and answers one request after the other by the Python interface."""

from __future__ import annotations

import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from data.biometrics import Attributes
from data.cases import Case
from data.files import write_text
from data.images import png_of, read_image, to_uint8
from data.landmarks import read_landmark_file
from ldm.checkpoint import sha256
from muti_control.case.log import append
from muti_control.conditions.case_landmarks import landmarks_name
from muti_control.sampling.outputs import mm_of_face
from muti_control.sampling.reconstructor import Reconstruction, Reconstructor
from muti_control.studio import texts

SHOWN = 512  # px of the pictures of a skull on the page
DECODING = 4.0  # a preview comes after so many times what the one before took
LONG = 1  # number of the lane of long requests
SCANS = 4  # scans that are kept in memory as they were drawn

Send = Callable[[str, Any], None]


@dataclass(frozen=True)
class Request:
    """What one session wants to see.

    skull: its file, or the folder of a scan. name: of the case. person: of ``Attributes``.
    settings: of ``Reconstructor.reconstruct``. look: first check the skull, and show how it is prepared.
    folder: where the faces are saved; None: they are only shown. grid: show the picture of the grid alone.
    depths: CSV of the tissue depths that were at hand, for the case.
    """

    skull: Path
    name: str
    person: Mapping[str, Any]
    settings: Mapping[str, Any]
    look: bool = False
    folder: Path | None = None
    grid: bool = False
    depths: str = ""


@dataclass(frozen=True)
class Preset:
    """What the page must know of the weights.

    ethnicities, ages: that they know. landmarks, texture: whether they have such a branch. steps: that they recommend.
    """

    weights: str
    ethnicities: list[str]
    ages: tuple[float, float]
    landmarks: bool
    texture: bool
    steps: int


class Stopped(Exception):
    """The session does not want the faces any more."""


@dataclass
class Drawer:
    """Answers requests.

    stop: for each lane, the number of the request that must end. at_work: lane and number of the requests under way;
    the last one was begun between two steps of the one before.
    """

    model: Reconstructor
    connection: Connection
    stop: Any
    at_work: list[tuple[int, int]] = field(default_factory=list)
    scans: dict[tuple[Path, str], Case] = field(default_factory=dict)

    def answer(self, lane: int, number: int, request: Request) -> None:
        """Do what is asked, and send what came out: ``done``, ``stopped``, or ``failed`` with a message."""
        self.at_work.append((lane, number))

        def send(kind: str, content: Any) -> None:
            self.connection.send((number, kind, content))

        try:
            send("done", self._work(request, send))
        except Stopped:
            send("stopped", None)
        except (ValueError, OSError, MemoryError, RecursionError) as error:
            send("failed", _for_people(error, request))
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            send("failed", f"{type(error).__name__}: {error}")
        finally:
            self.at_work.pop()

    def check(self, _module: nn.Module | None = None, _inputs: object = None) -> None:
        """End the request under way if it is not wanted any more; called before every layer of every network."""
        if self.at_work and self.stop[self.at_work[-1][0]] == self.at_work[-1][1]:
            raise Stopped

    def _work(self, request: Request, send: Send) -> dict[str, Any] | None:
        attributes = Attributes(**request.person)
        case = self._case(request, attributes)
        self.check()
        if request.look:
            checked = self.model.prepare(case, attributes)
            prepared = png_of(to_uint8(checked.picture)) if checked.done else None
            level = checked.check.level
            look = {
                "level": level,
                "findings": [finding.text for finding in checked.check.findings],
                "before": [finding.text for finding in checked.before.findings] if checked.done else [],
                "done": list(checked.done),
                "mandible": "no_mandible" not in checked.check.names,
                "remarks": list(case.remarks),
                "mm_per_px": case.mm_per_px,
                "skull": png_of(to_uint8(read_image(case.source, SHOWN)[0])),
                "prepared": prepared,
            }
            send("checked", look)
            if level == "stop":
                return None
        self.check()
        progress, preview = self._following(send, request)
        settings = dict(request.settings)
        result = self.model.reconstruct(case, attributes, progress=progress, preview=preview, **settings)
        if request.folder is not None:
            send("saving", None)
            self._save(result, request)
        if request.grid and request.folder is not None:
            return {"grid": (request.folder / f"{request.name}_grid.png").read_bytes()}
        return {
            "faces": [png_of(face) for face in result.faces],
            "people": result.people,
            "warnings": result.warnings,
            "landmarks": result.landmarks_text,
            "side_mm": mm_of_face(result.job.cases[0], 1),
        }

    def _following(self, send: Send, request: Request) -> tuple[Callable[[int, int], None], Any]:
        """Return the functions that tell progress, and show the faces as they are now."""
        began, took, done, first = monotonic(), 0.0, 0, 0

        def preview(decode: Callable[[], NDArray[np.uint8]]) -> None:
            nonlocal began, took
            if request.folder is None or request.grid or monotonic() - began < DECODING * took:
                return
            if self.connection.poll():  # a short request comes first
                return
            start = monotonic()
            send("faces", (first, [png_of(face) for face in decode()]))
            began, took = monotonic(), monotonic() - start

        def progress(step: int, total: int) -> None:
            nonlocal done, first, took
            done = step
            steps = self.model.settings.sampling.with_(**request.settings.get("sampling", {})).steps
            if done % steps == 0:
                first, took = done // steps * request.settings.get("batch_size", 8), 0.0
            send("step", (step, total))
            if [lane for lane, _ in self.at_work] == [LONG]:
                while self.connection.poll():  # a short request need not wait for the end of a long one
                    self.answer(*self.connection.recv())

        return progress, preview

    def _case(self, request: Request, attributes: Attributes) -> Case:
        """Return the case of a skull; a scan is drawn once."""
        key = request.skull, request.name
        if key in self.scans:
            return self.scans[key]
        case = self.model.read(request.skull, attributes, request.name)
        if case.scan is not None:
            self.scans = dict([*self.scans.items(), (key, case)][-SCANS:])
        return case

    def _save(self, result: Reconstruction, request: Request) -> None:
        """Save the faces as a case; the picture of the skull joins them, so that the folder can be opened again.

        The log says how many landmarks a person has moved.
        """
        assert request.folder is not None
        result.save(request.folder, overwrite=request.folder.is_dir())
        skull = result.job.cases[0]
        if skull.picture is None and skull.skull_path is not None:
            shutil.copyfile(skull.skull_path, request.folder / skull.skull_path.name)
            append(request.folder, "picture of the skull added", wrote=[skull.skull_path.name])
        if "landmarks" in request.settings and not request.grid:
            marks = request.folder / landmarks_name(skull)
            entry = {
                "file": marks.name,
                "sha256": sha256(marks),
                "moved": read_landmark_file(marks).num_edited,
            }
            append(request.folder, "landmarks edited", {"landmarks": [entry]})
        if request.depths and not request.grid:
            name = f"{request.name}_depths.csv"
            write_text(request.folder / name, request.depths)
            append(request.folder, "tissue depths noted", wrote=[name])


def _for_people(error: Exception, request: Request) -> str:
    """Return the message of an error, without the paths of this machine."""
    text = (str(error) or type(error).__name__).replace(str(request.skull), texts.YOUR_FILE)
    for path in (request.folder, *map(Path, _files(request.settings))):
        if path is not None:
            text = text.replace(str(path), path.name)
    return text


def _files(settings: Mapping[str, Any]) -> list[str]:
    return [str(settings[key]) for key in ("landmarks", "texture") if key in settings]


def serve(connection: Connection, stop: Any, loading: Mapping[str, Any]) -> None:
    """Load the model and answer requests until the other end closes. Begins with ``ready``, or ``refused`` and why."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the page's matter
    try:
        model = Reconstructor.load(**loading)
    except (ValueError, OSError, MemoryError) as error:
        connection.send((0, "refused", str(error)))
        return
    networks = model.networks
    low, high = networks.population.ages
    connection.send(
        (
            0,
            "ready",
            Preset(
                str(networks.weights["file"]),
                list(networks.population.ethnicities),
                (float(low), float(high)),
                networks.model.has_trained("landmarks"),
                networks.model.has_trained("texture"),
                model.settings.sampling.steps,
            ),
        )
    )
    drawer = Drawer(model, connection, stop)
    register_module_forward_pre_hook(partial(Drawer.check, drawer))
    try:
        while True:
            drawer.answer(*connection.recv())
    except (EOFError, BrokenPipeError):
        return
