"""One table of many benchmarks: what was measured where, beside what was wanted."""

import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ("torch", "deepspeed", "transformers", "accelerate", "numpy", "datasets")


@dataclass(frozen=True, slots=True)
class Machine:
    """Where and on which sources it was measured; it names no host and no folder."""

    processor: str
    cores: int
    memory_gb: int
    load: str
    python: str
    packages: dict[str, str]
    commit: str
    date: str


@dataclass(frozen=True, slots=True)
class Row:
    """One benchmark.

    Attributes:
        id: of the targets' table.
        what: in words.
        result: what its ``measure`` returned; None if it failed.
        error: the last line of what it said when it failed.
        seconds: wall time of its process.
    """

    id: str
    what: str
    result: Mapping[str, Any] | None
    error: str
    seconds: float


def machine() -> Machine:
    """This one, now."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return Machine(
        _processor(),
        len(os.sched_getaffinity(0)),
        round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        load,
        platform.python_version(),
        {name: found for name in _PACKAGES if (found := _version(name))},
        _commit(),
        datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    named = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)
    }
    known = set(named.get("flags", "").split())
    special = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in known]
    return f"{named.get('model name', platform.machine())} ({', '.join(special) or 'no bf16'})"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=_ROOT, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    changed = " with changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + changed


def write(path: Path, began: Machine, rows: Sequence[Row]) -> None:
    """``path``, Markdown, and a ``.json`` of the same beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(markdown(began, rows), encoding="utf-8")
    values = {
        "machine": asdict(began),
        "rows": [asdict(row) for row in rows],
    }
    text = json.dumps(values, indent=1) + "\n"
    path.with_suffix(".json").write_text(text, encoding="utf-8")


def markdown(began: Machine, rows: Sequence[Row]) -> str:
    """The machine, a table of all, and a table of each one's details."""
    packages = ", ".join(f"{name} {found}" for name, found in began.packages.items())
    lines = [
        "# Benchmarks",
        "",
        "`python -m benchmarks --output THIS_FILE`: every row in a process of its own, one after",
        "another, each interleaved with what it is compared with; CPU times unless it says other.",
        "`python -m benchmarks ID` repeats one.",
        "",
        f"{began.processor}, {began.cores} cores, {began.memory_gb} GiB; load when it began "
        f"{began.load}. Python {began.python}, {packages}. {began.date}, commit {began.commit}.",
        "",
        *_table([_summary(row) for row in rows]),
    ]
    for row in rows:
        lines += ["", f"## {row.id}: {row.what}", ""]
        lines += _table(row.result["details"]) if row.result else [f"Failed: {row.error}"]
    return "\n".join(lines) + "\n"


def _summary(row: Row) -> dict[str, Any]:
    found = row.result or {}
    return {
        "": row.id,
        "what": row.what,
        "value": found.get("value", f"failed: {row.error}"),
        "target": found.get("target", ""),
        "reached": "" if row.result is None else found["reached"],
        "seconds": round(row.seconds),
    }


def _table(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown; a column for every key that a line has, in the order of their first appearance."""
    if not lines:
        return ["No details."]
    names = list(dict.fromkeys(name for line in lines for name in line))
    head = "| " + " | ".join(names) + " |"
    rule = "|" + "|".join(" --- " for _ in names) + "|"
    body = ["| " + " | ".join(_cell(line.get(name)) for name in names) + " |" for line in lines]
    return [head, rule, *body]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_cell(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_cell(each) for each in value)
    return without_folders(str(value)).replace("|", "\\|").replace("\n", " ")


def without_folders(text: str) -> str:
    """Names of files without the folders that they lie in on this machine."""
    return re.sub(r"(?<![\w/.:])/(?:[^\s/:'\"]+/)+([^\s/:'\"]*)", r"\1", text)
