"""A hostfile (``name slots=N`` a line, as DeepSpeed has it), checked before anything starts."""

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from configs.errors import LaunchError, RecipeError
from launcher.exports import own_environment
from launcher.own_names import is_this_machine

# Starts with a letter or digit, so that no name can be taken for an option by ssh.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_LINE = re.compile(r"(?P<name>\S+)\s+slots=(?P<slots>\S+)")
_MOST_SLOTS = 1024
# A master connection that is there already may be used; one that is left behind by the question
# would hold its pipes open.
SSH = (
    *("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "-o", "StrictHostKeyChecking=yes"),
    *("-o", "ControlMaster=no"),
)


@dataclass(frozen=True, slots=True)
class Host:
    """One machine and how many processes it runs.

    Attributes:
        ids: which of its slots, that is devices; none given: the first ones.
    """

    name: str
    slots: int
    ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.ids:
            object.__setattr__(self, "ids", tuple(range(self.slots)))

    @property
    def is_here(self) -> bool:
        """Whether it is this machine."""
        return is_this_machine(self.name)

    @property
    def has_first_slots(self) -> bool:
        """Whether its slots are the first ones, none left out before the last."""
        return self.ids == tuple(range(self.slots))


def read_hostfile(path: Path) -> tuple[Host, ...]:
    """The hosts of a file, in its order.

    Raises:
        RecipeError: the file is missing, empty, or has lines that cannot be; all are listed.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        msg = f"{path}: no such hostfile; expected lines such as 'node-1 slots=8'"
        raise RecipeError(msg) from None
    except UnicodeDecodeError:
        msg = f"{path}: not a text file; expected lines such as 'node-1 slots=8'"
        raise RecipeError(msg) from None
    lines: dict[str, int] = {}
    hosts: list[Host] = []
    problems = []
    for number, line in enumerate(text.splitlines(), start=1):
        content = line.partition("#")[0].strip()
        if not content:
            continue
        try:
            hosts.append(_parse(content, lines))
        except RecipeError as error:
            problems.append(f"{path}:{number}: {error}")
            continue
        lines[hosts[-1].name] = number
    if not hosts and not problems:
        problems.append(f"{path}: names no host; expected lines such as 'node-1 slots=8'")
    if problems:
        raise RecipeError("\n".join(problems))
    return tuple(hosts)


def _parse(content: str, seen: Mapping[str, int]) -> Host:
    match = _LINE.fullmatch(content)
    if match is None:
        msg = f"'{content}': expected 'NAME slots=N', such as 'node-1 slots=8'"
        raise RecipeError(msg)
    name, slots = match["name"], match["slots"]
    if not _NAME.fullmatch(name):
        msg = f"'{name}': a host's name has letters, digits, '.', '_', '-' (user: ~/.ssh/config)"
        raise RecipeError(msg)
    if not (
        slots.isascii() and slots.isdecimal() and len(slots) < 9 and 0 < int(slots) <= _MOST_SLOTS
    ):
        msg = f"slots={slots}: expected a number from 1 to {_MOST_SLOTS}"
        raise RecipeError(msg)
    if name in seen:
        msg = f"host '{name}' is given twice, first on line {seen[name]}"
        raise RecipeError(msg)
    return Host(name, int(slots))


def one_a_host(hosts: Sequence[Host]) -> tuple[Host, ...]:
    """The same hosts with one process each."""
    return tuple(Host(host.name, 1) for host in hosts)


def format_hostfile(hosts: Sequence[Host]) -> str:
    """The hosts as DeepSpeed's own parser reads them, with as many slots as the last one needs."""
    return "".join(f"{host.name} slots={max(host.ids) + 1}\n" for host in hosts)


def is_local(hosts: Sequence[Host]) -> bool:
    """Whether all processes run on this machine."""
    return all(host.is_here for host in hosts)


def require_reachable(hosts: Sequence[Host], seconds: float = 10.0) -> None:
    """LaunchError that lists every host which ssh cannot enter without a password."""
    lines = [f"{name}: {why}" for name, why in unreachable(hosts, seconds).items()]
    if lines:
        hint = (
            "Each host must let `ssh NAME true` pass without a question; `onward doctor` with this "
            "hostfile tells more."
        )
        raise LaunchError("\n".join(["hosts that cannot be reached:", *lines, hint]))


def unreachable(hosts: Sequence[Host], seconds: float = 10.0) -> dict[str, str]:
    """Every host which ssh cannot enter without a password, and why; asked all at once."""
    others = [host.name for host in hosts if not host.is_here]
    if not others:
        return {}
    with ThreadPoolExecutor(max_workers=min(32, len(others))) as pool:
        answers = list(pool.map(lambda name: _trouble(name, seconds), others))
    return {name: why for name, why in zip(others, answers, strict=True) if why}


def _trouble(name: str, seconds: float) -> str | None:
    try:
        done = subprocess.run(
            [*SSH, name, "true"],
            env=own_environment(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except FileNotFoundError:
        return "there is no ssh on this machine"
    except subprocess.TimeoutExpired:
        return f"no answer within {seconds:.0f} s"
    said = done.stderr.strip().splitlines()
    return None if done.returncode == 0 else (said[-1] if said else f"ssh exit {done.returncode}")
