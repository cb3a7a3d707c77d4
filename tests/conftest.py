"""What every test runs under: one thread, a fixed seed, and no network."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

LOOPBACK = ("127.", "localhost", "::1")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The nets of the tests are tiny: more threads would only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """A test that forgets its own generator still gives the same answer every time."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 -- for libraries that draw from the global generator


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Whatever reaches for a hub fails the test that made it do so."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else ""
        if self.family in (socket.AF_INET, socket.AF_INET6) and not str(host).startswith(LOOPBACK):
            raise AssertionError(f"a test tried to reach {address!r}: nothing here may use the network")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        yield
