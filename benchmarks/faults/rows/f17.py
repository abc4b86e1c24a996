"""F17: a hostfile that is wrong in one of fifteen ways, and hosts that do not answer."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.rows.row import Measured, Row

_ROOT = Path(__file__).resolve().parents[3]
_LIMIT = 10.0
_FOUR = "a slots=1\nb slots=1\nc slots=1\nd slots=1\n"
_SSH = """#!{python}
import sys
name = sys.argv[-2]
if name == "stale":
    sys.stderr.write("ssh: connect to host stale port 22: No route to host\\n")
else:
    sys.stderr.write("ssh: Could not resolve hostname " + name + ": Name or service not known\\n")
sys.exit(255)
"""


@dataclass(frozen=True, slots=True)
class _Case:
    """One hostfile; ``expected``: what each line of the answer must hold, none: it is good."""

    name: str
    data: bytes | None
    expected: tuple[str, ...] = ()
    code: int = 1


def _cases(here: str) -> Iterator[_Case]:
    own = here.encode()
    many = max(2, len(os.sched_getaffinity(0)) + 1)
    yield _Case("unknown host", b"localhost slots=1\nno-such slots=1\n", ("no-such", "resolved"))
    yield _Case("duplicate", b"a slots=1\na slots=2\n", (":2", "given twice, first on line 1"))
    yield _Case("slots=0", b"a slots=1\nb slots=0\n", (":2", "slots=0: expected a number"))
    yield _Case("slots=-1", b"a slots=-1\n", (":1", "slots=-1: expected a number"))
    yield _Case("slots=abc", b"\n\na slots=abc\n", (":3", "slots=abc: expected a number"))
    yield _Case("comment", b"# all\n" + own + b" slots=1 # one\n", code=0)
    yield _Case("BOM", b"\xef\xbb\xbf" + own + b" slots=1\n", code=0)
    yield _Case("CRLF", own + b" slots=1\r\n", code=0)
    yield _Case("missing", None, ("no such hostfile",))
    yield _Case("empty", b"", ("names no host",))
    yield _Case("more slots than devices", own + b" slots=%d\n" % many, (f"{many} slots, but",), 0)
    yield _Case(
        "stale host", b"localhost slots=1\nstale slots=1\n", ("stale", "no way leads there")
    )
    yield _Case("NUL bytes", b"a\x00b slots=1\n", (":1", "a host's name has"))
    yield _Case("not UTF-8", b"\xff\xfea slots=1\n", ("not a text file",))
    yield _Case("several at once", b"a\nb slots=x\nc:22 slots=1\n", (":1", ":2", ":3"))


def _examine(
    hostfile: Path, environment: Mapping[str, str]
) -> tuple[subprocess.CompletedProcess[str], float]:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "doctor", "--no-collectives", "--hostfile", hostfile],
        env=dict(environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done, time.monotonic() - began


def _trouble(case: _Case, folder: Path, environment: Mapping[str, str]) -> tuple[str, float]:
    """Why the promise was not kept, or nothing; and the seconds it took."""
    hostfile = folder / "hosts"
    hostfile.unlink(missing_ok=True)
    if case.data is not None:
        hostfile.write_bytes(case.data)
    done, seconds = _examine(hostfile, environment)
    if done.returncode != case.code:
        return (
            f"{case.name}: exit code {done.returncode}: {done.stdout[-300:]}{done.stderr[-300:]}",
            seconds,
        )
    for words in case.expected:
        if words not in done.stdout:
            return f"{case.name}: '{words}' is not in {done.stdout!r}", seconds
    return f"{case.name}: {seconds:.1f} s" if seconds > _LIMIT else "", seconds


def measure(repeats: int, folder: Path) -> Measured:
    """Each case so many times; four hosts that do not answer at once are timed beside."""
    programs = folder / "bin"
    programs.mkdir()
    (programs / "ssh").write_text(_SSH.format(python=sys.executable))
    (programs / "ssh").chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(_ROOT),
        "DS_ACCELERATOR": "cpu",
    }
    troubles, longest = [], 0.0
    cases = list(_cases(socket.gethostname()))
    for _ in range(repeats):
        for case in cases:
            trouble, seconds = _trouble(case, folder, environment)
            longest = max(longest, seconds)
            troubles += [trouble] if trouble else []
    # As hosts that are off do: they let ssh wait until it gives up by itself. What it would call
    # them (-G) it says at once.
    (programs / "ssh").write_text('#!/bin/sh\n[ "$1" = -G ] && exit 1\nexec sleep 60\n')
    (folder / "hosts").write_text(_FOUR)
    done, silent = _examine(folder / "hosts", environment)
    if silent > _LIMIT or done.stdout.count("no answer within") != 4:
        troubles.append(f"four silent hosts: {silent:.1f} s: {done.stdout[-300:]}")
    tried = repeats * len(cases) + 1
    figures = {"cases": len(cases), "longest, s": round(longest, 2),
               "four silent hosts, s": round(silent, 2)}  # fmt: skip
    return Measured(tried - len(troubles), tried, figures, tuple(troubles))


ROW = Row(
    id="F17",
    fault="hostfile: unknown host, duplicate, slots=0/-1/abc, comment, BOM, CRLF, missing, empty, "
    "more slots than devices, stale host, NUL bytes, not UTF-8",
    promise="all told before any process starts, every bad line with its number; <= 10 s",
    measure=measure,
    repeats=1,
)
