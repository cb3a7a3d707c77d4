"""``key=value`` settings of the programs under ``data``, merged into their dataclasses."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

Config = TypeVar("Config")


def merged(kind: type[Config], overrides: list[str]) -> Config:
    """The defaults of a config dataclass, changed by ``["seed=3", "out=", ...]``; a text may be empty.

    Raises:
        ValueError: no ``key=value``, an unknown key or a wrong type, with the keys that there are.
    """
    assert is_dataclass(kind)
    known = ", ".join(field.name for field in fields(kind))
    texts = {field.name for field in fields(kind) if isinstance(field.default, str)}
    for item in overrides:
        if "=" not in item:
            raise ValueError(f"{item!r}: expected key=value; keys: {known}")
    given = [f"{item}''" if item[-1] == "=" and item[:-1] in texts else item for item in overrides]
    try:
        config = OmegaConf.to_object(
            OmegaConf.merge(OmegaConf.structured(kind), OmegaConf.from_dotlist(given))
        )
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{' '.join(overrides)}: {reason}; keys: {known}") from error
    assert isinstance(config, kind)
    return config
