"""Warm workers: ranks forked in milliseconds from a process that has imported everything.

``WarmWorkers`` is the side of the test; ``python -m tests.warm`` is the process that forks. The two
speak JSON lines over its stdin and stdout. It runs no thread, so that a fork of it is sound; it
ends, and kills its ranks, when its stdin closes.
"""

import contextlib
import ctypes
import faulthandler
import gc
import importlib
import itertools
import json
import os
import pkgutil
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NoReturn, Self

ROOT = Path(__file__).resolve().parents[1]
GRACE_SECONDS = 5.0
START_SECONDS = 180.0
_MODELS = ("bert", "roberta", "modernbert", "gpt2", "llama", "mixtral")
_IMPORTED = (
    "torch",
    "deepspeed",
    # deepspeed.initialize imports it, and it the whole of torch's compiler.
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "transformers",
    "safetensors.torch",
    "torch.utils.tensorboard",
    *(f"transformers.models.{name}.modeling_{name}" for name in _MODELS),
    "peft",
    "cloudpickle",
    "deepspeed.module_inject.auto_ep_layer",
    "launcher.recipe",
    "launcher.chain",
    "launcher.worker",
)


@dataclass(frozen=True, slots=True)
class Ended:
    """How one rank ended: by exit ``code`` or by ``signal``; the other one is None."""

    rank: int
    code: int | None
    signal: int | None
    log: Path

    @property
    def text(self) -> str:
        """What it wrote to stdout and stderr."""
        return self.log.read_text(errors="replace")


@dataclass
class Handle:
    """A group of ranks that runs."""

    pids: tuple[int, ...]
    _workers: "WarmWorkers"
    _id: int
    _folder: Path
    _ended: dict[int, Ended] = field(default_factory=dict)

    @property
    def logs(self) -> list[Path]:
        """Each rank's stdout and stderr, by rank."""
        return [self._folder / f"rank-{rank}.log" for rank in range(len(self.pids))]

    @property
    def ended(self) -> list[Ended]:
        """The ranks that have ended by now, in the order of their end."""
        self._workers.listen(0.0)
        return list(self._ended.values())

    def wait(self, timeout: float = 120.0) -> list[Ended]:
        """How each rank ended, by rank; after ``timeout`` seconds kills them: TimeoutError."""
        end = time.monotonic() + timeout
        while len(self._ended) < len(self.pids):
            if time.monotonic() > end:
                living = [rank for rank in range(len(self.pids)) if rank not in self._ended]
                self.kill()
                self.wait(30.0)
                msg = f"ranks {living} did not end within {timeout} s\n{self.tails()}"
                raise TimeoutError(msg)
            self._workers.listen(0.2)
        return [self._ended[rank] for rank in range(len(self.pids))]

    def kill(self, number: int = signal.SIGKILL, rank: int | None = None) -> None:
        """Send a signal to a rank (None: to all that live); one that has ended gets none."""
        self._workers.tell({"do": "kill", "id": self._id, "signal": int(number), "rank": rank})

    def tails(self) -> str:
        """The ends of the logs."""
        parts = [
            f"--- rank {rank}\n{log.read_text(errors='replace')[-3000:]}"
            for rank, log in enumerate(self.logs)
            if log.exists()
        ]
        return "\n".join(parts)


