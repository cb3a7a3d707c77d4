"""Several processes at one run, each with a device of its own, joined by Lightning Fabric.

``devices=2`` makes the process that the user started begin the others, once everything is checked; under torchrun or
srun all are there from the start. They agree on a few facts over gloo; pictures never travel between them.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment

T = TypeVar("T")
_VARIABLE = "ICCR_DIFF_PROCESS"  # "rank size parent's process id": of a process that another one started
_READY = "ready\n"
_PATIENCE = 30  # seconds that a process gets to finish its pictures when the run is stopped
_LONGEST_WAIT = timedelta(days=7)  # for the slowest process, at the end of the run


class ProcessError(ValueError):
    """Another process of the run is gone; the message says which."""


@dataclass
class Team:
    """The processes of a run, seen from one of them. A context manager: at its end none is left behind.

    rank: of this process, from 0. size: how many there are. local_rank: this one's number on its machine.
    num_machines: how many machines they are on. command: what starts another process.
    outside: torchrun or SLURM, where that started them. parent: id of the process that started this one.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    num_machines: int = 1
    command: Sequence[str] = ()
    outside: ClusterEnvironment | None = None
    parent: int | None = None
    _children: list[subprocess.Popen[str]] = field(default_factory=list)
    _fabric: Fabric | None = None
    _end: Any = None  # the group of the last barrier, which may take longer than others

    @property
    def is_first(self) -> bool:
        """Whether this is the process that speaks, and writes what is not a face."""
        return self.rank == 0

    @property
    def name(self) -> str:
        """``process 2 of 4``, as in messages."""
        return f"process {self.rank + 1} of {self.size}"

    def device(self, device: torch.device) -> torch.device:
        """Which of the GPUs is this process's own; another device as it is."""
        if self.size == 1 or device.type != "cuda":
            return device
        return torch.device("cuda", self.local_rank % torch.cuda.device_count())

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of what is to be done: every item falls to exactly one process."""
        return list(items[self.rank :: self.size])

    def broadcast(self, value: T) -> T:
        """The first process's value, in all of them."""
        return value if self._fabric is None else self._fabric.broadcast(value)

    def __enter__(self) -> Team:
        """Begin the other processes where that is our task, and wait until all are there.

        Raises:
            ProcessError: one of them ended before.
        """
        if self.size > 1:
            try:
                if self.outside is None and self.is_first:
                    self._start()
                self._join()
            except BaseException:
                self._leave(stop=True)
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave(stop=kind is not None)
        if self._fabric is not None and (kind is None or self._children):
            torch.distributed.destroy_process_group()

    def check(self) -> None:
        """See whether the others are still there; cheap enough for every step.

        Raises:
            ProcessError: one is not.
        """
        for rank, child in enumerate(self._children, 1):
            code = child.poll()  # 0 only after the end that all wait for
            if code:
                how = (
                    f"was killed by {signal.Signals(-code).name}"
                    if code < 0
                    else f"ended with exit code {code}"
                )
                raise ProcessError(f"process {rank + 1} of {self.size} {how}")
        if self.parent is not None and os.getppid() != self.parent:
            raise ProcessError("the process that started this one is gone")

    def wait_for_all(self) -> None:
        """Return when every process has come here; Ctrl-C is heard meanwhile.

        Raises:
            ProcessError: one of them is gone.
        """
        if self._fabric is None:
            return
        try:
            here = torch.distributed.barrier(self._end, async_op=True)
            while not here.is_completed():
                self.check()
                time.sleep(0.05)
            here.wait()
        except RuntimeError as error:  # the connection broke: say whose, if it can be known
            time.sleep(0.5)
            self.check()
            raise ProcessError("another process of the run is gone") from error

    def _start(self) -> None:
        for rank in range(1, self.size):
            environment = os.environ | {_VARIABLE: f"{rank} {self.size} {os.getpid()}"}
            self._children.append(
                subprocess.Popen(
                    self.command,
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    process_group=0,  # the terminal's Ctrl-C reaches the first process alone, which tells the others
                )
            )

    def _join(self) -> None:
        from lightning_fabric import Fabric  # takes seconds, which one process alone need not spend
        from lightning_fabric.plugins.environments.lightning import LightningEnvironment
        from lightning_fabric.strategies.ddp import DDPStrategy

        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
        environment = self.outside
        if environment is None:
            # With LOCAL_RANK set, Lightning takes the processes as started and joins them.
            os.environ |= {"LOCAL_RANK": str(self.local_rank), "NODE_RANK": "0"}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self._port())}
            environment = LightningEnvironment()
        fabric = Fabric(
            accelerator="cpu",  # of what travels between the processes: the models are elsewhere
            devices=self.size // self.num_machines,
            num_nodes=self.num_machines,
            strategy=DDPStrategy(process_group_backend="gloo"),
            plugins=[environment],
        )
        fabric.launch()
        self._fabric = fabric
        self._end = torch.distributed.new_group(timeout=_LONGEST_WAIT, backend="gloo")

    def _port(self) -> int:
        """The port to meet at: the first process chooses one when all others are ready, and tells them."""
        from lightning_fabric.plugins.environments.lightning import find_free_network_port

        if self.parent is not None:
            print(_READY, end="", flush=True)
            line = sys.stdin.readline()
            if not line.strip():
                raise ProcessError("the process that started this one is gone")
            return int(line)
        waiting = [child.stdout for child in self._children if child.stdout is not None]
        while waiting:
            for stream in select.select(waiting, [], [], 0.5)[0]:
                if not stream.readline():  # its end: it did not come so far
                    time.sleep(0.5)
                    self.check()
                    raise ProcessError("another process of the run is gone")
                waiting.remove(stream)
        port = find_free_network_port()
        for child in self._children:
            print(port, file=child.stdin, flush=True)
        return port

    def _leave(self, stop: bool) -> None:
        """See the processes begun here off; one that is stopped gets time to write the faces it has drawn."""
        deadline = time.monotonic() + _PATIENCE
        try:
            for child in self._children:
                if stop and child.poll() is None:
                    child.send_signal(signal.SIGINT if self._fabric is not None else signal.SIGKILL)
            while any(child.poll() is None for child in self._children) and time.monotonic() < deadline:
                time.sleep(0.05)
        finally:
            for child in self._children:
                child.kill()
                child.wait()


