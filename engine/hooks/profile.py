"""The profile: where the time of a few steps goes, as tables and as a trace of every operator."""

import gzip
import json
import logging
import shutil
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from engine.checkpoint.disk import DiskError, disk_errors
from engine.hooks.profile_tables import PHASE, Phase, markdown, tables
from engine.profiling import ProfileConfig
from engine.protocols import Backend, Hook, Progress, StepRecord

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)

Tell = Callable[[str, int, str], None]
"""(kind, step, Markdown): who else gets the tables."""


class ProfileHook(Hook):
    """Writes ``profile.json``, ``profile.md`` and a Chrome trace of each rank that is looked at.

    Once in a start of the stage; what an earlier one wrote is replaced when the new files are
    complete. It is an observer of the loop besides, and changes no number of the run; the steps
    that it looks at take longer. A disk that refuses costs the profile and not the run.

    Stands last among the hooks: their time belongs to the step, its own does not.
    """

    name = "profile"

    def __init__(self, config: ProfileConfig, folder: Path, steps: int, tell: Tell) -> None:
        """Set up; ``folder``: for the files; ``steps``: the run's last."""
        self._config = config
        self._folder = folder
        self._steps = steps
        self._tell = tell
        self._range = range(0)
        self._looking: _Look | None = None
        self._is_done = False

    def on_start(self, backend: Backend, progress: Progress) -> None:
        """Choose the steps, of those that are left."""
        is_looked_at = backend.rank == 0 or self._config.ranks == "all"
        if self._is_done or not is_looked_at:
            return
        left = self._steps - progress.step
        count = min(self._config.steps, left)
        first = progress.step + min(self._config.first - 1, left - count)
        self._range = range(first, first + count)
        self._begin_if_due(backend, progress)

    def enter(self, phase: str, step: int) -> None:
        """The main thread begins a phase."""
        del step
        if self._looking:
            self._looking.enter(None if phase == self.name else phase)

    def after_step(self, backend: Backend, progress: Progress, record: StepRecord) -> None:
        """Begin before the first of the steps, write after the last."""
        del record
        if self._looking and progress.step == self._range.stop:
            look, self._looking, self._is_done = self._looking, None, True
            look.end()
            self._write(look, backend, progress.step)
        self._begin_if_due(backend, progress)

    def on_end(self, backend: Backend, progress: Progress) -> None:
        """A run that ended before the last of the steps leaves no profile."""
        del backend, progress
        if self._looking:
            self._looking.end()
            self._looking = None

    def _begin_if_due(self, backend: Backend, progress: Progress) -> None:
        if self._range and progress.step == self._range.start and not self._is_done:
            self._looking = _Look(backend.device)

    def _write(self, look: "_Look", backend: Backend, step: int) -> None:
        trace = self._folder / f"rank-{backend.rank}.trace.json.gz"
        try:
            with disk_errors(self._folder):
                self._folder.mkdir(parents=True, exist_ok=True)
                _put(trace, look.write_trace)
                if backend.rank == 0:
                    self._write_tables(look, backend, trace.name, step)
        except DiskError as error:
            _log.warning("no profile: %s", error)

    def _write_tables(self, look: "_Look", backend: Backend, trace: str, step: int) -> None:
        first, last = self._range.start + 1, self._range.stop
        where = {
            "steps": {"first": first, "last": last},
            "rank": backend.rank,
            "world": backend.world,
            "device": _device_name(backend.device),
            "trace": trace,
        }
        on_gpu = backend.device.type == "cuda"
        found = where | tables(look.profiler, look.phases(), len(self._range), on_gpu=on_gpu)
        text = markdown(found)
        content = json.dumps(found, indent=1) + "\n"
        _put(self._folder / "profile.json", lambda path: _write_text(path, content))
        _put(self._folder / "profile.md", lambda path: _write_text(path, text))
        self._tell(self.name, step, text)
        _log.info("profile of steps %s to %s: %s", first, last, self._folder)


@dataclass
class _Look:
    """The profiler at work, and a clock of the phases; it begins when it is made."""

    device: "torch.device"
    profiler: Any = field(init=False)
    _phase: str | None = field(default=None, init=False)
    _began: float = field(default=0.0, init=False)
    _mark: Any = field(default=None, init=False)
    _seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float), init=False)
    _calls: dict[str, int] = field(default_factory=lambda: defaultdict(int), init=False)
    _events: list[tuple[str | None, Any]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        from torch.profiler import ProfilerActivity, profile, record_function

        activities = [ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self.profiler = profile(activities=activities, profile_memory=True)
        self.profiler.start()
        # The first mark of a profile takes long, and belongs to no phase.
        with record_function("profile begins"):
            pass

    def enter(self, phase: str | None) -> None:
        """End the phase that was, begin the next; None: what follows is no part of a step."""
        from torch.profiler import record_function

        if self._phase is not None:
            self._seconds[self._phase] += perf_counter() - self._began
            self._mark.__exit__(None, None, None)
        self._note_on_device(phase)
        self._phase = phase
        if phase is not None:
            self._calls[phase] += 1
            self._mark = record_function(f"{PHASE}{phase}")
            self._mark.__enter__()
            self._began = perf_counter()

    def end(self) -> None:
        """Stop the profiler; on a GPU this waits for it."""
        self.enter(None)
        if self.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.device)
        self.profiler.stop()

    def phases(self) -> list[Phase]:
        """In the order in which they came first; of all the steps together."""
        there: dict[str | None, float] = defaultdict(float)
        for (phase, begins), (_, ends) in pairwise(self._events):
            there[phase] += begins.elapsed_time(ends) / 1000
        return [
            Phase(name, self._calls[name], seconds, there[name] if self._events else None)
            for name, seconds in self._seconds.items()
        ]

    def write_trace(self, path: Path) -> None:
        """As Chrome and Perfetto read it, gzipped."""
        plain = path.with_suffix(".json")
        try:
            self.profiler.export_chrome_trace(str(plain))
            with plain.open("rb") as source, gzip.open(path, "wb", compresslevel=4) as packed:
                shutil.copyfileobj(source, packed)
        finally:
            plain.unlink(missing_ok=True)

    def _note_on_device(self, phase: str | None) -> None:
        """An event in the GPU's queue: it passes when the work before it is done."""
        if self.device.type != "cuda":
            return
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._events.append((phase, event))


def _put(path: Path, write: Callable[[Path], None]) -> None:
    """A file under its name when it is complete, and not before."""
    aside = path.with_name(f".tmp-{path.name}")
    try:
        write(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _device_name(device: "torch.device") -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
