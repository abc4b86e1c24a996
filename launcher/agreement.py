"""What the ranks of a launch must have in common: versions, code, and what lies at a path."""

import hashlib
import importlib.metadata
import json
import platform
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from configs.errors import LaunchError
from configs.stage import STAGE_PREFIX
from launcher.hosts import Host
from launcher.run_folder import write_atomically

if TYPE_CHECKING:
    from configs.stage import StageConfig
    from engine.rendezvous import Card, Meeting

PLACES = "places.json"
"""In the launch folder: the host of each rank, as the hostfile names it."""
TO_BE_SEEN = 15.0
"""Seconds in which a shared file system shows on one host what another has written."""
TOGETHER = 3.0
"""Seconds between processes that a launcher starts together on hosts alike."""
_NO_PATH = re.compile(rf"://|[\x00-\x1f]|^{STAGE_PREFIX}")
_PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers")
_CODE = ("launcher", "downstream", "engine", "data_pipeline", "configs")


def facts(paths: Sequence[Path] = ()) -> dict[str, str]:
    """What this process is made of, and which of these paths it does not see."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {
        "Python": python,
        **{name: _version(name) for name in _PACKAGES},
        "Onward's code": code_digest(),
        "missing": json.dumps([str(path) for path in paths if not is_there(path)]),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@cache
def code_digest() -> str:
    """The first digits of a digest of this program's own files."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for package in _CODE:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def meeting(folder: Path | None, paths: Sequence[Path] = ()) -> "Meeting":
    """What a rank brings to the others; ``folder``: of the launch, None if started by hand."""
    from engine.rendezvous import Meeting

    return Meeting(facts(paths), compare, absentees(folder))


@dataclass(frozen=True, slots=True)
class Cards:
    """What hosts without collectives leave in the launch folder for each other.

    None waits for another much longer than hosts started together are apart: they may come late
    to shared work, and may never come.

    Attributes:
        launch_id: an earlier launch's cards, left in the same folder, are not looked at.
    """

    folder: Path
    launch_id: str

    def leave(self, index: int, paths: Sequence[Path] = ()) -> None:
        """This host's."""
        card = {"host": socket.gethostname(), **facts(paths)}
        write_atomically(self.folder / self._name(str(index)), json.dumps(card) + "\n")

    def compare(self, expected: int = 0, seconds: float = TOGETHER) -> None:
        """As ``compare`` does, all that have been left so far, or ``expected`` in so many seconds.

        If all see each other at the start, all end at once, and none waits for one that has left.
        """
        end = time.monotonic() + seconds
        while len(paths := sorted(self.folder.glob(self._name("*")))) < expected:
            if time.monotonic() > end:
                break
            time.sleep(0.1)
        compare([json.loads(path.read_bytes()) for path in paths])

    def _name(self, index: str) -> str:
        return f"card-{self.launch_id}-{index}.json"

    @staticmethod
    def forget(folder: Path) -> None:
        """Take away what earlier launches have left."""
        for path in folder.glob("card-*.json"):
            path.unlink(missing_ok=True)


def compare(cards: Sequence["Card"]) -> None:
    """LaunchError that names the hosts whose software differs, or that do not see a path."""
    problems = [*_different(cards), *_unseen(cards)]
    if problems:
        raise LaunchError("\n".join(["the hosts do not agree:", *problems]))


def _different(cards: Sequence["Card"]) -> Iterator[str]:
    for name in ("Python", *_PACKAGES, "Onward's code"):
        hosts: dict[str, dict[str, None]] = {}
        for card in cards:
            hosts.setdefault(card[name], {})[card["host"]] = None
        if len(hosts) > 1:
            told = "; ".join(f"{value} on {', '.join(found)}" for value, found in hosts.items())
            yield f"{name}: {told}. Install the same everywhere"


def _unseen(cards: Sequence["Card"]) -> Iterator[str]:
    missing = [(card["host"], set(json.loads(card["missing"]))) for card in cards]
    # What is nowhere is the stage's own to tell of.
    nowhere = set.intersection(*(found for _, found in missing))
    for host, found in dict(missing).items():
        for path in sorted(found - nowhere):
            yield f"{path}: not there on {host}; it must be on a file system that all hosts share"


def write_places(folder: Path, hosts: Sequence[Host]) -> None:
    """Leave word for the ranks of which host each is on."""
    names = [host.name for host in hosts for _ in range(host.slots)]
    write_atomically(folder / PLACES, json.dumps(names) + "\n")


def absentees(folder: Path | None) -> Callable[[Sequence[int]], str]:
    """Names ranks by their hosts, and tells those that never began from those that did."""

    def name(missing: Sequence[int]) -> str:
        places = _places(folder)
        began = {path.name for path in folder.glob("rank-*.json")} if folder else set()
        words = []
        for rank in missing:
            where = f" on {places[rank]}" if rank < len(places) else ""
            hint = " (it began there)" if f"rank-{rank}.json" in began else ""
            words.append(f"rank {rank}{where}{hint}")
        return ", ".join(words)

    return name


def _places(folder: Path | None) -> list[str]:
    try:
        return list(json.loads((folder / PLACES).read_bytes())) if folder else []
    except (OSError, ValueError):
        return []


def require_seen(folder: Path, seconds: float = TO_BE_SEEN) -> None:
    """LaunchError if this host does not see what the launcher has written into its folder."""
    end = time.monotonic() + seconds
    while not (folder / PLACES).exists():
        if time.monotonic() > end:
            msg = (
                f"{platform.node()}: there is no {folder / PLACES} here, which the launcher wrote: "
                "the run folder must be on a file system that all hosts share, at the same path"
            )
            raise LaunchError(msg)
        time.sleep(0.2)


def local_paths(stages: Iterable["StageConfig"]) -> list[Path]:
    """What may be paths of this machine in stages; those in the run folder are named by stage."""
    return sorted({path for stage in stages for path in _paths(stage.model_dump(mode="json"))})


def _paths(value: object) -> Iterator[Path]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _paths(inner)
    elif isinstance(value, str) and "/" in value and not _NO_PATH.search(value):
        yield Path(value).absolute()


def is_there(path: Path) -> bool:
    """Whether this host has something there; what can be no path is nowhere."""
    try:
        return path.exists()
    except OSError:
        return False
