"""A diagnosis for people: by host, one line a finding, what to do below it."""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from launcher.doctor.checks.collectives import speed
from launcher.doctor.examine import Diagnosis
from launcher.doctor.finding import EVERYWHERE, Finding
from launcher.doctor.scene import Facts

_SIGNS = {"error": "error  ", "warning": "warning", "ok": "ok     "}
_GIB = 1 << 30
_WIDTH = 100


def lines(diagnosis: Diagnosis) -> Iterator[str]:
    """What the terminal shows."""
    groups: dict[str, list[Finding]] = {host.name: [] for host in diagnosis.scene.hosts}
    for finding in diagnosis.findings:
        if finding.severity != "ok":
            groups.setdefault(finding.where, []).append(finding)
    for where, found in groups.items():
        about = _about(diagnosis.scene.facts.get(where, {}))
        yield f"{where}{': ' if about else ''}{about}"
        for finding in found:
            yield f"  {_SIGNS[finding.severity]} {finding.what}"
            if finding.remedy:
                yield f"          {finding.remedy}"
    well = [finding.check for finding in diagnosis.findings if finding.severity == "ok"]
    if well:
        yield f"{EVERYWHERE} that answered" if diagnosis.scene.unreached else EVERYWHERE
        yield from textwrap.wrap(
            ", ".join(well),
            _WIDTH,
            initial_indent=f"  {_SIGNS['ok']} ",
            subsequent_indent=" " * 10,
        )
    yield from _sums(diagnosis.scene.collectives)
    if diagnosis.put_off:
        yield "all-reduces were not timed: first correct the errors"
    yield _summary(diagnosis)


def _about(facts: Facts) -> str:
    """``8 GPUs, 64 cores, 503 GiB, Python 3.11.7, torch 2.13.0``."""
    machine, software = facts.get("machine"), facts.get("software")
    if machine is None or software is None:
        return ""
    gpus = facts.get("devices", {}).get("gpus", 0)
    parts = [f"{gpus} GPU{'' if gpus == 1 else 's'}"] if gpus else []
    cores = machine["cores"]
    return ", ".join(
        [
            *parts,
            f"{cores} core{'' if cores == 1 else 's'}",
            f"{machine['memory']['total'] / _GIB:.0f} GiB",
            f"Python {software['python']}",
            f"torch {software['versions']['torch'] or 'missing'}",
        ]
    )


def _sums(told: Mapping[str, Any]) -> Iterator[str]:
    if "pairs" not in told:
        return
    yield f"all-reduce between two ({told['device']}): what each sends, and the time of a small one"
    rows = [(" - ".join(pair["hosts"]), pair) for pair in told["pairs"]]
    if len(rows) > 1:
        rows.append(("over all", told["all"]))
    width = max(len(name) for name, _ in rows)
    for name, found in rows:
        late = f"{found['latency'] * 1e3:.2f} ms"
        yield f"  {name:<{width}}  {speed(found['bandwidth']):>14}  {late:>10}"


def _summary(diagnosis: Diagnosis) -> str:
    errors, warnings = (
        sum(finding.severity == kind for finding in diagnosis.findings)
        for kind in ("error", "warning")
    )
    counts = f"{errors} error{'' if errors == 1 else 's'}, {warnings} warning"
    end = "a run would start" if diagnosis.is_ready else "a run would fail"
    return f"{counts}{'' if warnings == 1 else 's'}: {end}"
