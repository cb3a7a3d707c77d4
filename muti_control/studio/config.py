"""The settings of the studio."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from muti_control.sampling.config import DEMO_WEIGHTS
from settings.base import PathText, Settings, expect

LEAST_TOKEN = 16


class StudioConfig(Settings):
    """How the studio runs."""

    host: str = "127.0.0.1"
    """Address of the page; others than this machine need token."""
    port: Annotated[int, Field(ge=0, le=65535)] = 7860
    """Port of the page; 0 takes a free one."""
    show: bool = True
    """Open the page in the browser."""
    token: str | None = None
    """Password of the page, at least 16 letters."""
    weights: PathText = DEMO_WEIGHTS
    """Checkpoint of the model."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto takes bf16 where the device is faster by it, else fp32."""
    quick_steps: PositiveInt = 2
    """Denoising steps of the face that follows each change."""
    steps: PositiveInt | None = None
    """Denoising steps of the other faces; null takes what the weights recommend."""
    num_samples: Annotated[int, Field(ge=2, le=16)] = 8
    """Faces of a skull."""
    out: PathText = "results/studio"
    """Folder of uploads and cases."""
    keep: bool = False
    """Leave them there at the end."""
    max_mib: PositiveInt = 1024
    """Largest upload, MiB."""
    max_sessions: PositiveInt = 32
    """Sessions at once."""
    idle_hours: Annotated[float, Field(gt=0)] = 12.0
    """Hours until a session ends that nobody looks at."""

    @model_validator(mode="after")
    def _is_safe(self) -> Self:
        expect(
            self.token is not None or _is_loopback(self.host),
            "host", self.host,
            f"127.0.0.1, or beside it token=WORD: everybody who reaches {self.host} could see the skulls",
        )  # fmt: skip
        enough = self.token is None or len(self.token) >= LEAST_TOKEN
        expect(enough, "token", "a short word", f"at least {LEAST_TOKEN} letters and digits")
        return self


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
