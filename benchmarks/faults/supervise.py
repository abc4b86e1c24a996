"""One run from its start to its end: attempts, what hits them, and what is seen of each."""

import json
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.faults import damage, judge, scene
from benchmarks.faults.draw import Drawn, Fault
from configs.errors import CheckpointError
from launcher.outcome import explain, read_outcomes
from launcher.run_folder import RunFolder
from tests.warm import Ended, Handle, WarmWorkers

ATTEMPTS = 5
"""Starts that may follow the last fault."""
TIMEOUT_SECONDS = 120.0
# deepspeed's launcher looks once a second which process has ended, and ends the others then.
WARNING_SECONDS, GRACE_SECONDS = 1.0, 6.0


@dataclass
class Attempt:
    """One start of the ranks and what became of it.

    Attributes:
        codes: exit code of each rank, the signal's negative number if one ended it.
        struck: lines of the fault log.
        detected: seconds from the strike to the end of the last rank; None if nothing struck.
        said: what the launcher would have told: the error's kind, exit code and message.
        records: the folder of each rank's record of steps.
        spoilt: what was done to the newest checkpoint afterwards.
    """

    number: int
    world: int
    stage: int
    inject: str
    kind: str
    codes: list[int] = field(default_factory=list)
    struck: list[dict[str, Any]] = field(default_factory=list)
    detected: float | None = None
    seconds: float = 0.0
    said: dict[str, Any] = field(default_factory=dict)
    records: str = ""
    spoilt: dict[str, Any] | None = None
    hung: bool = False
    orphans: int = 0
    started_at: list[int] = field(default_factory=list)
    steps: int = 0
    last: int = 0


@dataclass
class Played:
    """A run that is over."""

    folder: Path
    attempts: list[Attempt]
    finished: bool
    asked_person: int = 0

    @property
    def stage_folder(self) -> Path:
        """Where the product left what it made."""
        return self.folder / scene.STAGE


class Supervisor:
    """Starts a run's ranks until it finishes, as a person or a queue would."""

    def __init__(
        self, workers: WarmWorkers, prepared: Path, place: Path, warning: float = WARNING_SECONDS
    ) -> None:
        """Set up; ``warning``: seconds from a rank's death to the SIGTERM that the others get."""
        self._workers = workers
        self._warning = warning
        self._prepared = prepared
        self._place = place

    def play(self, drawn: Drawn, name: str) -> Played:
        """Play a run in the folder ``name``."""
        folder = self._place / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        played = Played(folder, [], finished=False)
        now = scene.Now(drawn.setup.world, drawn.setup.stage, hang_after=drawn.hang_after)
        for number in range(len(drawn.faults) + ATTEMPTS):
            fault = drawn.faults[number] if number < len(drawn.faults) else None
            values = scene.recipe(self._prepared, folder, drawn.setup, now)
            (folder / "recipe.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
            inject = ";".join(filter(None, (drawn.standing, fault.inject if fault else "")))
            attempt = Attempt(number, now.world, now.stage, inject, fault.kind if fault else "")
            played.attempts.append(attempt)
            self._start(attempt, folder / "recipe.yaml", folder)
            played.finished = self._is_done(folder)
            if played.finished or attempt.hung:
                break
            self._between(attempt, fault, played)
            if fault:
                now.after(fault)
        return played

    def _start(self, attempt: Attempt, path: Path, folder: Path) -> None:
        records = folder / f"attempt-{attempt.number}"
        records.mkdir()
        attempt.records = str(records)
        log = records / "struck.jsonl"
        report_to = RunFolder(folder).launch(scene.STAGE)
        shutil.rmtree(report_to, ignore_errors=True)
        report_to.mkdir(parents=True)
        began = time.time()
        handle = self._workers.start(
            "benchmarks.faults.rank:run",
            {"recipe": str(path), "stage": scene.STAGE, "report_to": str(report_to)}
            | {"records": str(records)},
            attempt.world,
            {"ONWARD_FAULT": attempt.inject, "ONWARD_FAULT_LOG": str(log)},
            GRACE_SECONDS,
            self._warning,
        )
        ended = self._wait(attempt, handle)
        finished = time.time()
        attempt.seconds = finished - began
        attempt.codes = [_code(each) for each in ended]
        attempt.struck = [line for line in _lines(log) if "@loss" not in line["fault"]]
        if attempt.struck and any(attempt.codes):
            attempt.detected = finished - attempt.struck[-1]["time"]
        attempt.orphans = _living(handle.pids)
        way = judge.way_of(records)
        attempt.started_at, attempt.steps, attempt.last = way.starts, way.steps, way.last
        for source in handle.logs:
            shutil.move(source, records / source.name)
        died = [code for code in map(_code, handle.ended) if code]
        if died:
            attempt.said = _said(report_to, attempt, records, died[0])

    def _wait(self, attempt: Attempt, handle: Handle) -> list[Ended]:
        try:
            return handle.wait(TIMEOUT_SECONDS)
        except TimeoutError:
            attempt.hung = True
            return handle.ended

    def _is_done(self, folder: Path) -> bool:
        status = RunFolder(folder).status(scene.STAGE)
        return status is not None and status.state == "done"

    def _between(self, attempt: Attempt, fault: Fault | None, played: Played) -> None:
        """What a person, or bad luck, does before the next attempt."""
        root = played.stage_folder / "checkpoints"
        if attempt.said.get("exit_code") == CheckpointError.exit_code and root.exists():
            # All of them are broken: the message asks to begin anew, and so it is done.
            played.asked_person += 1
            shutil.rmtree(root)
        if fault and fault.damage:
            attempt.spoilt = damage.spoil(root, fault.damage, fault.draw)


def _code(ended: Ended) -> int:
    return -ended.signal if ended.signal else int(ended.code or 0)


def _said(report_to: Path, attempt: Attempt, records: Path, first: int) -> dict[str, Any]:
    """What the launcher makes of it; ``first``: the code of the rank that ended first."""
    outcomes = read_outcomes(report_to)
    error = explain(outcomes, attempt.world, first, records / "rank-0.log")
    return {
        "kind": type(error).__name__,
        "exit_code": error.exit_code,
        "message": str(error)[:400],
    }


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _living(sessions: tuple[int, ...]) -> int:
    """Processes that still run in the ranks' sessions."""
    found = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue
        found += int(fields[3]) in sessions and fields[0] not in "ZX"
    return found


def facts(attempt: Attempt) -> dict[str, Any]:
    """For the results: JSON-able, without what only this machine knows."""
    values = asdict(attempt)
    del values["records"]
    values["struck"] = [line["fault"] for line in attempt.struck]
    values["seconds"] = round(attempt.seconds, 2)
    values["detected"] = None if attempt.detected is None else round(attempt.detected, 2)
    return values