class WarmWorkers:
    """Starts groups of ranks that need not import anything first.

    Use it as a context manager, from one thread. ``environment`` must tell where DeepSpeed's
    operators are (TORCH_EXTENSIONS_DIR, DS_ACCELERATOR); it is added to this process's own.
    """

    def __init__(self, environment: Mapping[str, str], folder: Path | None = None) -> None:
        """Set up; logs go to new folders in ``folder`` (None: a temporary one)."""
        self._own = None if folder else tempfile.TemporaryDirectory(prefix="warm-")
        self._folder = folder or Path(self._own.name if self._own else "")
        self._environment = dict(environment)
        self._groups: dict[int, Handle] = {}
        self._numbers = itertools.count()
        self._unread = b""
        self._started: set[int] = set()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        single = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        quiet = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        own = {**os.environ, **self._environment, **single, **quiet}
        own["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path))
        own.pop("ONWARD_FAULT", None)
        with (self._folder / "zygote.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.warm"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=own,
                cwd=ROOT,
                start_new_session=True,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        process, (asked, told) = self._forking(), self._pipes()
        asked.close()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        told.close()
        if self._own:
            self._own.cleanup()

    def run(
        self,
        function: str,
        arguments: Mapping[str, Any] | None = None,
        world: int = 2,
        env: Mapping[str, str] | None = None,
        timeout: float = 120.0,
    ) -> list[Ended]:
        """Call ``package.module:function`` with the arguments on ``world`` ranks, to their end.

        When a rank dies the others get a few seconds, and are killed then.

        Raises:
            TimeoutError: they were killed after ``timeout`` seconds; it shows their logs.
        """
        return self.start(function, arguments, world, env).wait(timeout)

    def start(
        self,
        function: str,
        arguments: Mapping[str, Any] | None = None,
        world: int = 2,
        env: Mapping[str, str] | None = None,
        grace: float = GRACE_SECONDS,
        warning: float | None = None,
    ) -> Handle:
        """Begin the same without waiting for its end.

        ``grace``: seconds that the others get when a rank has died; ``warning``: seconds until they
        get SIGTERM before that, as deepspeed's launcher sends it; None: they get none.
        """
        number = next(self._numbers)
        folder = self._folder / f"run-{number}"
        folder.mkdir()
        asked = {
            "do": "start",
            "id": number,
            "function": function,
            "arguments": dict(arguments or {}),
            "world": world,
            "env": dict(env or {}),
            "folder": str(folder),
            "grace": grace,
            "warning": warning,
        }
        self._groups[number] = Handle((), self, number, folder)
        self.tell(asked)
        end = time.monotonic() + START_SECONDS
        while not self._groups[number].pids:
            if time.monotonic() > end:
                raise TimeoutError(self._why())
            self.listen(0.2)
        return self._groups[number]

    def tell(self, asked: Mapping[str, Any]) -> None:
        """Send a line to the process that forks."""
        pipe, _ = self._pipes()
        try:
            pipe.write(json.dumps(asked).encode() + b"\n")
            pipe.flush()
        except BrokenPipeError:
            raise RuntimeError(self._why()) from None

    def listen(self, seconds: float) -> None:
        """Take in what it tells, waiting at most so long for the first of it."""
        out = self._pipes()[1].fileno()
        while select.select([out], [], [], seconds)[0]:
            seconds = 0.0
            read = os.read(out, 1 << 16)
            if not read:
                raise RuntimeError(self._why())
            *lines, self._unread = (self._unread + read).split(b"\n")
            for line in lines:
                self._take(json.loads(line))

    def _take(self, told: Mapping[str, Any]) -> None:
        handle = self._groups[told["id"]]
        if "pids" in told:
            handle.pids = tuple(told["pids"])
            return
        rank = told["rank"]
        handle._ended[rank] = Ended(rank, told["code"], told["signal"], handle.logs[rank])

    def _forking(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            msg = "use it as a context manager"
            raise RuntimeError(msg)
        return self._process

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        process = self._forking()
        if process.stdin is None or process.stdout is None:
            raise RuntimeError(self._why())
        return process.stdin, process.stdout

    def _why(self) -> str:
        log = (self._folder / "zygote.log").read_text(errors="replace")
        return f"the process that forks the ranks is gone or silent:\n{log[-4000:]}"


@dataclass
class _Group:
    """Ranks that the forking process has started and not all reaped."""

    id: int
    pids: dict[int, int]
    grace: float
    warning: float | None
    deadline: float | None = None
    warned: float | None = None


class _Zygote:
    """The process that forks: one loop over its stdin and its children's ends."""

    def __init__(self, out: int) -> None:
        self._out = out
        self._groups: list[_Group] = []
        self._unread = b""
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake)

    def serve(self) -> None:
        """Until stdin closes."""
        while True:
            ready, _, _ = select.select([0, self._woken], [], [], self._patience())
            if self._woken in ready:
                os.read(self._woken, 4096)
            self._reap()
            self._end_late_ones()
            if 0 in ready and not self._read():
                break
        for group in self._groups:
            _kill(group.pids.values(), signal.SIGKILL)

    def _patience(self) -> float | None:
        both = [(group.deadline, group.warned) for group in self._groups]
        deadlines = [moment for moments in both for moment in moments if moment]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _read(self) -> bool:
        read = os.read(0, 1 << 16)
        *lines, self._unread = (self._unread + read).split(b"\n")
        for line in lines:
            asked = json.loads(line)
            if asked["do"] == "start":
                self._start(asked)
            else:
                self._kill(asked)
        return bool(read)

    def _start(self, asked: Mapping[str, Any]) -> None:
        port = str(_free_port())
        pids = {}
        for rank in range(asked["world"]):
            _require_one_thread()
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                for end in (self._out, self._woken, self._wake):
                    os.close(end)
                _become_rank(asked, rank, port)
            pids[rank] = pid
        self._tell(id=asked["id"], pids=list(pids.values()))
        self._groups.append(_Group(asked["id"], pids, asked["grace"], asked["warning"]))

    def _kill(self, asked: Mapping[str, Any]) -> None:
        for group in self._groups:
            if group.id == asked["id"]:
                chosen = asked["rank"]
                _kill([p for r, p in group.pids.items() if chosen in {None, r}], asked["signal"])

    def _reap(self) -> None:
        for group in self._groups:
            for rank, pid in list(group.pids.items()):
                found, status = os.waitpid(pid, os.WNOHANG)
                if not found:
                    continue
                del group.pids[rank]
                code = os.waitstatus_to_exitcode(status)
                if code and group.deadline is None:
                    group.deadline = time.monotonic() + group.grace
                    if group.warning is not None:
                        group.warned = time.monotonic() + group.warning
                how = (
                    {"code": code, "signal": None} if code >= 0 else {"code": None, "signal": -code}
                )
                self._tell(id=group.id, rank=rank, **how)
        self._groups = [group for group in self._groups if group.pids]

    def _end_late_ones(self) -> None:
        for group in self._groups:
            if group.warned and time.monotonic() >= group.warned:
                _kill(group.pids.values(), signal.SIGTERM)
                group.warned = None
            if group.deadline and time.monotonic() >= group.deadline:
                _kill(group.pids.values(), signal.SIGKILL)
                group.deadline = None

    def _tell(self, **told: Any) -> None:
        line = json.dumps(told).encode() + b"\n"
        while line:
            line = line[os.write(self._out, line) :]


def _kill(pids: Any, number: int) -> None:
    for pid in pids:
        # Not reaped yet, so the number is still this process's own.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _free_port() -> int:
    """Below the ports that the system gives to whoever asks for any: none takes it by chance."""
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.bind(("127.0.0.1", port))
            return port


def _require_one_thread() -> None:
    tasks = len(os.listdir("/proc/self/task"))  # noqa: PTH208 -- names alone are needed
    if threading.active_count() != 1 or tasks != 1:
        msg = f"{tasks} threads run in the process that forks; an import started one"
        raise RuntimeError(msg)


def _become_rank(asked: Mapping[str, Any], rank: int, port: str) -> NoReturn:
    """In the forked process: never returns."""
    code = 1
    try:
        _settle(asked, rank, port)
        module, _, name = asked["function"].partition(":")
        getattr(importlib.import_module(module), name)(**asked["arguments"])
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        traceback.print_exc()
        code = int(getattr(error, "exit_code", 1))
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _settle(asked: Mapping[str, Any], rank: int, port: str) -> None:
    """A session, an environment and a log of its own; it dies with the process that forked it."""
    from engine import faults

    os.setsid()
    _die_with_parent()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(
        f"{asked['folder']}/rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
    )
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, target)
    os.close(log)
    os.close(nothing)
    faulthandler.enable()
    os.environ.update(
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(asked["world"]),
            "LOCAL_WORLD_SIZE": str(asked["world"]),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            **asked["env"],
        }
    )
    faults.load()


def _die_with_parent() -> None:
    """Linux: SIGKILL when the forking process is gone, however it went."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def warm_up() -> None:
    """Import what ranks need, load DeepSpeed's operator; no thread is started."""
    for name in _IMPORTED:
        importlib.import_module(name)
    import torch
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    import engine
    from engine.backends.deepspeed_zero import build_operators

    for found in pkgutil.walk_packages(engine.__path__, "engine."):
        importlib.import_module(found.name)
    # It compiles a thousand patterns at its first call.
    get_checkpoint_conversion_mapping("bert")
    torch.set_num_threads(1)
    build_operators()
    # What is here stays in memory that the ranks share, as the collector never looks at it.
    gc.collect()
    gc.freeze()


def main() -> None:
    """Be the process that forks."""
    out = os.dup(1)
    os.dup2(2, 1)
    warm_up()
    _require_one_thread()
    _Zygote(out).serve()


if __name__ == "__main__":
    main()
