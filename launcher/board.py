"""TensorBoard on one run or several: a tree of links, and where to look first."""

import hashlib
import ipaddress
import json
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os.path import commonpath
from pathlib import Path
from typing import Any
from urllib.parse import quote

from configs.errors import DataError, ResourceError
from configs.places import cache_folder
from launcher.ports import free_port, require_free
from launcher.run_folder import LIVE_PAGE, RunFolder

LOOPBACK = "127.0.0.1"
_USUAL = 6006
_EVENTS = "tensorboard"
_SHOWN = ("pretrain", "finetune")
_SAMPLES = "scalars=3000,text=100"
"""Points of a curve that are kept; more are thinned out."""
_PINNED = (
    "1 learning/loss",
    "1 learning/held-out loss/",
    "2 forgetting/change",
    "3 speed/tokens a second",
    "4 health/gradient norm",
)
"""Beginnings of the tags whose curves stand on top of the first page."""


@dataclass(frozen=True, slots=True)
class Board:
    """A TensorBoard that can be started.

    Attributes:
        command: serves it.
        address: where it will be.
        pinned: tags of the curves that are shown first.
        pages: of the runs' stages, as files.
    """

    command: list[str]
    address: str
    pinned: tuple[str, ...]
    pages: tuple[Path, ...] = ()

    def told(self) -> list[str]:
        """Lines that say where to look."""
        cards = [{"plugin": "scalars", "tag": tag} for tag in self.pinned]
        pins = quote(json.dumps(cards, separators=(",", ":")))
        return [
            f"how is it going   {self.address}/#custom_scalars&_smoothingWeight=0",
            f"every curve       {self.address}/?smoothing=0&pinnedCards={pins}#timeseries",
            f"runs compared     {self.address}/#hparams",
            f"recipe, lineage   {self.address}/#text",
            *(f"without a server  file://{quote(str(page))}" for page in self.pages),
            "(Ctrl-C ends it)",
        ]


def open_board(folders: Sequence[Path], port: int | None, host: str = LOOPBACK) -> Board:
    """Lay out the runs' event files for TensorBoard; nothing in the runs is changed.

    Args:
        folders: of runs, or that hold runs.
        port: to listen on; None: the usual one, or a free one.
        host: address to listen at; whoever reaches it sees the runs.

    Raises:
        DataError: a folder holds no run, or no stage has event files yet.
        ResourceError: the port asked for is in use, the address is not this machine's, or the
            layout cannot be written.
    """
    runs = _named(list(dict.fromkeys(each for folder in folders for each in _runs_in(folder))))
    if not any(any(run.glob(f"*/{_EVENTS}/**/*tfevents*")) for run in runs.values()):
        where = ", ".join(str(run) for run in runs.values())
        msg = f"{where}: no stage has written TensorBoard files yet"
        raise DataError(msg)
    _require_own(host)
    chosen = require_free(port) if port else _usual_or_free()
    tree, sessions = _lay_out(runs), list(_sessions(runs.values()))
    tags = sorted({tag for session in sessions for tag in session["tags"]})
    _write_overview(tree, sessions, tags)
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        f"--logdir={tree}",
        f"--host={host}",
        f"--port={chosen}",
        f"--samples_per_plugin={_SAMPLES}",
        # A stage that goes on elsewhere may name its new file as if it were older than the last.
        "--reload_multifile=true",
        f"--window_title=Onward: {', '.join(runs)}",
    ]
    pinned = [tag for start in _PINNED for tag in tags if tag.startswith(start)]
    pages = [page for run in runs.values() for page in sorted(run.glob(f"*/{LIVE_PAGE}"))]
    shown = socket.gethostname() if _is_everything(host) else host
    address = f"[{shown}]" if ":" in shown else shown
    return Board(command, f"http://{address}:{chosen}", tuple(pinned), tuple(pages))


