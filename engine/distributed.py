"""Processes and what they exchange: the only user of torch.distributed; alone, the identity."""

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from time import sleep
from typing import TYPE_CHECKING, Any, TypeVar

from configs.errors import LaunchError, OnwardError
from engine import rendezvous
from engine.listening import keep_to_loopback, meeting_socket
from engine.rendezvous import Meeting

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LIMIT = timedelta(minutes=30)
POLL = 0.2
"""Seconds between two looks at the store; waiting in it would keep NCCL's own threads from it."""
T = TypeVar("T")
_waits = count()
_control: list[Any] = []
"""The group on the CPU for what must not touch the GPU or its queue; empty when alone."""
_NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def device() -> "torch.device":
    """This process's device: its own GPU, unless DS_ACCELERATOR says cpu or there is none."""
    import torch

    if os.environ.get("DS_ACCELERATOR", "") == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank())


def start(
    communication: str | None = None, limit: timedelta = LIMIT, meeting: Meeting | None = None
) -> None:
    """Join the other processes that the launcher's environment names; twice is once.

    Without that environment a group of this process alone is made, which needs no port. With it
    there is a second group on the CPU, which ``Sum`` talks over.

    Args:
        communication: ``gloo`` or ``nccl``; None takes the one that fits the device.
        limit: how long a collective may take before it fails. How long the processes wait for
            each other here is ``rendezvous.join_seconds``.
        meeting: what this process tells the others first, and what it wants to hear.

    Raises:
        LaunchError: the environment is incomplete, others have not come or cannot be reached, or
            what they tell does not fit.
    """
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import HashStore

    if dist.is_initialized():
        return
    place = device()
    if place.type == "cuda":
        torch.cuda.set_device(place)
    chosen = communication or ("nccl" if place.type == "cuda" else "gloo")
    given = [name for name in _NEEDED if name in os.environ]
    if not {"RANK", "WORLD_SIZE"} & set(given):
        os.environ.setdefault("LOCAL_RANK", "0")
        dist.init_process_group(chosen, store=HashStore(), rank=0, world_size=1, timeout=limit)
        return
    if missing := sorted(set(_NEEDED) - set(given)):
        msg = (
            f"start of distributed training: {', '.join(missing)} not in the environment, though "
            f"{', '.join(given)} are; start through 'onward run' or the deepspeed launcher"
        )
        raise LaunchError(msg)
    keep_to_loopback()
    _join(chosen, limit, meeting or Meeting())


def _join(chosen: str, limit: timedelta, meeting: Meeting) -> None:
    """Meet the others, then make the groups; what keeps ranks apart is told soon, and by name."""
    import torch.distributed as dist
    from torch.distributed import distributed_c10d

    number, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    wait = timedelta(seconds=rendezvous.join_seconds())
    store = _meeting_place(number, size, wait)
    cards = rendezvous.gather(store, number, size, meeting)
    try:
        dist.init_process_group(chosen, store=store, rank=number, world_size=size, timeout=wait)
        groups = [None]
        if size > 1:
            # The limit is no heirloom: a group made without one waits for ever.
            groups.append(dist.new_group(backend="gloo", timeout=wait))
        for group in groups:
            distributed_c10d._set_pg_timeout(limit, group)
        store.set_timeout(limit)
        _control[:] = groups[1:]
    except (RuntimeError, ValueError) as error:
        raise LaunchError(rendezvous.apart(number, cards, error)) from error


def _meeting_place(number: int, size: int, limit: timedelta) -> Any:
    """The store by which the ranks find each other; rank 0 holds it, or torchrun if it started."""
    from torch._C._distributed_c10d import TCPStore

    name, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    is_held_here = number == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    listening = meeting_socket().detach() if is_held_here else None
    try:
        return TCPStore(
            name,
            port,
            size,
            is_master=is_held_here,
            timeout=limit,
            # Who has come is asked later, so that who has not can be named.
            wait_for_workers=False,
            master_listen_fd=listening,
        )
    except RuntimeError as error:
        msg = (
            f"rank {number} on {socket.gethostname()} could not reach rank 0 at {name}:{port} "
            f"within {limit.total_seconds():g} s: {error}"
        )
        raise LaunchError(msg) from error


def stop() -> None:
    """Leave the group. Without this, CPU workers abort at exit with 'terminate called'."""
    import torch.distributed as dist

    _control.clear()
    if is_started():
        dist.destroy_process_group()


@contextmanager
def joined(communication: str | None = None, limit: timedelta = LIMIT) -> Iterator[None]:
    """``start`` and, whatever happens, ``stop``."""
    start(communication, limit)
    try:
        yield
    finally:
        stop()


def is_started() -> bool:
    """True between ``start`` and ``stop``."""
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number, 0 when alone."""
    import torch.distributed as dist

    return dist.get_rank() if is_started() else 0


def world() -> int:
    """How many processes there are, 1 when alone."""
    import torch.distributed as dist

    return dist.get_world_size() if is_started() else 1


def local_rank() -> int:
    """This process's number on its host."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def barrier() -> None:
    """Wait for all processes."""
    import torch.distributed as dist

    if world() > 1:
        dist.barrier()


def all_reduce(tensor: "Tensor") -> "Tensor":
    """Sum over all processes, in place; every process must call it."""
    import torch.distributed as dist

    if world() > 1:
        dist.all_reduce(tensor)
    return tensor


