"""One skull and one seed, drawn with other values of one or two attributes: who is drawn, and the picture of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from data.biometrics import Attributes, Biometrics, age_level
from muti_control.sampling.plate import Pixels, Row, Tile, plate

VALUES: Mapping[str, Sequence[Any]] = {  # an attribute's own value replaces or joins these
    "sex": ("female", "male"),
    "age": (22, 40, 57, 72),  # a year in each of the age levels 2 to 5
    "ethnicity": (),
    "body_mass": (1, 3, 5),
}
_CAPTIONS = {"sex": "{}", "age": "age {:g}", "ethnicity": "{}", "body_mass": "mass {}"}
People = Sequence[Sequence[Biometrics]]
"""Rows of a grid, from the left."""


def grid_people(
    names: Sequence[str], person: Biometrics, stated: Attributes, ethnicities: Sequence[str]
) -> list[list[Biometrics]]:
    """Return who is drawn: the first attribute of ``names`` changes from left to right, the second one downwards.

    person: who has all other attributes. stated: its values of ``names`` have their place in the grid.
    ethnicities: those that the weights know.
    """
    axes = [_values(name, getattr(stated, name), ethnicities) for name in names]
    columns, rows = axes[0], axes[1] if len(axes) > 1 else [None]
    changes = [[{names[0]: x} | ({names[1]: y} if len(names) > 1 else {}) for x in columns] for y in rows]
    return [[replace(person, **change) for change in row] for row in changes]


def grid_tiles(
    names: Sequence[str], people: People, faces: Sequence[Pixels], stated: Attributes | Biometrics
) -> list[list[Tile]]:
    """Return the faces, row by row, with the values as captions; a frame marks the values that are stated."""
    remaining = iter(faces)
    return [
        [
            Tile(
                next(remaining),
                ", ".join(_CAPTIONS[name].format(getattr(one, name)) for name in names),
                all(getattr(one, name) == getattr(stated, name) for name in names),
            )
            for one in row
        ]
        for row in people
    ]


def grid_picture(
    names: Sequence[str],
    people: People,
    faces: Sequence[Pixels],
    skull: Pixels,
    stated: Attributes,
    footer: Sequence[str],
) -> Pixels:
    """Return the skull beside the grid of faces, (H, W) or (H, W, 3) uint8, with the notes of ``footer`` below."""
    tiles = grid_tiles(names, people, faces, stated)
    words = [name.replace("_", " ") for name in names]
    heading = f"told {words[0]} from left to right" + (f", {words[1]} downwards" if len(words) > 1 else "")
    rows = [
        Row([Tile(skull, "skull") if k == 0 else None, *row], {1: heading} if k == 0 else {})
        for k, row in enumerate(tiles)
    ]
    marked = any(tile.framed for row in tiles for tile in row)
    return plate(rows, ["Framed: the values that are stated."] * marked + [*footer], wide=[0])


def _values(name: str, own: Any, ethnicities: Sequence[str]) -> list[Any]:
    """Return the values of an axis. An age takes the place of the one in its level; a range of ages has none."""
    values = list(ethnicities if name == "ethnicity" else VALUES[name])
    if own is None or isinstance(own, tuple):
        return values
    if name == "age":
        values = [age for age in values if age_level(age) != age_level(own)]
    return sorted({*values, own})
