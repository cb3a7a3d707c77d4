"""The checks by name, and a flaw that one of them found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Check:
    """``severity`` is "error" (training on it teaches something false) or "warning" (look at it)."""

    severity: str
    meaning: str
    remedy: str


CHECKS: dict[str, Check] = {
    # lists
    "bad_line": Check("error", "a line that is no good JSON object", "mend the line"),
    "missing_file": Check("error", "a picture or landmark file that is not there", "mend the name or add the file"),
    "incomplete_pair": Check("error", "a skull without a face, or a face without a skull", "add it or remove the line"),
    "listed_twice": Check("warning", "a pair that is listed twice and would weigh double", "remove one of the lines"),
    "unreferenced": Check("warning", "a picture that no list names", "list it or delete it"),
    "subject_in_two_lists": Check(
        "error", "a person in two of train, valid and test", "put all pictures of a person into one (data.split does)"
    ),
    # the person
    "biometrics": Check("error", "sex, age, body mass or ethnicity missing or impossible", "correct the value"),
    "body_mass_is_bmi": Check("error", "body mass given as BMI or kilograms", "give the level, 1 to 5"),
    "constant_value": Check(
        "warning", "one age or body mass for almost everyone", "check that it was not filled in by default"
    ),
    "contradiction": Check("error", "one person or one face with two descriptions", "correct the wrong line"),
    # one picture
    "unreadable": Check("error", "a broken picture file", "copy or export it again"),
    "blank": Check("error", "a picture with nothing in it", "render it again"),
    "size": Check("warning", "a picture of another size, shape or bit depth", "render all alike"),
    "colour": Check("warning", "colour where the others are grey", "save it as grey"),
    "lossy": Check("warning", "JPEG compression, whose traces are learned too", "export the original as PNG"),
    "inverted": Check("error", "dark where the others are bright", "invert it"),
    "grey_levels": Check("warning", "grey levels unlike the others'", "render it like the others"),
    "framing": Check("warning", "the head larger, smaller or elsewhere than in the others", "use one camera for all"),
    "cut_off": Check("error", "a head cut by the picture's border", "use a wider field for all"),
    "rotated": Check("error", "a head on its side or upside down", "turn it upright"),
    "beside_head": Check("warning", "text, a table or a tube beside the head", "render it without"),
    "odd_one": Check("warning", "a picture that looks like none of the others", "look at it: is it the right file?"),
    # a pair
    "same_picture": Check("error", "one picture as skull and as face", "name the right files"),
    "swapped": Check("error", "skull and face exchanged", "exchange source and target"),
    "wrong_kind": Check("error", "a face among the skulls, or a skull among the faces", "name the right file"),
    "bone_outside": Check("error", "bone outside the face", "render both from the same camera and pose"),
    "misaligned": Check("error", "face shifted or scaled over its skull", "render both from the same camera and pose"),
    "mirrored": Check("error", "one of skull and face seems mirrored", "compare left and right with the scan"),
    "mismatch": Check("error", "a face that does not fit its skull: another person's?", "check who is whose"),
    # several pictures
    "shared_picture": Check("error", "the same picture for two people", "name the right file, or merge the two people"),
    "duplicate_pair": Check("warning", "the same pair under two names", "remove one of them"),
    "near_duplicate": Check(
        "error", "almost the same picture for two people", "look at both: give them one 'subject' or remove one"
    ),
    # landmarks
    "landmarks_unreadable": Check("error", "a landmark file that is not as it should be", "write it again"),
    "landmarks_off_face": Check("error", "landmarks outside the picture or off the face", "check units and picture"),
    "landmarks_flipped": Check("error", "left and right landmarks exchanged, or upside down", "mend their order"),
}  # fmt: skip


@dataclass(frozen=True)
class Flaw:
    """One flaw: which check, where, and in detail.

    Attributes:
        list_name, line: empty and 0 for a file that is in no list, or for the whole data set.
        skull, face: for the sheet.
        other: a second picture to compare with them.
    """

    check: str
    detail: str
    list_name: str = ""
    line: int = 0
    file: str = ""
    skull: Path | None = None
    face: Path | None = None
    other: Path | None = None

    @property
    def severity(self) -> str:
        return CHECKS[self.check].severity

    @property
    def where(self) -> str:
        place = f"{self.list_name} line {self.line}" if self.line else self.list_name
        return ", ".join(part for part in (place, self.file) if part) or "the whole data set"
