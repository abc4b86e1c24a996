"""The campaign's table from its results."""

import importlib.metadata
import json
import os
import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.faults import table

Told = Mapping[str, Any]
_SHOWN = ("finished", "digest_equal", "ids_exact", "losses_equal", "loss_difference", "silent")


def read(results: Path) -> list[dict[str, Any]]:
    """The last result of each run, by number; a line that a kill cut is none."""
    if not results.exists():
        return []
    texts = results.read_text(encoding="utf-8").splitlines(keepends=True)
    lines = [json.loads(text) for text in texts if text.endswith("\n")]
    found = {line["run"]: line for line in lines}
    return [found[number] for number in sorted(found)]


def line(told: Told) -> str:
    """One run, for the screen."""
    setup = told["setup"]
    what = f"{setup['model']} zero{setup['stage']} {setup['precision']} x{setup['world']}"
    verdict = "ok" if told["passed"] else " ".join(["FAILED", *_reasons(told)])
    kinds = ", ".join(
        " ".join(filter(None, (fault["kind"], fault["damage"]))) for fault in told["faults"]
    )
    kinds += f", {told['standing']}" if told["standing"] else ""
    return f"{told['run']:4} {verdict}  {what} {setup['extra']}: {kinds}  {told['seconds']} s"


def _reasons(told: Told) -> Iterator[str]:
    for key in (*_SHOWN, "orphans", "rows_twice", "rows_missing"):
        if key in told:
            yield f"{key}={told[key]}"
    if told.get("error"):
        yield told["error"].strip().splitlines()[-1]


def write(results: Path, page: Path = table.RESULTS) -> None:
    """Write this part of the page; it comes from the results alone, but for the machine."""
    runs = read(results)
    if not runs:
        msg = f"{results}: no results"
        raise SystemExit(msg)
    parts = [_head(runs), *_totals(runs), "", *_kinds(runs), "", *_told(runs), "", *_failures(runs)]
    table.put_campaign("\n".join(parts).rstrip(), page)


def _head(runs: Sequence[Told]) -> str:
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("torch", "deepspeed", "transformers")
    )
    return f"""## Real runs, hit at random

The second part of `make faults`, seed {runs[0]["seed"]}. Each run is a pretraining stage of the
product on two sources (tiny BERT or GPT-2, dropout on, validation, penalties or adapters in some),
2 to 4 ranks, ZeRO 0 to 3, fp32 or bf16, 8 to 12 steps, a checkpoint every 2 or 3. It is hit by one
to three faults drawn from the seed, and started again until it finishes. Its last checkpoint (every
weight and optimizer state, cursor, hooks), its exported model, the loss of every step and the rows
of every step are then held against those of the same stage that nothing hit. Ranks are forked from
warm processes in the place of deepspeed's launcher, of which the supervisor copies how it ends the
others.

{os.cpu_count()} cores, {platform.machine()}, gloo, Python {platform.python_version()}, {versions}.
"""


def _totals(runs: Sequence[Told]) -> Iterator[str]:
    strict = [told for told in runs if not told["relaxed"]]
    relaxed = [told for told in runs if told["relaxed"]]
    attempts = [attempt for told in runs for attempt in told.get("attempts", [])]
    planned = sum(told["setup"]["steps"] for told in runs if told.get("finished"))
    taken = sum(told.get("steps_taken", 0) for told in runs if told.get("finished"))
    struck = sum(bool(attempt["struck"]) for attempt in attempts)
    yield "| | |"
    yield "|---|---:|"
    yield f"| runs | {len(runs)} |"
    yield f"| versions of the code among them | {len({told['code'] for told in runs})} |"
    yield f"| finished | {_count(runs, 'finished')} |"
    yield f"| same ranks and stage: ended with the control's bits | {_of(strict, 'passed')} |"
    yield f"| other ranks or stage: losses within tolerance, same rows | {_of(relaxed, 'passed')} |"
    yield f"| rows of every step exact | {_of(runs, 'ids_exact')} |"
    yield f"| rows read twice, missing | {_sum(runs, 'rows_twice')}, {_sum(runs, 'rows_missing')} |"
    yield f"| trained on from a damaged checkpoint | {_sum(runs, 'silent')} |"
    yield f"| processes left behind | {_sum(runs, 'orphans')} |"
    yield f"| faults that struck, of those armed | {struck} of {_armed(runs)} |"
    yield f"| starts, of which hung | {len(attempts)}, {sum(a['hung'] for a in attempts)} |"
    yield f"| goodput: steps needed / steps taken | {planned / max(taken, 1):.3f} |"
    yield f"| asked for a person (no checkpoint was intact) | {_sum(runs, 'asked_person')} |"
    for precision in ("fp32", "bf16"):
        found = [told for told in relaxed if told["setup"]["precision"] == precision]
        differences = [t["loss_difference"] for t in found if t.get("loss_difference") is not None]
        if differences:
            shown = f"{median(differences):.1e}, {max(differences):.1e}"
            yield f"| {precision}, other ranks or stage: loss differs by (median, most) | {shown} |"


