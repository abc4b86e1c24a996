"""A run of the campaign and the run that nothing hit, side by side."""

import hashlib
import json
import shutil
import threading
import traceback
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.faults import judge, scene
from benchmarks.faults.draw import Drawn, draw
from benchmarks.faults.supervise import WARNING_SECONDS, Played, Supervisor, facts
from tests.warm import WarmWorkers

TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}
"""Relative, of each step's loss, where another number of ranks or ZeRO stage rounds otherwise."""


class Campaign:
    """Plays runs in ``place``; controls are kept there for the next sitting.

    Attributes:
        warning: as the supervisor's.
    """

    def __init__(self, place: Path, seed: int, warning: float = WARNING_SECONDS) -> None:
        self.warning = warning
        self._place = place
        self._seed = seed
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        place.mkdir(parents=True, exist_ok=True)
        self.prepared = scene.prepare(place)
        self.code = code_digest()

    def run(self, number: int, workers: WarmWorkers) -> dict[str, Any]:
        """Play run ``number``: everything seen of it, JSON-able; ``passed`` tells the verdict."""
        return self.play(draw(self._seed, number), workers)

    def play(self, drawn: Drawn, workers: WarmWorkers) -> dict[str, Any]:
        """Play a run that has been drawn."""
        began = perf_counter()
        told: dict[str, Any] = {"run": drawn.number, "seed": self._seed, "code": self.code}
        told["passed"] = False
        told["relaxed"] = drawn.changes_sums
        told |= drawn_facts(drawn)
        name = f"run-{self._seed}-{drawn.number}"
        try:
            control = self.control(drawn, workers)
            place = self._place / "runs"
            supervisor = Supervisor(workers, self.prepared, place, self.warning)
            played = supervisor.play(drawn, name)
            told |= self._judged(drawn, played, control)
        except Exception:
            told["error"] = traceback.format_exc()[-2000:]
        told["seconds"] = round(perf_counter() - began, 1)
        if told["passed"]:
            shutil.rmtree(self._place / "runs" / name, ignore_errors=True)
        return told

    def control(self, drawn: Drawn, workers: WarmWorkers) -> judge.Result:
        """What the same stage ends with if nothing hits it."""
        plain = replace(drawn, faults=())
        text = json.dumps({"code": self.code} | drawn_facts(plain), sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        path = self._place / "controls" / f"{name}.json"
        with self._lock:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            if not path.exists():
                supervisor = Supervisor(workers, self.prepared, self._place / "controls")
                played = supervisor.play(plain, name)
                if not played.finished:
                    msg = f"the control {played.folder} did not finish: {played.attempts[-1].said}"
                    raise RuntimeError(msg)
                records = [Path(attempt.records) for attempt in played.attempts]
                found = judge.result_of(played.stage_folder, records)
                if not plain.standing:
                    judge.require_in_order(played.folder, scene.STAGE, found)
                path.write_text(json.dumps(found.to_json()), encoding="utf-8")
                shutil.rmtree(played.folder)
            return judge.Result.from_json(json.loads(path.read_bytes()))

    def _judged(self, drawn: Drawn, played: Played, control: judge.Result) -> dict[str, Any]:
        attempts = [facts(attempt) for attempt in played.attempts]
        told: dict[str, Any] = {
            "attempts": attempts,
            "finished": played.finished,
            "asked_person": played.asked_person,
            "orphans": sum(attempt.orphans for attempt in played.attempts),
            "steps_taken": sum(attempt.steps for attempt in played.attempts),
            "silent": silent_corruptions(played),
        }
        if not played.finished:
            return told
        records = [Path(attempt.records) for attempt in played.attempts]
        found = judge.result_of(played.stage_folder, records)
        setup = drawn.setup
        told |= judge.compare(found, control, setup.steps)
        told["passed"] = _passes(drawn, told)
        return told


def code_digest() -> str:
    """Of the product's own sources: another code's control is another."""
    digest = hashlib.sha256()
    for package in ("configs", "data_pipeline", "engine", "launcher"):
        for path in sorted((scene.ROOT / package).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def drawn_facts(drawn: Drawn) -> dict[str, Any]:
    """What is run and what hits it, JSON-able."""
    return {
        "setup": asdict(drawn.setup),
        "faults": [asdict(fault) for fault in drawn.faults],
        "standing": drawn.standing,
    }


def silent_corruptions(played: Played) -> int:
    """How often training went on from a checkpoint that had been damaged."""
    found = 0
    for before, after in zip(played.attempts, played.attempts[1:], strict=False):
        if before.spoilt and after.started_at:
            found += after.started_at[0] == before.spoilt["step"]
    return found


def _passes(drawn: Drawn, told: dict[str, Any]) -> bool:
    exact = told["ids_exact"] and not told["rows_twice"] and not told["rows_missing"]
    clean = not told["silent"] and not told["orphans"]
    if drawn.changes_sums:
        difference = told["loss_difference"]
        close = difference is not None and difference <= TOLERANCE[drawn.setup.precision]
        return bool(exact and clean and close)
    same = told["digest_equal"] and told["export_equal"] and told["losses_equal"]
    return bool(exact and clean and same)
