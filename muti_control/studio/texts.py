"""Every English word of the studio, in one place for translation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data.biometrics import BODY_MASS_WORDS
from data.sheet import NOTICE as NOTICE  # the same words as in pictures and reports

TITLE = "ICCR-Diff studio"
VIEWS = {
    "start": "Skull",
    "who": "Person",
    "faces": "Faces",
    "landmarks": "Landmarks",
    "texture": "Texture",
    "case": "Case",
}
STEPS = "Steps of a case"
THEME = "Light or dark"
END, END_SURE = (
    "End session",
    "End this session? Its uploads, faces and reports are removed from this machine. Fetch the zip of the case first.",
)
ENDED = "The session has ended. Its files are removed."
AGAIN_LINK = "Begin a new session"
FULL = "The studio has as many sessions as it may have ({limit}). Try again when somebody has ended theirs."
UNKNOWN, OFF = "unknown", "off"

# status
READY = "Ready"
NO_SKULL_YET = "No skull yet. Begin with “Skull”."
NO_FACE_YET = "No face yet."
WAITING = "Waiting: {ahead} drawings of others come first"
NEXT = "Waiting: next in the queue"
QUICK = "Drawing a first face"
DRAWING = "Drawing {faces} faces: step {step} of {total}"
GRID_DRAWING = "Drawing the grid"
SAVING = "Putting the faces together"
STOPPED = "Stopped. The faces are as they were at that moment, and are not saved."
RESTS = "The faces follow when nothing changes for a moment"
LOADING = "The drawing process is loading the model"
STARTED_AGAIN = "The drawing process had died and was started again. Your drawing comes first."
CANCEL, DRAW_AGAIN = "Cancel", "Draw again"

# skull
START = "The skull"
DROP_SKULL = "Drop a picture of a skull here"
DROP_SKULL_MORE = "or a head CT: a folder of DICOM files, a zip of one, NIfTI or NRRD"
CHOOSE_FILE, CHOOSE_FOLDER = "Choose a file", "Choose a folder"
FILE_LABEL = {
    "skull": "File of a skull picture or a scan",
    "texture": "File of a face picture",
    "case": "Zip of a case folder",
}
FOLDER_LABEL = "Folder of a scan"
TEST_SKULLS = "Or try a test skull"
TEST_SKULL = "Test skull {name}"
CT_SKULL = "Skull of an open CT"
SCALE = "Scale of the picture, mm per px (if it is known)"
CHECK = "Check of the picture"
CHECKING = "Looking at the skull"
LIGHTS = {"ok": "Green", "warning": "Yellow", "stop": "Red"}
LIGHT_WORDS = {
    "ok": "nothing to doubt",
    "warning": "read with care",
    "stop": "this is no skull; nothing is drawn",
}
BEFORE, AFTER = "as it was given", "as it is drawn from"
DONE = "What was done to it: {what}."
NOTHING_DONE = "It is drawn from as it is."
FOUND_BEFORE = "Before that: {what}."
SKULL_ALT = "Picture of the skull"
SKULL_GONE = "The zip has no picture of the skull. Drop it here to draw again."
OPENED = "Opened from a case folder: its {faces} faces are shown as they were drawn."

# person
WHO = "What is known of the person"
WHO_MORE = (
    "Leave unknown what you do not know. Each face then assumes a value that is possible, and says which."
)
SEX = "Sex"
SEXES = {None: "unknown", "female": "female", "male": "male"}
AGE, AGE_FROM, AGE_TO, AGE_UNKNOWN = "Age in years", "Youngest age", "Oldest age", "unknown age"
ETHNICITY = "Ethnicity (as far as the weights know)"
BODY_MASS = "Body mass"
MASSES: dict[int | None, str] = {None: "unknown"} | {level: words for level, words in BODY_MASS_WORDS.items()}
FIRST_FACE = "One possible face"
FIRST_FACE_MORE = "A quick draft of one face. All variants are under “Faces”."

# faces
FACES = "Faces"
FACES_MORE = "All of them fit the skull. To choose one is to say more than the skull says."
TABS = {
    "variants": "Variants",
    "together": "Mean and spread",
    "overlay": "Skull under face",
    "grid": "Age and body mass",
    "compare": "Compare",
}
TABS_LABEL = "Ways to look at the faces"
FACE = "Face {number}"
FACE_ALT = "Face {number}: {caption}"
PIN = "Pin"
PIN_LABEL = "Pin face {number} to compare it"
ZOOM_LABEL = "Enlarge: {what}"
MEAN, SPREAD = "Mean face", "Spread over the faces"
SPREAD_MORE = "Little spread means that the faces agree, not that they are right."
WIPE = "From the skull to the mean face"
WIPE_MORE = "Move the line: the skull is on the left of it, the mean face on the right."
OVERLAY = "Skull, mean face, both, and outlines"
GRID = "One face at other ages and body masses"
GRID_MORE = "The same random numbers; only age and body mass change. Other values are drawn, not measured."
DRAW_GRID = "Draw the grid"
COMPARE_EMPTY = (
    "Pin two faces under “Variants”; they stay here while you change the person, the landmarks "
    "or the texture."
)
COMPARE_ONE = "One face is pinned. Pin another one to compare them."
UNPIN = "Forget both"
WAIT_FOR_FACES = "It is there when the faces are drawn."
NOTES = "What to know of these faces"

# landmarks
LANDMARKS = "Landmarks"
LANDMARKS_MORE = (
    "Drag a point, or choose it and use the arrow keys (with Shift: five px; page up and down: "
    "other points). The face follows."
)
NO_LANDMARKS = "No landmarks yet: they are read off the skull with the first face."
NO_BRANCH = "These weights were not trained on landmarks, so there are none to move."
ON_SKULL, ON_FACE = "on the skull", "on a face"
EDITOR = "Landmarks {where}. Arrow keys move the chosen point, page up and page down choose another one."
GROUP, POINT = "Show", "Point"
GROUPS = {"all": "all points"}
HOW = "What moves along"
HOWS = {"near": "its neighbours", "one": "this point alone", "group": "its whole group"}
UNDO, RESET = "Undo", "Back to what was read"
PULL = "SPGD: how far the faces are pulled to the points"
PULL_MORE = (
    "Without it (off) the landmarks are a hint that the model may follow in part. It takes "
    "several times as long."
)
TRACE = "What SPGD did to the first face"
NO_TRACE = "With SPGD its trace is shown here when the faces are drawn."
EDITED = "Points were moved by hand: {num}."

# texture
TEXTURE = "Look of the skin"
TEXTURE_MORE = (
    "A picture of a face gives grain and noise of the skin, and nothing of the shape. Without "
    "one it is left to chance."
)
NO_TEXTURE_BRANCH = "These weights were not trained on textures."
DROP_TEXTURE = "Drop the picture of a face here"
TEXTURE_ALT = "The exemplar"
DROP_IT = "Do without it"

# case
CASE = "The case"
CASE_NUMBER, EXAMINER, CASE_NOTES = "Case number", "Examiner", "Notes"
WRITE_REPORT = "Write the report"
WRITING = "Writing"
NO_CASE_YET = "There is no case yet. It begins when all faces are drawn, and its log writes itself."
DOCUMENTS = {
    "report.pdf": "Report (PDF)",
    "report.html": "Report (page)",
    "zip": "Whole case (zip)",
    "record.json": "Record (JSON)",
}
OPEN_CASE = "Open an earlier case"
DROP_CASE = "Drop the zip of a case folder here"
VERIFIED = "All is as logged."
DIFFERENCES = "It is not as logged: {num} differences."
HEAD = "Hash of the last entry (keep it in another place): {head}"
LOG = "Log"
LOG_HEAD = ("Entry", "Time (UTC)", "What was done", "Files")
CASE_PRIVATE = "The report prints what you write here. File names of your uploads are not kept."

# refusals
PROCESS_DIED = "the drawing process ended before it had the model; is there enough memory?"
DIED_TWICE = (
    "The drawing process died twice of this drawing, so it is not tried again. Is there enough memory?"
)
QUEUE_FULL = "{limit} drawings are waiting already. Try again in a minute."
NO_SESSION = "This session has ended; load the page again."
UPLOAD_WRONG = "The upload is not as the page sends it; load the page again."
TOO_MANY_FILES = (
    "{count} files are too many; a folder of a scan has at most {limit}, everything else is one file."
)
TOO_LARGE = (
    "The upload is larger than {limit} MiB (max_mib=NUMBER when the studio starts changes that for scans)."
)
TOO_MANY_PIXELS = "{name} has more than {limit} million px"
NO_SPACE = "The upload could not be stored ({reason}). What was saved before is untouched."
YOUR_FILE = "the file"
NO_CASE = "This is no case: expected the zip of a case folder, with record.json and log.jsonl in it."
NO_FILE = "There is no such file in this session."
OTHER_SITE = "Requests of other sites are not answered.\n"
OTHER_NAME = (
    "The studio answers at 127.0.0.1 and localhost alone; host=ADDRESS token=WORD opens it to others.\n"
)
TOKEN_MISSING = "The address needs its token: /?token=WORD, as the studio printed it when it started.\n"

WORDS = {  # for studio.js
    "zoom": ["Larger", "Smaller", "Close"],
    "unknown": UNKNOWN,
    "off": OFF,
    "sending": "Sending file {index} of {count} ...",
    "failed": "The upload failed: the studio does not answer.",
}


def caption(person: Mapping[str, Mapping[str, Any]]) -> str:
    """Return who a face shows, with what was assumed in brackets."""
    parts = []
    for name, entry in person.items():
        value = entry["value"]
        if value is None:
            continue
        words = BODY_MASS_WORDS.get(value, str(value)) if name == "body_mass" else str(value)
        words = f"{float(value):.0f} y" if name == "age" else words
        parts.append(words if entry["source"] == "stated" else f"({words})")
    return ", ".join(parts)


CAPTION_MORE = "In brackets: assumed, not known."
