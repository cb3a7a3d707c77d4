"""Several processes share one run.

Sampling: Lightning Fabric starts and joins the processes of a ``Team``. With ``devices=2`` the user's process launches
the other one when everything is checked; torchrun and srun start all processes themselves. The processes agree on a few
facts over gloo. They exchange no pictures.

Training: Lightning's Trainer starts the processes. The first one computes and writes for all; the others wait for its
files (``is_first``, ``wait_for``).
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist

from settings.messages import ConfigError

if TYPE_CHECKING:
    from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment

T = TypeVar("T")
PATIENCE = 30  # seconds in which a stopped process may finish its pictures
FILE_PATIENCE = 900.0  # seconds without a change in a folder; a part of the latents takes far less
LONGEST_WAIT = timedelta(days=7)  # of the fastest process for the slowest


class ProcessError(ValueError):
    """Another process of the run ended; the message says which."""


@dataclass
class Team:
    """The processes of a run, seen from one of them. A context manager that leaves no process behind.

    rank: from 0. size: number of processes. local_rank: number on this machine. environment: of Lightning, where the
    processes run already; None lets this one launch the others.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    num_machines: int = 1
    environment: ClusterEnvironment | None = None
    _parent: int = field(default_factory=os.getppid)
    _children: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def is_first(self) -> bool:
        """Whether this process reports to the user and writes what is not a face."""
        return self.rank == 0

    @property
    def name(self) -> str:
        """``process 2 of 4``, for messages."""
        return f"process {self.rank + 1} of {self.size}"

    def device(self, device: torch.device) -> torch.device:
        """Return this process's own GPU; another device is returned unchanged."""
        if self.size == 1 or device.type != "cuda":
            return device
        return torch.device("cuda", self.local_rank % torch.cuda.device_count())

    def share(self, items: Sequence[T]) -> list[T]:
        """Return this process's part of the work: every item falls to exactly one process."""
        return list(items[self.rank :: self.size])

    def __enter__(self) -> Team:
        """Launch the other processes. Raises: ProcessError."""
        if self.size > 1 and not dist.is_initialized():
            try:
                self.join()
            except BaseException:
                self._end_children(stop=True)
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_children(stop=kind is not None)
        if self.size > 1 and kind is None:
            dist.destroy_process_group()

    def join(self) -> None:
        """Join the processes, after launching them where that is left to this one. Raises: ProcessError."""
        from lightning_fabric import Fabric  # takes seconds, which a single process need not spend
        from lightning_fabric.plugins.environments.lightning import LightningEnvironment
        from lightning_fabric.strategies.ddp import DDPStrategy

        logging.getLogger("lightning_fabric.utilities").setLevel(logging.WARNING)
        fabric = Fabric(
            accelerator="cpu",  # of what the processes tell each other; the models choose their own device
            strategy=DDPStrategy(process_group_backend="gloo", timeout=LONGEST_WAIT),
            devices=self.size // self.num_machines,
            num_nodes=self.num_machines,
            plugins=[self.environment or LightningEnvironment()],
        )
        launch: Future[int] = Future()

        def run() -> None:
            try:
                fabric.launch()
                launch.set_result(torch.get_num_threads())
            except BaseException as error:
                launch.set_exception(error)

        # Children inherit the mask: the terminal's Ctrl-C reaches the first process alone, which stops them by SIGTERM.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            threading.Thread(target=run, name="launch", daemon=True).start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        # Fabric kills the whole run with exit code 137 when a process in this list ends. The list is emptied, and
        # ``check`` reports the process instead. The launch has its own thread because it waits for a lost process.
        launched = getattr(fabric.strategy.launcher, "procs", [])
        with self._naming_lost():
            while launched or not launch.done():
                while launched:
                    self._children.append(launched.pop(0))
                self.check()
                time.sleep(0.02)
            torch.set_num_threads(launch.result())  # Fabric set it in the other thread alone

    def broadcast(self, value: T) -> T:
        """Return the first process's value in every process. Raises: ProcessError."""
        values = [value]
        if self.size > 1:
            with self._naming_lost():
                dist.broadcast_object_list(values)
        return values[0]

    def wait_for_all(self) -> None:
        """Return when every process has come here; Ctrl-C interrupts. Raises: ProcessError."""
        if self.size == 1:
            return
        with self._naming_lost():
            barrier = dist.barrier(async_op=True)
            while not barrier.is_completed():
                self.check()
                time.sleep(0.05)
            barrier.wait()

    def check(self) -> None:
        """Raise ProcessError if another process is gone; cheap enough for every step."""
        for rank, child in enumerate(self._children, 1):
            if code := child.poll():  # 0 comes after the last barrier only
                how = (
                    f"ended with exit code {code}"
                    if code > 0
                    else f"was killed by {signal.Signals(-code).name}"
                )
                raise ProcessError(f"process {rank + 1} of {self.size} {how}")
        if not self.is_first and os.getppid() != self._parent:
            raise ProcessError("the process that started this one is gone")

    @contextmanager
    def _naming_lost(self) -> Iterator[None]:
        """Turn a broken connection into a ProcessError that says whose it was."""
        try:
            yield
        except RuntimeError as error:
            time.sleep(0.5)  # until the exit code of the other process is there
            self.check()
            raise ProcessError("another process of the run is gone") from error

    def _end_children(self, stop: bool) -> None:
        """Wait until the launched processes have ended; ``stop`` makes them write their faces and end now."""
        deadline = time.monotonic() + PATIENCE
        try:
            for child in self._children:
                if stop:
                    child.terminate()
            while any(child.poll() is None for child in self._children) and time.monotonic() < deadline:
                time.sleep(0.05)
        finally:
            for child in self._children:
                child.kill()
                child.wait()


