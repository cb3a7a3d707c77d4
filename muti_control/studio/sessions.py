"""The sessions of the studio: folders of their own, what may be uploaded, and files that nobody else gets."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterable
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from data.ct.reading.kinds import SUFFIXES as SCAN_SUFFIXES
from data.images import IMAGE_SUFFIXES
from muti_control.studio import texts
from muti_control.studio.config import StudioConfig
from muti_control.studio.state import State
from muti_control.studio.worker import Worker

SUFFIXES = tuple(sorted((*SCAN_SUFFIXES, *IMAGE_SUFFIXES), key=len, reverse=True))
SMALL_MIB = 64  # of a picture of a face, or a table of depths
MAX_FILES = 3000  # of a folder
KINDS = ("skull", "texture", "case", "depths")


class UploadError(ValueError):
    """What is uploaded is not taken. status: of HTTP."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Incoming:
    """An upload under way. folder: its files, called by their numbers. wrote: bytes."""

    batch: str
    folder: Path
    kind: str
    names: list[Path] = field(default_factory=list)
    wrote: int = 0


@dataclass
class Sessions:
    """All sessions, by the identity in their cookies.

    root: folder of their folders.
    """

    root: Path
    worker: Worker
    config: StudioConfig
    states: dict[str, State] = field(default_factory=dict)
    incoming: dict[str, Incoming] = field(default_factory=dict)
    _count: int = 0

    def of(self, identity: str) -> State | None:
        """Return the state of a session, which begins with its first page; None where there are too many."""
        state = self.states.get(identity)
        if state is None:
            self.tidy()
            if len(self.states) >= self.config.max_sessions:
                empty = [one for one in self.states.items() if one[1].skull is None and not one[1].pages]
                if not empty:
                    return None
                self.end(min(empty, key=lambda one: one[1].seen)[0])
            self._count += 1
            folder = self.root / f"session-{self._count:03d}"
            folder.mkdir(parents=True)
            state = State(folder, self.worker, self.config)
            self.states[identity] = state
        state.seen = monotonic()
        return state

    def tidy(self) -> None:
        """End the sessions that nobody has looked at for a long time."""
        for identity, state in list(self.states.items()):
            if not state.pages and monotonic() - state.seen > 3600 * self.config.idle_hours:
                self.end(identity)

    def end(self, identity: str) -> None:
        """End a session: what it was drawing stops, and its folder is removed, unless it is to be kept."""
        state = self.states.pop(identity, None)
        self.incoming.pop(identity, None)
        if state is not None:
            state.close()
            if not self.config.keep:
                shutil.rmtree(state.folder, ignore_errors=True)

    def end_all(self) -> None:
        """End every session."""
        for identity in list(self.states):
            self.end(identity)

    async def upload(
        self,
        identity: str,
        kind: str,
        batch: str,
        index: int,
        count: int,
        name: str,
        size: int,
        body: AsyncIterable[bytes],
    ) -> None:
        """Take one file of an upload; the last one begins the work on it.

        Args:
            batch: tells uploads apart. index, count: number of the file, from 0, and of all files.
            name: only its ending counts. size: bytes, as announced; 0: unknown.

        Raises:
            UploadError: a limit is reached; nothing of the upload is left then.
        """
        state = self.states.get(identity)
        if state is None:
            raise UploadError(403, texts.NO_SESSION)
        if kind not in KINDS or not 0 <= index < count:
            raise UploadError(400, texts.UPLOAD_WRONG)
        most = (SMALL_MIB if kind in ("texture", "depths") else self.config.max_mib) << 20
        incoming = self.incoming.get(identity)
        if incoming is None or incoming.batch != batch:
            if index:
                raise UploadError(400, texts.UPLOAD_WRONG)
            if incoming is not None:
                shutil.rmtree(incoming.folder, ignore_errors=True)
            incoming = Incoming(batch, state.new_folder("uploads"), kind)
            self.incoming[identity] = incoming
        try:
            if count > (MAX_FILES if kind == "skull" else 1):
                raise UploadError(413, texts.TOO_MANY_FILES.format(count=count, limit=MAX_FILES))
            if incoming.wrote + size > most:
                raise UploadError(413, texts.TOO_LARGE.format(limit=most >> 20))
            ending = next((one for one in SUFFIXES if name.lower().endswith(one)), "")
            path = incoming.folder / (f"{index:05d}{ending}" if count > 1 else f"{kind}{ending}")
            with path.open("xb") as file:
                async for part in body:
                    incoming.wrote += len(part)
                    if incoming.wrote > most:
                        raise UploadError(413, texts.TOO_LARGE.format(limit=most >> 20))
                    file.write(part)
        except (UploadError, OSError) as error:
            self.incoming.pop(identity, None)
            shutil.rmtree(incoming.folder, ignore_errors=True)
            if isinstance(error, UploadError):
                state.fail(kind, str(error))
                raise
            message = texts.NO_SPACE.format(reason=error.strerror)
            state.fail(kind, message)
            raise UploadError(507, message) from error
        incoming.names.append(path)
        if len(incoming.names) == count:
            self.incoming.pop(identity, None)
            await state.take(kind, path if count == 1 else incoming.folder)
