"""The base class of every group of settings, and how a setting is refused."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError

from settings.messages import ConfigError, describe


class Settings(BaseModel):
    """Typed settings. Unknown keys, other types, infinities and values outside the declared limits are errors."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    def with_(self, **changes: Any) -> Self:
        """Return a copy with some fields changed, checked. Raises: ConfigError."""
        try:
            return type(self).model_validate({**dict(self), **changes})
        except ValidationError as error:
            raise ConfigError(describe(error, type(self))) from error


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
            {"key": key, "got": repr(got), "expected": expected},
        )
