"""How a launch failed, and on which hosts: from its error and from what its ranks left."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from configs.errors import (
    Cause,
    CheckpointError,
    DataError,
    LaunchError,
    NumericalError,
    OnwardError,
    Preempted,
    RecipeError,
    ResourceError,
    step_of,
)
from engine import watchdog
from launcher.hosts import Host
from launcher.interruption import Interrupted
from launcher.outcome import Outcome, first_cause, read_outcomes
from launcher.secrecy import mask

Kind = Literal[
    "recipe",
    "data",
    "checkpoint",
    "numerical",
    "memory",
    "space",
    "port",
    "in_use",
    "resource",
    "preempted",
    "stopped",
    "killed",
    "hang",
    "lost",
    "crash",
]
_OF_CAUSE: dict[str, Kind] = {
    "space": "space",
    "memory": "memory",
    "port": "port",
    "in_use": "in_use",
    "unforeseen": "crash",
}
_OF_CLASS: tuple[tuple[type[BaseException], Kind], ...] = (
    (RecipeError, "recipe"),
    (DataError, "data"),
    (CheckpointError, "checkpoint"),
    (NumericalError, "numerical"),
    (ResourceError, "resource"),
    (Preempted, "preempted"),
    (Interrupted, "stopped"),
)
# Addresses, process ids and times differ from one start to the next.
_PASSING = re.compile(r"0x[0-9a-f]+|\d+")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a start came to nothing.

    Attributes:
        kind: ``killed``: a process was, by SIGKILL say. ``lost``: processes never came up, or
            are gone otherwise. ``stopped``: a rank got a signal and saved nothing. ``crash``: an
            exception that nobody foresaw. The others are named for their errors.
        message: the error's first line.
        exit_code: that the command would end with.
        hosts: whose it seems to be, as the hostfile names them; nobody's where it is everybody's.
        stage: where it happened, if that is known.
        step: finished steps when it was raised, if that is known.
        cause: of the error.
        sameness: equal for errors that differ in numbers alone.
    """

    kind: Kind
    message: str
    exit_code: int
    hosts: tuple[str, ...] = ()
    stage: str = ""
    step: int | None = None
    cause: Cause | None = None
    sameness: str = ""


def blame(error: BaseException, folder: Path | None = None, hosts: Sequence[Host] = ()) -> Failure:
    """What an error says of a start; ``folder``: where the ranks of its launch left word."""
    outcomes = _outcomes(folder)
    told = first_cause(outcomes)
    kind = _kind(error, folder, outcomes)
    known = isinstance(error, OnwardError | Interrupted)
    # A driver's message may hold the password of a URL, and this one goes into the report.
    text = mask(str(error) if known else f"{type(error).__name__}: {error}")
    plain = f"{told.kind}: {told.message}" if told else text
    return Failure(
        kind,
        (text.splitlines() or [type(error).__name__])[0],
        error.exit_code if isinstance(error, OnwardError | Interrupted) else 1,
        _failing(kind, told, folder, outcomes, hosts),
        next((outcome.stage for outcome in [told, *outcomes] if outcome and outcome.stage), ""),
        step_of(error),
        error.cause if isinstance(error, OnwardError) else None,
        _PASSING.sub("#", plain),
    )


def _outcomes(folder: Path | None) -> list[Outcome]:
    """Nothing where a shared file system cannot say."""
    if folder is None:
        return []
    try:
        return read_outcomes(folder)
    except (OSError, ValueError):
        return []


def _kind(error: BaseException, folder: Path | None, outcomes: Sequence[Outcome]) -> Kind:
    if isinstance(error, OnwardError) and error.cause:
        return _OF_CAUSE[error.cause.kind]
    for kind, name in _OF_CLASS:
        if isinstance(error, kind):
            return name
    if not isinstance(error, LaunchError):
        return "memory" if isinstance(error, MemoryError) else "crash"
    if folder is not None and (folder / watchdog.VERDICT).exists():
        return "hang"
    return "killed" if any(outcome.state == "running" for outcome in outcomes) else "lost"


def _failing(
    kind: Kind,
    told: Outcome | None,
    folder: Path | None,
    outcomes: Sequence[Outcome],
    hosts: Sequence[Host],
) -> tuple[str, ...]:
    """The hosts whose ranks failed first; none if that says nothing about a host."""
    if kind == "hang" and folder is not None:
        found = {host_of_rank(sign.rank, sign.host, hosts) for sign in watchdog.suspects(folder)}
    elif kind == "killed":
        found = set(_of(outcomes, hosts, state="running"))
    elif kind in {"crash", "memory"} and told is not None:
        found = {host_of_rank(told.rank, told.host, hosts)}
    elif kind == "lost" and outcomes:
        came = {outcome.rank for outcome in outcomes}
        world = sum(host.slots for host in hosts)
        found = {host_of_rank(rank, "", hosts) for rank in range(world) if rank not in came}
    else:
        found = set()
    names = tuple(host.name for host in hosts if host.name in found)
    return names if len(names) < len(hosts) else ()


def _of(outcomes: Iterable[Outcome], hosts: Sequence[Host], state: str) -> list[str]:
    return [host_of_rank(one.rank, one.host, hosts) for one in outcomes if one.state == state]


def host_of_rank(rank: int, calls_itself: str, hosts: Sequence[Host]) -> str:
    """The hostfile's name of a rank's host: by the host's own name, or else by the slots."""
    for host in hosts:
        if calls_itself and calls_itself == host.name:
            return host.name
    for host in hosts:
        short = host.name.partition(".")[0]
        if not short.isdecimal() and short == calls_itself.partition(".")[0]:
            return host.name
    for host in hosts:
        rank -= host.slots
        if rank < 0:
            return host.name
    return ""
