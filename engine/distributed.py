"""Processes and what they exchange: the only user of torch.distributed; alone, the identity."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from configs.errors import LaunchError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LIMIT = timedelta(minutes=30)
_NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def device() -> "torch.device":
    """This process's device: its own GPU, unless DS_ACCELERATOR says cpu or there is none."""
    import torch

    if os.environ.get("DS_ACCELERATOR", "") == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank())


def start(communication: str | None = None, limit: timedelta = LIMIT) -> None:
    """Join the other processes that the launcher's environment names; twice is once.

    Without that environment a group of this process alone is made, which needs no port.

    Args:
        communication: ``gloo`` or ``nccl``; None takes the one that fits the device.
        limit: how long a collective may take before it fails.

    Raises:
        LaunchError: the environment is incomplete, or the others cannot be reached.
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
    try:
        dist.init_process_group(chosen, timeout=limit)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        msg = f"rank {os.environ['RANK']} could not join the others at {where}: {error}"
        raise LaunchError(msg) from error


def stop() -> None:
    """Leave the group. Without this, CPU workers abort at exit with 'terminate called'."""
    import torch.distributed as dist

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
