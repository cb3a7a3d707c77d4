"""What ``--help`` prints, and the comments of the configs."""

from __future__ import annotations

import pydoc
import re
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field
from test_contracts import ROOT
from test_documents import KEYS_OF

from settings.base import Settings
from settings.help import help_text, keys_of
from settings.messages import ConfigError
from settings.reading import values_of


class Deep(Settings):
    """The inner part."""

    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate."""
    kinds: list[Literal["a", "b"]] = ["a"]


class Whole(Settings):
    """The whole."""

    deep: Deep = Deep()
    name: str
    """The run's folder."""
    maybe: Deep | None = None


def test_help_has_the_values_of_a_command_line_with_meaning_and_range(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("deep:\n  lr: 0.5\nmaybe:\n  lr: 3\n")
    text = help_text("Usage.", Whole, [str(file), "--help", "deep.kinds=b"], "as c.yaml has it")
    assert text.splitlines()[:3] == ["Usage.", "", "Every key, as c.yaml has it:"]
    lines = [" ".join(line.split()) for line in text.splitlines()[3:] if line]
    inner = "The inner part", "Peak learning rate (above 0)", "(a list of a, b)"
    assert lines == [
        "name=??? The run's folder",
        *(f"deep: {inner[0]}", f"deep.lr=0.5 {inner[1]}", f"deep.kinds=[b] {inner[2]}"),
        *(f"maybe: {inner[0]}", f"maybe.lr=3 {inner[1]}", f"maybe.kinds=[a] {inner[2]}"),
    ]
    with pytest.raises(ConfigError, match="nothing"):
        help_text("Usage.", Whole, ["--help", "nothing=1"])


def test_configs_have_one_key_a_line_each_with_a_comment():
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        above = ""
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.strip() and not line.lstrip().startswith("#"):
                is_group = re.fullmatch(r" *\w+:", line)
                assert is_group or re.fullmatch(r" *\w+: [^{#]+(#.*)?", line), f"{path}: {line}"
                assert is_group or "  # " in line or above.startswith("#"), f"{path}: no comment: {line}"
            above = line.lstrip()


@pytest.mark.parametrize("program", KEYS_OF)
def test_help_tells_the_meaning_of_every_key(program):
    schema = pydoc.locate(KEYS_OF[program])
    keys = list(keys_of(schema, values_of(schema, [])))
    assert not [key.path for key in keys if not re.match(r"\w.*\w", key.comment.partition(" (")[0])]
    text = help_text("Usage.", schema, ["--help"])
    assert len(schema.often) in (0, 10) and all(f"\n  {name}=" in text for name in schema.often)