def _count(runs: Sequence[Told], key: str) -> int:
    return sum(bool(told.get(key)) for told in runs)


def _of(runs: Sequence[Told], key: str) -> str:
    return f"{_count(runs, key)} of {len(runs)}"


def _sum(runs: Sequence[Told], key: str) -> int:
    return sum(told.get(key, 0) for told in runs)


def _armed(runs: Sequence[Told]) -> int:
    return sum(bool(a["kind"]) for told in runs for a in told.get("attempts", []))


def _kinds(runs: Sequence[Told]) -> Iterator[str]:
    yield (
        "A run counts in the row of each of its faults. Detected: seconds from the strike to the "
        "end of the last rank; one that stands still is given 6 s until the others notice, and 6 s "
        "more until it is killed. Lost: steps taken that the next start had to take again.\n"
    )
    heads = ("runs", "struck", "as the control", "rows exact", "detected, median / most")
    yield f"| fault | {' | '.join(heads)} | lost, median / most |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    kinds = {fault["kind"] for told in runs for fault in told["faults"]}
    for kind in sorted(kinds):
        yield _row(kind, [told for told in runs if any(f["kind"] == kind for f in told["faults"])])
    if standing := [told for told in runs if told["standing"]]:
        shown = f"{_of(standing, 'passed')} | {_of(standing, 'ids_exact')}"
        yield f"| loss out of bounds in the control, too | {len(standing)} | | {shown} | - | - |"


def _row(kind: str, runs: Sequence[Told]) -> str:
    pairs = [pair for told in runs for pair in _attempts(told) if pair[0]["kind"] == kind]
    detected = [hit["detected"] for hit, _ in pairs if hit["detected"] is not None]
    lost = [number for hit, after in pairs if (number := _lost(hit, after)) is not None]
    struck = sum(bool(hit["struck"]) for hit, _ in pairs)
    return (
        f"| {kind} | {len(runs)} | {struck} of {len(pairs)} | {_of(runs, 'passed')} | "
        f"{_of(runs, 'ids_exact')} | {_spread(detected, '.1f')} | {_spread(lost, '.0f')} |"
    )


def _attempts(told: Told) -> Iterator[tuple[Told, Told | None]]:
    """Each start, with the one after it."""
    found = told.get("attempts", [])
    yield from zip(found, [*found[1:], None], strict=True)


def _lost(hit: Told, after: Told | None) -> int | None:
    if after is None or not hit["started_at"] or not after["started_at"] or not hit["struck"]:
        return None
    return int(hit["last"] - after["started_at"][0])


def _spread(values: Sequence[float], form: str) -> str:
    return f"{median(values):{form}} / {max(values):{form}}" if values else "-"


def _told(runs: Sequence[Told]) -> Iterator[str]:
    """What the launcher would have said, by kind of fault."""
    said: dict[str, Counter[str]] = {}
    for told in runs:
        for attempt in told.get("attempts", []):
            if attempt["said"] and attempt["struck"]:
                answer = f"{attempt['said']['kind']} ({attempt['said']['exit_code']})"
                said.setdefault(attempt["kind"], Counter())[answer] += 1
    yield "What ended a start that was hit, and its exit code:\n"
    yield "| fault | told |"
    yield "|---|---|"
    for kind in sorted(said):
        shown = ", ".join(f"{answer} {count}" for answer, count in said[kind].most_common())
        yield f"| {kind} | {shown} |"


def _failures(runs: Sequence[Told]) -> Iterator[str]:
    failed = [told for told in runs if not told["passed"]]
    if not failed:
        return
    yield "### Not as the control\n"
    for told in failed:
        command = f"python -m benchmarks.faults --seed {told['seed']} --only {told['run']}"
        yield f"- `{command}`: {line(told)}"