class Sum:
    """A number being summed over all processes, on the CPU, while they do something else."""

    def __init__(self, number: float) -> None:
        """Begin; every process must."""
        import torch
        import torch.distributed as dist

        self._number = torch.tensor([number], dtype=torch.float64)
        self._work: Any = None
        if world() > 1:
            self._work = dist.all_reduce(self._number, group=_control[0], async_op=True)

    def result(self) -> float:
        """The sum, once all have begun; RuntimeError if one of them is gone."""
        if self._work is not None:
            self._work.wait()
        return float(self._number)

    @property
    def has_failed(self) -> bool:
        """Whether another process is gone, as far as can be told without waiting."""
        if self._work is None or not self._work.is_completed():
            return False
        try:
            self._work.get_future().wait()
        except RuntimeError:
            return True
        return False


class Group:
    """All processes once more, on the CPU, for one purpose: no two threads may share a group."""

    def __init__(self, limit: timedelta = LIMIT) -> None:
        """Make it; every process must. ``limit``: how long a collective may take in it."""
        import torch.distributed as dist

        self._group: Any = None
        if world() > 1:
            self._group = dist.new_group(backend="gloo", timeout=limit)

    def rank(self) -> int:
        """This process's number."""
        return rank()

    def world(self) -> int:
        """How many processes there are."""
        return world()

    def all_gather_object(self, value: Any, /) -> list[Any]:
        """Every process's value, by rank; RuntimeError if one of them is gone."""
        import torch.distributed as dist

        if self._group is None:
            return [value]
        values: list[Any] = [None] * world()
        dist.all_gather_object(values, value, group=self._group)
        return values

    def broadcast_object(self, value: Any, /) -> Any:
        """Rank 0's value; RuntimeError if it is gone."""
        import torch.distributed as dist

        values = [value]
        if self._group is not None:
            dist.broadcast_object_list(values, src=0, group=self._group)
        return values[0]

    def close(self) -> None:
        """Leave it, once nothing goes on in it."""
        import torch.distributed as dist

        if self._group is not None and is_started():
            dist.destroy_process_group(self._group)
        self._group = None


def among(members: Sequence[int], limit: timedelta = LIMIT) -> Callable[["Tensor"], Any]:
    """A sum, in place, over some of the ranks, in the device's own network; fails after ``limit``.

    Only they call it. Their group lives until ``stop``: another one of the same members would
    else take over its name, and its stale addresses with it.
    """
    import torch.distributed as dist

    # Without the last word every other process had to make the group, too.
    group = dist.new_group(list(members), timeout=limit, use_local_synchronization=True)
    return lambda tensor: dist.all_reduce(tensor, group=group)


def all_gather_object(value: Any) -> list[Any]:
    """Every process's value, by rank; small picklable things of this program only."""
    import torch.distributed as dist

    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def broadcast_object(value: Any, source: int = 0) -> Any:
    """``source``'s value, on every process."""
    import torch.distributed as dist

    if world() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=source)
    return values[0]


def wait_for_all() -> None:
    """Wait for all processes, however long: a collective gives up after ``LIMIT``.

    For work that takes the processes unequally long. Whoever started them ends the others when
    one of them dies.
    """
    if world() > 1:
        turn = next(_waits)
        _announce(f"{turn}/{rank()}")
        _wait_for([f"{turn}/{number}" for number in range(world())])


def on_first(action: Callable[[], T]) -> T:
    """Do something on rank 0 alone, however long it takes; every process must call it.

    Its answer (small and picklable), or the OnwardError it raised, is everybody's.

    Raises:
        LaunchError: on the other ranks, where rank 0 failed by another error or is gone.
    """
    if world() == 1:
        return action()
    turn = next(_waits)
    answer, error = None, None
    if rank() == 0:
        answer, error = _attempt(action)
        _announce(f"{turn}/0")
    else:
        _wait_for([f"{turn}/0"])
    answer, told = broadcast_object((answer, _for_others(error)))
    if error or told:
        raise error or told
    return answer  # type: ignore[no-any-return]  # what the action returned, after the broadcast


def together(action: Callable[[], T]) -> T:
    """Each process does its share, however long it takes; if one fails, all raise its error."""
    answer, error = _attempt(action)
    wait_for_all()
    errors = all_gather_object(_for_others(error))
    if error is not None and not isinstance(error, OnwardError):
        raise error
    for told in errors:
        if told is not None:
            raise told
    return answer  # type: ignore[return-value]  # there was no error, so it is the answer


def _attempt(action: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """An error as a value: a process that raised alone would leave the others waiting."""
    try:
        return action(), None
    except Exception as error:  # whatever it is, the others must hear of it
        return None, error


def _for_others(error: Exception | None) -> OnwardError | None:
    if error is None or isinstance(error, OnwardError):
        return error
    return LaunchError(f"rank {rank()} failed: {type(error).__name__}: {error}")


def _store() -> Any:
    from torch.distributed import distributed_c10d

    return distributed_c10d._get_default_store()


def _announce(key: str) -> None:
    _store().set(f"onward/{key}", b"1")


def _wait_for(keys: Sequence[str]) -> None:
    store = _store()
    wanted = [f"onward/{key}" for key in keys]
    try:
        while not store.check(wanted):
            sleep(POLL)
    except RuntimeError as error:  # the store lives in rank 0
        msg = f"rank {rank()}: rank 0 is gone: {error}"
        raise LaunchError(msg) from error