def find_team(devices: str, device: torch.device) -> Team:
    """Return the processes of this run; those that torchrun, srun or Fabric started are joined.

    Args:
        devices: number of GPUs (on the CPU: of processes); ``auto``: all GPUs. device: what to compute on.

    Raises:
        ValueError: a number that this machine does not have.
    """
    variables = os.environ
    size = int(variables.get("WORLD_SIZE", 1))
    environment: ClusterEnvironment
    if "LOCAL_RANK" in variables and size > 1:  # torchrun, or Fabric, which leaves RANK out
        from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

        variables.setdefault("RANK", variables["LOCAL_RANK"])
        environment = TorchElasticEnvironment()
        machines = size // int(variables.get("LOCAL_WORLD_SIZE", size))
    elif int(variables.get("SLURM_STEP_NUM_TASKS", 1)) > 1:  # srun; a batch script alone is one process
        from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

        try:
            environment, machines = SLURMEnvironment(), int(variables.get("SLURM_STEP_NUM_NODES", 1))
        except RuntimeError as error:  # the number of tasks on each machine is not fixed
            raise ValueError(f"srun: {error}") from error
    else:
        return Team(size=_num_processes(devices, device))
    rank, local_rank, size = environment.global_rank(), environment.local_rank(), environment.world_size()
    if devices not in ("1", "auto", str(size // machines)):
        raise ValueError(f"devices: got {devices}, but {size} processes were started; leave it out")
    team = Team(rank, size, local_rank, machines, environment)
    team.join()  # before anything can fail here: the first process then learns of it
    return team


def _num_processes(devices: str, device: torch.device) -> int:
    num_gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    if devices == "auto":
        return num_gpus if num_gpus and device.index is None else 1
    if not devices.isdecimal() or int(devices) < 1:
        raise ValueError(f"devices: got {devices!r}, expected auto or a number from 1")
    size, limit = int(devices), {"cuda": num_gpus, "cpu": _num_cores()}.get(device.type, 1)
    if size > limit:
        unit = {"cuda": "GPUs", "cpu": "processor cores"}.get(device.type, f"{device.type} devices")
        raise ValueError(f"devices: got {size}, but this machine has {limit} {unit}; use devices=auto")
    if size > 1 and device.index is not None:
        raise ValueError(f"devices: got {size} with device={device}; use device={device.type}")
    return size


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_first(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether this is process 0 of the run, however it was started: alone, by Lightning, torchrun or srun."""
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
    return int(next((environment[name] for name in names if name in environment), "0")) == 0


def end_with_parent(seconds: float = 2.0) -> None:
    """Make a process that Lightning launched end when the user's own process ends, however it ends.

    Otherwise it would wait for it in a collective, and hold its GPU. torchrun and srun do this themselves.
    """
    env = os.environ
    if "LOCAL_RANK" not in env or "TORCHELASTIC_RUN_ID" in env or "SLURM_STEP_NUM_TASKS" in env:
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(seconds)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def wait_for(look: Callable[[], T | None], folder: Path, what: str, patience: float = FILE_PATIENCE) -> T:
    """Return the first result of ``look`` that is not None.

    Args:
        look: a cheap call; None as long as there is nothing.
        folder: where the first process writes; while anything changes there, it is alive.
        what: the thing to wait for, for the message.

    Raises:
        ConfigError: there was no result, and no change in ``folder``, for ``patience`` seconds.
    """
    last_change, newest = time.monotonic(), _newest(folder)
    while (result := look()) is None:
        time.sleep(0.5)
        if (now := _newest(folder)) != newest:
            last_change, newest = time.monotonic(), now
        elif time.monotonic() - last_change > patience:
            raise ConfigError(
                f"waited {patience:.0f} s for the first process to write {what} into {folder}, and nothing came: "
                "look at its messages; on several machines, out= must be a folder that all of them see"
            )
    return result


def _newest(folder: Path) -> int:
    times = [0]
    for path in (folder, *folder.glob("*"), *folder.glob("*/*")):
        try:
            times.append(path.stat().st_mtime_ns)
        except FileNotFoundError:  # a temporary file that has its name by now
            continue
    return max(times)