def _runs_in(folder: Path) -> list[Path]:
    """The folder itself if it is a run, or the runs in it; DataError if there is none."""
    if RunFolder(folder).recipe.is_file():
        return [folder.resolve()]
    found = sorted(path.parent.resolve() for path in folder.glob("*/recipe.yaml"))
    if not found:
        msg = (
            f"{folder}: not a run folder (it holds no recipe.yaml), nor are there any in it; "
            "give a recipe's 'output', or the folder that runs lie in"
        )
        raise DataError(msg)
    return found


def _named(runs: Sequence[Path]) -> dict[str, Path]:
    """Each run by its folder's name; where two have one name, by as much as tells them apart."""
    names = [run.name for run in runs]
    if len(set(names)) == len(names):
        return dict(zip(names, runs, strict=True))
    top = commonpath(runs)
    return {str(run.relative_to(top)).replace("/", "-"): run for run in runs}


def _lay_out(runs: Mapping[str, Path]) -> Path:
    """A folder of links in the cache: STAGE of a single run, RUN/STAGE of several.

    A link to what is not there yet is looked up again by TensorBoard whenever it looks for runs.
    """
    name = hashlib.sha256("\n".join(map(str, runs.values())).encode()).hexdigest()[:16]
    tree = cache_folder() / "board" / name
    try:
        for run_name, run in runs.items():
            place = tree if len(runs) == 1 else tree / run_name
            place.mkdir(parents=True, exist_ok=True)
            for stage in _stages(run):
                link = place / stage
                link.unlink(missing_ok=True)
                link.symlink_to(run / stage / _EVENTS)
    except OSError as error:
        raise _refused(tree, error) from error
    return tree


def _stages(run: Path) -> list[str]:
    """Those that write event files, in the recipe's order, and whatever others have some."""
    import yaml

    try:
        told = yaml.safe_load(RunFolder(run).recipe.read_text(encoding="utf-8"))
        stages = {name: stage.get("kind") for name, stage in told["stages"].items()}
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        msg = f"{RunFolder(run).recipe}: not a recipe that a run was made with ({error})"
        raise DataError(msg) from None
    there = (path.parent.name for path in sorted(run.glob(f"*/{_EVENTS}")))
    return list(dict.fromkeys([*(n for n, kind in stages.items() if kind in _SHOWN), *there]))


def _sessions(runs: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """What the stages have told TensorBoard of themselves: tags and settings."""
    for run in runs:
        for path in sorted(run.glob(f"*/{_EVENTS}/**/board.json")):
            try:
                told = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if isinstance(told, dict) and told.keys() >= {"tags", "settings"}:
                yield told


def _write_overview(tree: Path, sessions: Sequence[Mapping[str, Any]], tags: list[str]) -> None:
    """What all stages together have: settings, results, charts."""
    from engine.board.overview import write_overview

    settings = [session["settings"] for session in sessions if session["settings"]]
    try:
        # A name before all others: TensorBoard takes the order of the charts from the first.
        write_overview(tree / "(all)", settings, tags)
    except OSError as error:
        raise _refused(tree, error) from error


def _refused(tree: Path, error: OSError) -> ResourceError:
    return ResourceError(
        f"{tree}: cannot be written ({error.strerror or error}); make room, or let ONWARD_CACHE "
        "name a folder that may be written to"
    )


def open_to(host: str) -> str:
    """Who can see what is served at an address; empty if it is this machine alone."""
    if host == "localhost" or _is_loopback(host):
        return ""
    return (
        f"--host {host}: everyone who reaches this machine there sees the runs, without a "
        "password; `ssh -L` to the usual address shows them to you alone"
    )


def _is_everything(host: str) -> bool:
    """Whether it stands for all addresses of this machine, which no browser can be sent to."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _require_own(host: str) -> None:
    """ResourceError if the address is none of this machine's."""
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.bind(place)
    except OSError as error:
        msg = f"--host {host}: not an address of this machine ({error.strerror or error})"
        raise ResourceError(msg) from None


def _usual_or_free() -> int:
    try:
        return require_free(_USUAL)
    except ResourceError:
        return free_port()
