"""Multi-process training: start and stop processes, number them, and gather data from all of them.

The process that the user started is the first. It starts the others, which end when it ends, in whatever way that is.
On several machines torchrun starts all of them, and the first one is that with rank 0. In a single process, every
function that gathers data returns its argument.
"""

import contextlib
import datetime
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, distributed
from torch.distributed import FileStore, PrefixStore, Store  # type: ignore[reportPrivateImportUsage]

from deephash_cli.errors import ConfigError, DeephashError

_Rows = TypeVar("_Rows", list[int], np.ndarray)
_STORE = "DEEPHASH_STORE"  # environment variable: path of the file through which the processes find each other
_RANK = "LOCAL_RANK"  # environment variable; because it is set, Lightning starts no processes of its own
_TASK = "task"
_PATIENCE = datetime.timedelta(minutes=30)  # how long the others wait while one of them works alone


def is_launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_first() -> bool:
    """Whether this is the process that prints and writes files. Also valid before the others have started."""
    return os.environ["RANK"] == "0" if is_launched() else _STORE not in os.environ


def rank() -> int:
    """Return the number of this process, counted from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def count() -> int:
    """Return the number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def count_here() -> int:
    """Return the number of processes on this machine. Only torchrun starts processes on others."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if is_launched() else count()


def require_alone(verb: str) -> None:
    """Refuse to run as one of several processes that another program started. Only ``train`` accepts torchrun.

    Args:
        verb: Verb that the user gave.

    Raises:
        ConfigError: If another program started this process as one of several.
    """
    if is_launched() and verb == "train":
        return
    if is_first() and _RANK in os.environ:
        raise ConfigError(
            f"deephash {verb} starts its processes itself: leave out torchrun or whatever set LOCAL_RANK, and set "
            f"{'trainer.devices' if verb == 'train' else 'devices'}=<number>"
        )


@contextlib.contextmanager
def team(size: int, device: torch.device, command: Sequence[str], task: str) -> Iterator[None]:
    """Work together with ``size - 1`` other processes while the context is open.

    Args:
        size: Number of processes, this one included.
        device: Device of this process.
        command: Command with which the first process starts the others. They must call this function too.
        task: Text that the first process sends to the others, which read it with ``task_of_this_process``.

    Raises:
        ConfigError: If torchrun started another number of processes.
        DeephashError: If one of the others failed.
    """
    if is_launched():
        with _launched_team(size, device, task):
            yield
        return
    if size == 1:
        yield
        return
    first = is_first()
    threads = torch.get_num_threads()
    folder = tempfile.mkdtemp(prefix="deephash-") if first else None
    file = str(Path(folder, "store")) if folder else os.environ[_STORE]
    settings = {**_of_this_machine_alone(), **({_RANK: "0"} if first else {})}
    others: list[subprocess.Popen[str]] = []
    try:
        os.environ |= settings
        if first:
            others = [_start(command, task, {_RANK: str(rank), _STORE: file}) for rank in range(1, size)]
        store = FileStore(file, size)
        if first:
            _wait_for(others, store)
        else:
            store.set(os.environ[_RANK], "here")
        if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, threads // size))
        _meet(store, int(os.environ[_RANK]), size, device)
        yield
        for process in others:
            process.wait()
    except Exception as error:
        for number, process in enumerate(others, start=1):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=1)  # if another process fails, this one may notice before the other has ended
            if not isinstance(error, DeephashError) and process.returncode:
                raise DeephashError(
                    f"process {number} of {size} (counted from 0) ended with exit code {process.returncode}: its "
                    "output is above; a negative number is a signal, and -9 often means that memory ran out"
                ) from error
        raise
    finally:
        for process in others:
            process.kill()
            process.wait()
            if process.stdin:
                with contextlib.suppress(BrokenPipeError):  # it ended before it had read its task
                    process.stdin.close()
        torch.set_num_threads(threads)
        if distributed.is_initialized():
            distributed.destroy_process_group()
        for name in settings:
            os.environ.pop(name, None)
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _launched_team(size: int, device: torch.device, task: str) -> Iterator[None]:
    """Work together with the processes that torchrun started, while the context is open."""
    started = int(os.environ["WORLD_SIZE"])
    if size != started:
        raise ConfigError(
            f"torchrun started {started} processes, but trainer.devices times trainer.num_nodes is {size}: these must "
            "be equal (methods that are fitted in one step need no torchrun)"
        )
    store = _meeting_point()
    if is_first():
        store.set(_TASK, task)
    _meet(PrefixStore("team", store), int(os.environ["RANK"]), size, device)
    try:
        yield
        distributed.barrier()  # torchrun ends all processes as soon as the first one has ended
    finally:
        distributed.destroy_process_group()


def _meet(store: Store, rank: int, size: int, device: torch.device) -> None:
    distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        timeout=_PATIENCE,
        device_id=device if device.type == "cuda" else None,
    )


def dismiss() -> None:
    """Let the other processes that torchrun started end, if the first one has given them no task."""
    if is_launched() and is_first() and not _meeting_point().check([_TASK]):
        _meeting_point().set(_TASK, "")


@functools.cache
def _meeting_point() -> Store:
    """Return the store through which the processes that torchrun started exchange data."""
    store, _, _ = next(distributed.rendezvous("env://"))  # type: ignore[reportPrivateImportUsage]
    return PrefixStore("deephash", store)


def task_of_this_process() -> str:
    """Return the task that the first process gave this one. From then on, this process ends when the first one ends.

    It ignores Ctrl-C and SIGTERM: the first process decides when all of them end.

    Under torchrun the task is empty if there is nothing for the other processes to do.
    """
    if is_launched():  # torchrun ends all processes when one fails
        return _meeting_point().get(_TASK).decode()
    _leave_signals_to_the_first()
    length = int(sys.stdin.readline())
    task = sys.stdin.read(length)
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    return task


def share(rows: _Rows, part: int, parts: int) -> _Rows:
    """Return one of several consecutive parts of the rows. The lengths of the parts differ by at most one."""
    first, end = (len(rows) * number // parts for number in (part, part + 1))
    return rows[first:end]


def own_share(rows: _Rows) -> _Rows:
    """Return the part of the rows that belongs to this process."""
    return share(rows, rank(), count())


def of_all(rows: Shaped[Tensor, "n *shape"]) -> Shaped[Tensor, "m *shape"]:
    """Concatenate the rows of all processes, in the order of the processes, which may have different numbers of rows.

    Gradients flow only through the rows of this process.
    """
    if count() == 1:
        return rows
    lengths = [torch.zeros((), dtype=torch.int64, device=rows.device) for _ in range(count())]
    distributed.all_gather(lengths, torch.tensor(len(rows), device=rows.device))
    most = max(int(length) for length in lengths)
    padded = rows.new_zeros(most, *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in lengths]
    distributed.all_gather(parts, padded)
    parts = [part[: int(length)] for part, length in zip(parts, lengths, strict=True)]
    parts[rank()] = rows
    return torch.cat(parts)


def sum_of_all(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Sum over all processes. The gradient is also summed over all processes."""
    return x if count() == 1 else _SumOfAll.apply(x)


