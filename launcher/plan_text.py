"""A plan in words, for people."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from configs.devices import GIB


def plan_lines(entries: Sequence[Mapping[str, Any]], cluster: str, margin: str) -> Iterator[str]:
    """Line by line, without line ends."""
    yield f"planned for {cluster}; {margin}"
    for entry in entries:
        yield ""
        yield from _entry(entry)


def _entry(entry: Mapping[str, Any]) -> Iterator[str]:
    yield str(entry["stage"])
    if "parameters" in entry:
        trained = "all" if entry["trained"] == entry["parameters"] else _count(entry["trained"])
        yield f"  parameters  {_count(entry['parameters'])}, trained: {trained}"
    yield f"  budget      {_budget(entry)}"
    batch = entry["batch"]
    yield (
        f"  batch       {batch['rows']} rows = {batch['micro_batch']} a micro-batch x "
        f"{batch['accumulation']} accumulated x {_plural(batch['ranks'], 'rank')}"
    )
    if "memory" in entry:
        yield from _memory(entry["memory"])
    if "checkpoint" in entry:
        saved = entry["checkpoint"]
        yield (
            f"  checkpoint  {_gib(saved['bytes'])} GiB; {_gib(saved['disk'])} GiB of disk for "
            f"{saved['keep']} kept and one being written"
        )
    for key, word in (("pick", "pick"), ("warning", "warning"), ("error", "error")):
        if key in entry:
            yield f"  {word:<12}{entry[key]}"
    for note in entry.get("notes", ()):
        yield f"  {'note':<12}{note}"


def _budget(entry: Mapping[str, Any]) -> str:
    there = ", ".join(f"{_count(n)} in {name}" for name, n in entry.get("tokens_there", {}).items())
    told = f"; there are {there}" if there else ""
    if "steps" not in entry:
        return f"in epochs of data that is not prepared yet{told}"
    about = "about " if entry.get("is_about") else ""
    steps = _plural(entry["steps"], "step")
    return f"{about}{steps}, {_count(entry['tokens'])} tokens with padding{told}"


def _memory(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    width = max(16, *(len(row["zero"]) for row in rows))
    columns = "".join(f"{key:>8}" for key in ("rest", "pass", "update", "host"))
    yield f"{'  memory, GiB a rank':<{width + 4}}{columns}"
    for row in rows:
        numbers = "".join(f"{_gib(row[key]):>8}" for key in ("rest", "pass", "update", "host"))
        fits = "fits" if row["fits"] else "does not fit"
        picked = "  <" if row["picked"] else ""
        yield f"    {row['zero']:<{width}}{numbers}  {fits}{picked}"


def _gib(count: float) -> str:
    return f"{count / GIB:.2f}" if count < 100 * GIB else f"{count / GIB:.0f}"


def _count(number: int) -> str:
    for size, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return str(number)


def _plural(count: int, word: str) -> str:
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"
