"""Trying a reader with many inputs, and counting what came of it."""

import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

from hypothesis import HealthCheck, Phase, given, seed, settings

from configs.errors import OnwardError
from tests.fuzz.targets import Target

SECONDS = 20
"""An input that takes longer hangs."""


@dataclass
class Found:
    """What came of the inputs: how many were read, refused (by the error's kind), crashed on."""

    inputs: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    crashes: list[str] = field(default_factory=list)
    slowest: float = 0.0


def attempt(target: Target, case: Any, found: Found) -> None:
    """One input; what is neither taken nor refused by a named error is raised."""
    found.inputs += 1
    began = time.monotonic()
    try:
        with _limited():
            target.read(case)
    except OnwardError as error:
        found.kinds[type(error).__name__] += 1
        if not str(error).strip():
            msg = f"{type(error).__name__} says nothing"
            raise AssertionError(msg) from error
    else:
        found.kinds["taken"] += 1
    found.slowest = max(found.slowest, time.monotonic() - began)


def try_all(target: Target, inputs: int, number: int = 1) -> Found:
    """That many inputs, drawn by ``number``; the smallest one that crashes is kept."""
    found = Found()

    @seed(number)
    @settings(
        max_examples=inputs,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=True,
    )
    @given(target.cases)
    def run(case: Any) -> None:
        attempt(target, case, found)

    try:
        run()
    except BaseExceptionGroup as group:
        found.crashes += [_told(error) for error in group.exceptions]
    except Exception as error:
        found.crashes.append(_told(error))
    return found


def _told(error: BaseException) -> str:
    notes = " ".join(getattr(error, "__notes__", []))
    trace, where = error.__traceback__, ""
    while trace is not None:
        where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__}: {error} at {where}; {notes}"[:1500]


@contextmanager
def _limited() -> Iterator[None]:
    def late(*_: object) -> NoReturn:
        msg = f"no answer within {SECONDS} s"
        raise TimeoutError(msg)

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
