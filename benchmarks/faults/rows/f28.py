"""F28: what a run of two processes listens on, and who may read what it leaves."""

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import yaml

from benchmarks.faults import scene
from benchmarks.faults.draw import Setup
from benchmarks.faults.rows.row import Measured, Row
from benchmarks.faults.sockets import family, listeners

SECONDS = 400
SETUP = Setup(
    model="bert",
    stage=2,
    precision="fp32",
    world=2,
    extra="plain",
    batch=8,
    micro=2,
    steps=8,
    every=4,
    keep=2,
    mode="async",
    guard=False,
)


def measure(repeats: int, folder: Path) -> Measured:
    """Each repeat is a run under ONWARD_UMASK=077: the sockets on the way, the modes at its end."""
    prepared = scene.prepare(folder / "place")
    held, seen, files, notes = 0, set(), 0, []
    for number in range(repeats):
        run = folder / f"run-{number}"
        said, found = _watched(prepared, run)
        seen |= found
        open_ones = [each for each in found if not each.startswith("127.") and "[::1]" not in each]
        wide = [_mode(path) for path in _below(run) if _mode_of(path) & 0o077]
        files += len(_below(run))
        notes += [f"listens on {each}" for each in open_ones]
        notes += [f"others may read {each}" for each in wide[:5]] + ([said] if said else [])
        if not found:
            notes.append("nothing was seen to listen: the run was not watched")
        held += not (open_ones or wide or said or not found)
    figures = {"addresses listened on": len(seen), "files and folders": files}
    return Measured(held, repeats, figures, tuple(notes))


def _watched(prepared: Path, run: Path) -> tuple[str, set[str]]:
    """What went wrong with a run, and all addresses that its processes listened on."""
    values = scene.recipe(prepared, run, SETUP, scene.Now(world=2, stage=2))
    (path := run.with_suffix(".yaml")).write_text(yaml.safe_dump(values), encoding="utf-8")
    command = [sys.executable, "-m", "launcher", "run", str(path), "--processes", "2"]
    environment = scene.environment() | {"ONWARD_UMASK": "077"}
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "ONWARD_LISTEN"):
        environment.pop(name, None)
    found: set[str] = set()
    log = run.with_suffix(".log")
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        until = time.monotonic() + SECONDS
        while process.poll() is None and time.monotonic() < until:
            found |= {f"{each.address}" for each in listeners(family(process.pid))}
            time.sleep(0.02)
        if process.poll() is None:
            process.terminate()
            process.wait()
            return "it did not end", found
    return (log.read_text()[-500:] if process.returncode else ""), found


def _below(folder: Path) -> list[Path]:
    return [folder, *folder.rglob("*")]


def _mode_of(path: Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode) if not path.is_symlink() else 0


def _mode(path: Path) -> str:
    return f"{path}: {_mode_of(path):04o}"


ROW = Row(
    "F28",
    "a run of two processes on one host, with ONWARD_UMASK=077",
    "every socket listens on loopback; files are 0600 and folders 0700",
    measure,
    repeats=1,
)