def from_first(value: Any) -> Any:
    """Return the first process's value, in every process."""
    if count() == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def largest(value: int, device: torch.device) -> int:
    """Return the largest of the values that the processes give.

    Args:
        value: Value of this process.
        device: Device of this process.
    """
    if count() == 1:
        return value
    shared = torch.tensor(value, device=device)
    distributed.all_reduce(shared, distributed.ReduceOp.MAX)
    return int(shared)


class _SumOfAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]  # noqa: ARG004
        return _reduced(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]  # noqa: ARG004
        return _reduced(gradient)


def _reduced(x: Tensor) -> Tensor:
    x = x.clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(x)
    return x


def _of_this_machine_alone() -> dict[str, str]:
    """Settings that keep all sockets on this machine. With them, a host name that does not resolve does no harm."""
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    variables = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    return {name: loopback for name in variables if loopback and name not in os.environ}


def _start(command: Sequence[str], task: str, place: dict[str, str]) -> "subprocess.Popen[str]":
    modules = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, **place, "PYTHONPATH": modules}
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # Ctrl-C reaches only the first process, which ends the others
    )
    assert process.stdin
    with contextlib.suppress(BrokenPipeError):  # it has already ended, which `_wait_for` notices
        process.stdin.write(f"{len(task)}\n{task}")
        process.stdin.flush()
    return process


def _wait_for(others: Sequence["subprocess.Popen[str]"], store: FileStore) -> None:
    """Wait until the other processes are ready, which takes the seconds that Python needs to start."""
    while not store.check([str(rank) for rank in range(1, len(others) + 1)]):
        if any(process.poll() is not None for process in others):
            raise RuntimeError("a process ended before it was ready")
        time.sleep(0.05)


def _leave_signals_to_the_first() -> None:
    """Ignore the signals that schedulers send to all processes: the first one may need the others to finish a step."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _end_with_the_first() -> None:
    sys.stdin.read()
    os._exit(1)
