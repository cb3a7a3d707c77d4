"""Command lines and YAML merged into a typed config: what wins, and what is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from settings.base import Settings
from settings.messages import ConfigError, known_keys
from settings.reading import parse_command_line, to_yaml


class Inner(Settings):
    steps: int = 5
    scales: list[float] = [1.0, 2.0]


class Outer(Settings):
    skull: str | None = None
    age: float | None = None
    body_mass: Any = None
    count: int = 1
    flag: bool = False
    inner: Inner = Inner()
    maybe: Inner | None = None


def test_defaults_base_file_and_assignments_in_rising_precedence(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("count: 3\ninner:\n  steps: 30\n")
    base = {"inner": {"steps": 20, "scales": [9]}, "age": 7}
    result = parse_command_line(Outer, [str(file), "inner.steps=40"], base=base)
    assert result == Outer(age=7.0, count=3, inner=Inner(steps=40, scales=[9.0]))
    assert parse_command_line(Outer, [str(file)], base=base).inner.steps == 30
    assert parse_command_line(Outer, []) == Outer()


@pytest.mark.parametrize(
    "name", ["10", "a #b: c.png", "2026-01-01", "${x}.png", "[a].png", "C:\\x y\\a.png", "true"]
)
def test_a_text_is_taken_as_it_stands(name: str) -> None:
    assert parse_command_line(Outer, [f"skull={name}"]).skull == name


def test_values_have_the_fields_types() -> None:
    arguments = ["age=43", "body_mass=slightly fat", "inner.scales=[1, 1e-3]", "flag=true", "skull=null"]
    result = parse_command_line(Outer, arguments)
    assert result == Outer(age=43.0, body_mass="slightly fat", flag=True, inner=Inner(scales=[1.0, 1e-3]))
    assert parse_command_line(Outer, ["inner.scales=2"]).inner.scales == [2.0]
    assert parse_command_line(Outer, ["maybe.steps=3"]).maybe == Inner(steps=3)
    assert parse_command_line(Outer, ["maybe=null"]).maybe is None


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("steps=3", "steps: unknown setting; did you mean inner.steps?"),
        ("inner.stps=3", "inner.stps: unknown setting; did you mean inner.steps?"),
        (
            "zzz=3",
            "zzz: unknown setting; known: skull, age, body_mass, count, flag, inner.steps, inner.scales, maybe.steps",
        ),
        ("count=x", "count: Value 'x' of type 'str' could not be converted to Integer"),
        ("count=1.5", "count: .* could not be converted to Integer"),
        ("count=", "count: "),
        ("age=old", "age: .* could not be converted to Float"),
        ("inner=3", "inner: "),
        ("inner.scales=[a]", r"inner.scales\[0\]: "),
        ("count=[1", r"count: '\[1' cannot be read as a value"),
        ("--count=2", "--count=2: settings are written without dashes, as in count=2"),
        ("--count", "--count: settings are written without dashes, as in count=VALUE"),
        ("skull.png", "skull.png: not understood; expected "),
        ("none.yaml", "none.yaml: no such config file"),
    ],
)
def test_a_bad_argument_is_one_line_that_names_the_key(argument: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}") as caught:
        parse_command_line(Outer, [argument])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("foo: 1", "foo: unknown setting"),
        ("inner:\n  stps: 2", "inner.stps: unknown setting; did you mean inner.steps?"),
        ("inner: 3", "inner: got 3, expected settings"),
        ("inner:\n  steps: x", "inner.steps: Value 'x'"),
        ("count: x", "count: Value 'x'"),
        ("- 1", "holds a list, expected settings"),
        ("n: [1", "cannot be read as YAML"),
        ("skull: ${nowhere}", "cannot be read as YAML"),
    ],
)
def test_a_bad_file_is_one_line_that_names_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        parse_command_line(Outer, [str(file)])
    assert str(caught.value).startswith(f"{file}: {message}")
    assert "\n" not in str(caught.value)


def test_an_empty_file_changes_nothing_and_two_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("")
    assert parse_command_line(Outer, [str(file)]) == Outer()
    with pytest.raises(ConfigError, match="a second config file"):
        parse_command_line(Outer, [str(file), str(file)])


def test_a_lone_file_is_told_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^s\.png: not understood; .*value \.\.\.\]$"):
        parse_command_line(Outer, ["s.png"], file_key="skull")
    Path("s.png").touch()
    with pytest.raises(ConfigError, match=r"^s\.png: not understood; .*, as in skull=s\.png$"):
        parse_command_line(Outer, ["s.png"], file_key="skull")


def test_what_it_prints_it_reads(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(to_yaml(Outer(skull="a.png", inner=Inner(steps=3))))
    assert parse_command_line(Outer, [str(file)]) == Outer(skull="a.png", inner=Inner(steps=3))
    assert known_keys(Outer)[-3:] == ["inner.scales", "maybe.steps", "maybe.scales"]
