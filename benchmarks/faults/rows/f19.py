"""F19: what killed processes leave: the lock of a build, shared memory, temporary files."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.faults.rows.row import Measured, Row
from launcher.run_folder import RunFolder

_ROOT = Path(__file__).resolve().parents[3]
_LIMIT = 30.0
_OLD = 120.0


def _environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(_ROOT), "DS_ACCELERATOR": "cpu", **more}


def _doctor(**more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launcher", "doctor", "--no-collectives"],
        env=_environment(**more),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _age(path: Path) -> None:
    then = time.time() - _OLD
    os.utime(path, (then, then))


def _stale_lock(folder: Path) -> str:
    """A process that is killed while it holds torch's lock; doctor and a build both name it."""
    lock = folder / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir()
    holds = f"import os, time; os.open({str(lock)!r}, os.O_CREAT | os.O_EXCL); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", holds])
    while not lock.exists():
        time.sleep(0.01)
    _age(lock)
    told = _doctor(TORCH_EXTENSIONS_DIR=str(folder)).stdout
    if str(lock) in told:
        holder.kill()
        return "a lock whose process lives was called stale"
    holder.kill()
    holder.wait()
    done = _doctor(TORCH_EXTENSIONS_DIR=str(folder))
    if done.returncode != 1 or f"rm {lock}" not in done.stdout:
        return f"doctor did not name the lock: {done.stdout[-300:]}"
    built = subprocess.run(
        [sys.executable, "-m", "launcher.jit"],
        env=_environment(TORCH_EXTENSIONS_DIR=str(folder)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if built.returncode != 7 or f"rm {lock}" not in built.stderr:
        return f"the build did not name the lock: {built.stderr[-300:]}"
    lock.unlink()
    done = _doctor(TORCH_EXTENSIONS_DIR=str(folder))
    return "" if "rm " not in done.stdout else f"named when it was gone: {done.stdout[-300:]}"


def _shared_memory(folder: Path) -> str:
    """A name of DeepSpeed's buffers that nobody has open is named; one in use is not."""
    name = f"deepspeed_allreduce_buffer_{os.getuid()}_127.0.0.1_{os.getpid()}_0"
    path = Path("/dev/shm") / name
    try:
        with path.open("w") as file:
            file.write(folder.name)
            file.flush()
            _age(path)
            if name in _doctor().stdout:
                return "shared memory in use was called left behind"
        told = _doctor().stdout
        return "" if "leftovers of killed runs" in told else f"not named: {told[-300:]}"
    finally:
        path.unlink(missing_ok=True)


def _temporary_files(folder: Path) -> str:
    """Under temporary names in a run folder, with a lock file of a dead process: taken away."""
    run = RunFolder(folder)
    (folder / "stage").mkdir()
    left = [
        folder / ".recipe.yaml.99999",
        folder / ".provenance.json.99999",
        folder / "stage" / ".status.json.99999",
        folder / ".discarded-stage-99999",
    ]
    for path in left:
        path.write_text("half of it") if "discarded" not in path.name else path.mkdir()
    (folder / ".lock").write_text("process 99999 on elsewhere since long ago\n")
    with run.lock():
        run.remove_leftovers()
    still = [path.name for path in left if path.exists()]
    return f"still there: {', '.join(still)}" if still else ""


def _after_a_probe(folder: Path) -> str:
    """Doctor leaves nothing, though it is killed in the middle: the next one is not misled."""
    process = subprocess.Popen(
        [sys.executable, "-m", "launcher", "doctor", "--no-collectives", "--run", str(folder)],
        env=_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + _LIMIT
    while process.poll() is None and not list(folder.glob("*/*.bin")) and time.monotonic() < end:
        time.sleep(0.002)
    process.kill()
    process.wait()
    if not list(folder.iterdir()):
        return "it had ended before it was killed"
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "doctor", "--no-collectives", "--run", str(folder)],
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    left = [path.name for path in folder.iterdir()]
    return "" if done.returncode == 0 and not left else f"{left}: {done.stdout[-300:]}"


def _cases() -> Iterator[tuple[str, Callable[[Path], str]]]:
    yield "stale lock", _stale_lock
    yield "shared memory", _shared_memory
    yield "temporary files", _temporary_files
    yield "killed doctor", _after_a_probe


def measure(repeats: int, folder: Path) -> Measured:
    """Each leftover so many times."""
    troubles: list[str] = []
    longest, tried = 0.0, 0
    for number in range(repeats):
        for name, attempt in _cases():
            place = folder / f"{name.replace(' ', '-')}-{number}"
            place.mkdir()
            began = time.monotonic()
            trouble = attempt(place)
            longest = max(longest, time.monotonic() - began)
            tried += 1
            if trouble:
                troubles.append(f"{name}: {trouble}")
    figures = {"kinds": len(list(_cases())), "longest, s": round(longest, 2)}
    return Measured(tried - len(troubles), tried, figures, tuple(troubles))


ROW = Row(
    id="F19",
    fault="stale JIT lock, stale /dev/shm names, stale temporary files after a kill",
    promise="cleaned or named, at once; what lives is left alone",
    measure=measure,
    repeats=2,
)
