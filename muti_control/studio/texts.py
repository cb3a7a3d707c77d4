"""The words of the studio: ``texts.NAME`` is the entry NAME of english.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from data.biometrics import BODY_MASS_WORDS

_WORDS = yaml.safe_load(Path(__file__).with_name("english.yaml").read_text(encoding="utf-8"))


def __getattr__(name: str) -> Any:
    try:
        return _WORDS[name]
    except KeyError:
        raise AttributeError(f"english.yaml has no {name}") from None


def face(k: int, caption: str) -> str:
    """Return the number of a face, and who it shows, where anything is known."""
    return ": ".join(filter(None, (_WORDS["FACE"].format(number=k + 1), caption)))


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
