"""The base class of every group of settings, and how a setting is refused."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError, PydanticKnownError

from settings.messages import ConfigError, describe, short

Share = Annotated[float, Field(ge=0, le=1)]


def _path(text: str) -> str:
    """Return a path without blanks and quotes around it, unless a file has just that name; ~ is expanded."""
    bare = text.strip()
    if len(bare) > 1 and bare[0] == bare[-1] and bare[0] in "'\"":
        bare = bare[1:-1]
    if not bare:
        raise ValueError(f"got {text!r}, expected a path; leave the setting out for its default")
    return text if os.path.exists(text) else os.path.expanduser(bare)


PathText = Annotated[str, AfterValidator(_path)]


class Settings(BaseModel):
    """Typed settings. Unknown keys, other types, infinities and values outside the declared limits are errors."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    often: ClassVar[tuple[str, ...]] = ()  # the keys people change most, for --help; empty: all
    headings: ClassVar[dict[str, str]] = {}  # the first key of a group -> its heading, for --help

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Return settings with these values. Raises: ConfigError, in one line."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(describe(error, cls)) from error

    def with_(self, **changes: Any) -> Self:
        """Return a copy with some fields changed, checked. Raises: ConfigError."""
        return self.of(**{**dict(self), **changes})


def one_of(names: Iterable[str]) -> AfterValidator:
    """Return a constraint for a text whose choices are known only at run time, as ``Annotated[str, one_of(names)]``."""
    choices = tuple(names)

    def check(value: str) -> str:
        if value not in choices:
            raise PydanticKnownError("literal_error", {"expected": ", ".join(choices)})
        return value

    return AfterValidator(check)


def expect(good: object, key: str, got: object, expected: str) -> None:
    """Refuse a value, for use in validators that compare fields.

    Args:
        good: whether the value can be used. key: its dotted name within the settings that the validator belongs to.

    Raises:
        PydanticCustomError: the settings' formatter turns it into "key: got X, expected Y".
    """
    if not good:
        raise PydanticCustomError(
            "setting",
            "{key}: got {got}, expected {expected}",
            {"key": key, "got": short(got), "expected": expected},
        )