def find_team(devices: str, device: torch.device, command: Sequence[str] = ()) -> Team:
    """The processes this run is to have.

    Args:
        devices: how many GPUs (or, on the CPU, processes); ``auto``: all GPUs that can be seen.
        device: what to compute on. command: what starts another process.

    Raises:
        ValueError: a number that cannot be.
    """
    if _VARIABLE in os.environ:
        rank, size, parent = (int(number) for number in os.environ[_VARIABLE].split())
        return Team(rank, size, local_rank=rank, parent=parent)
    outside, machines = _outside()
    if outside is not None:
        size = outside.world_size()
        if devices not in ("1", "auto", str(size // machines)):
            raise ValueError(
                f"devices: got {devices}, but {size} processes were started from outside; leave it out"
            )
        return Team(outside.global_rank(), size, outside.local_rank(), machines, outside=outside)
    size = _number(devices, device)
    if size > 1 and "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(max(1, _num_cores() // size))  # for those that are started
        torch.set_num_threads(max(1, _num_cores() // size))
    return Team(size=size, command=command)


def _outside() -> tuple[ClusterEnvironment | None, int]:
    """What started this process as one of several, and on how many machines they are."""
    known = os.environ
    if "TORCHELASTIC_RUN_ID" in known and int(known["WORLD_SIZE"]) > 1:
        from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

        return TorchElasticEnvironment(), int(known["WORLD_SIZE"]) // int(known["LOCAL_WORLD_SIZE"])
    if int(known.get("SLURM_STEP_NUM_TASKS", 1)) > 1:  # srun; a batch script alone is one process
        from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

        try:
            return SLURMEnvironment(), int(known.get("SLURM_STEP_NUM_NODES", 1))
        except RuntimeError as error:  # tasks that are not said to be so many on each machine
            raise ValueError(f"srun: {error}") from error
    return None, 1


def _number(devices: str, device: torch.device) -> int:
    num_gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    if devices == "auto":
        return num_gpus if num_gpus and device.index is None else 1
    if not devices.isdecimal() or int(devices) < 1:
        raise ValueError(f"devices: got {devices!r}, expected auto or a number from 1")
    size, limit = int(devices), {"cuda": num_gpus, "cpu": _num_cores()}.get(device.type, 1)
    if size > limit:
        what = {"cuda": "GPUs", "cpu": "processor cores"}.get(device.type, f"{device.type} devices")
        raise ValueError(f"devices: got {size}, but this machine has {limit} {what}; use devices=auto")
    if size > 1 and device.index is not None:
        raise ValueError(f"devices: got {size} with device={device}; use device={device.type}")
    return size


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
