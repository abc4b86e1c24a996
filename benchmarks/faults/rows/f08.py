"""F08: a slow or failing store: what is read arrives whole, and what is written stays behind."""

import errno
import hashlib
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.faults.rows.row import Measured, Row
from configs.errors import DataError
from data_pipeline.persistence import DEADLINE_VARIABLE, TIMEOUT_VARIABLE
from data_pipeline.storage import fetch
from engine.checkpoint import commit, disk, open_checkpoint
from engine.checkpoint.behind import Behind
from engine.checkpoint.save import Alone, save
from engine.protocols import Progress
from tests.data_pipeline.web import Web, serving
from tests.engine.checkpoint.fakes import FakeBackend

SIZE = 300_000
FAULTS: tuple[str | int, ...] = (500, 503, 429, "drop", "short", "garbage", "hang")
SLOW_SECONDS = 1.5


def measure(repeats: int, folder: Path) -> Measured:
    """Each repeat tries every kind once, with faults drawn by chance."""
    tries: dict[str, Callable[[Path, random.Random, dict[str, float]], str]] = {
        "a store with moments of trouble": _fetched,
        "a store that never answers": _given_up,
        "half an object": _half,
        "EIO while saving": _eio,
        "EIO that stays": _eio_stays,
        "a slow disk": _slow,
    }
    held, notes = 0, []
    figures: dict[str, float] = {"retries": 0, "corrupt": 0, "longest stall of a step, s": 0.0}
    with _quick():
        for number in range(repeats):
            for name, attempt in tries.items():
                (own := folder / f"{number}-{name.replace(' ', '-')}").mkdir(parents=True)
                if problem := attempt(own, random.Random(number), figures):
                    notes.append(f"{name}: {problem}")
                else:
                    held += 1
    shown = {name: round(value, 3) for name, value in figures.items()}
    return Measured(held, repeats * len(tries), shown, tuple(notes))


@contextmanager
def _quick() -> Iterator[None]:
    """A store is given up after seconds, and tried again soon."""
    limits = {DEADLINE_VARIABLE: "20", TIMEOUT_VARIABLE: "1"}
    with mock.patch.dict(os.environ, limits), mock.patch.object(disk, "PAUSES", (0.05, 0.1, 0.2)):
        yield


@contextmanager
def _store(folder: Path, seed: int) -> Iterator[tuple[Web, bytes]]:
    content = random.Random(seed).randbytes(SIZE)
    (served := folder / "served").mkdir()
    (served / "object").write_bytes(content)
    with serving(served) as web:
        yield web, content


def _fetch(web: Web, folder: Path, content: bytes) -> Path:
    digest = hashlib.sha256(content).hexdigest()
    fetch(f"{web.url}/object", target := folder / "fetched", len(content), digest)
    return target


def _fetched(folder: Path, rng: random.Random, figures: dict[str, float]) -> str:
    with _store(folder, rng.randrange(1 << 30)) as (web, content):
        drawn = rng.sample(FAULTS, 3)
        web.faults["/object"].extend(drawn)
        found = _fetch(web, folder, content)
        figures["retries"] += web.requests["/object"] - 1
        if found.read_bytes() != content:
            figures["corrupt"] += 1
            return f"other bytes after {drawn}"
        return "" if web.requests["/object"] > len(drawn) else "the faults were not met"


def _given_up(folder: Path, rng: random.Random, figures: dict[str, float]) -> str:
    del figures
    with (
        mock.patch.dict(os.environ, {DEADLINE_VARIABLE: "3"}),
        _store(folder, rng.randrange(1 << 30)) as (web, content),
    ):
        web.always["/object"] = rng.choice(("hang", 503))
        began = time.monotonic()
        try:
            _fetch(web, folder, content)
        except DataError as error:
            left = [each.name for each in folder.iterdir() if each.name != "served"]
            if left or "given up" not in str(error):
                return f"left {left}: {error}"
            return "" if time.monotonic() - began < 20 else "long after its deadline"
        return "it was taken"


def _half(folder: Path, rng: random.Random, figures: dict[str, float]) -> str:
    """An upload that was broken off: the object is whole as far as the store knows."""
    with _store(folder, rng.randrange(1 << 30)) as (web, content):
        (web.folder / "object").write_bytes(content[: rng.randrange(SIZE)])
        try:
            _fetch(web, folder, content)
        except DataError:
            return "something was left" if (folder / "fetched").exists() else ""
        figures["corrupt"] += 1
        return "half an object was taken"


def _save(folder: Path) -> Path:
    return save(folder, Progress(4), FakeBackend(), {}, "recipe", Alone())


@contextmanager
def _writes(before: Callable[[int], None]) -> Iterator[list[float]]:
    """Each block that is written calls ``before`` with its number; their times are kept."""
    write, times = commit._write_all, []

    def write_all(file: Any, rest: memoryview) -> None:
        times.append(time.monotonic())
        before(len(times))
        write(file, rest)

    with mock.patch.object(commit, "_write_all", write_all):
        yield times


def _broken(*numbers: int) -> Callable[[int], None]:
    def before(number: int) -> None:
        if number in numbers or not numbers:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    return before


def _eio(folder: Path, rng: random.Random, figures: dict[str, float]) -> str:
    strikes = rng.sample(range(1, 8), 2)
    with _writes(_broken(*strikes)):
        path = _save(folder)
    figures["retries"] += len(strikes)
    open_checkpoint(path)
    return ""


def _eio_stays(folder: Path, rng: random.Random, figures: dict[str, float]) -> str:
    del rng
    good = save(folder, Progress(2), FakeBackend(), {}, "recipe", Alone())
    try:
        with _writes(_broken()):
            _save(folder)
    except disk.DiskError as error:
        open_checkpoint(good)
        figures["retries"] += len(disk.PAUSES)
        names = {each.name for each in folder.iterdir() if not each.name.startswith(".")}
        return "" if "Input/output error" in str(error) and "step-4" not in names else str(names)
    return "saved on a disk that takes nothing"


def _slow(folder: Path, rng: random.Random, figures: dict[str, float]) -> str:
    """Steps go on while a writer that was handed a copy stalls."""
    del rng
    with _writes(lambda number: time.sleep(SLOW_SECONDS if number == 2 else 0.01)):
        saving = Behind(lambda: _save(folder))
        longest, steps = 0.0, 0
        while not saving.is_done:
            began = time.monotonic()
            time.sleep(0.01)
            longest, steps = max(longest, time.monotonic() - began - 0.01), steps + 1
        open_checkpoint(saving.result())
    figures["longest stall of a step, s"] = max(figures["longest stall of a step, s"], longest)
    return "" if longest < SLOW_SECONDS / 2 and steps > 10 else f"a step waited {longest:.2f} s"


ROW = Row(
    "F08",
    "a store that answers 500, 503 or 429, drops, cuts or garbles, hangs, holds half an object; "
    "EIO and stalls of the disk while saving",
    "tried again until the deadline; nothing corrupt is taken or left; steps go on behind a save",
    measure,
)
