"""A plan in words, for people."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from configs.devices import GIB

_SCALES = {
    "same_batch": "the same rows a step over more ranks",
    "same_rows_a_rank": "more ranks, each with the rows it has now",
}


def plan_lines(entries: Sequence[Mapping[str, Any]], cluster: str, margin: str) -> Iterator[str]:
    """Line by line, without line ends."""
    yield f"planned for {cluster}; {margin}"
    for entry in entries:
        yield ""
        yield from _entry(entry)
    said = dict.fromkeys(line for entry in entries for line in _assumed(entry))
    if said:
        yield ""
        yield "what the times assume"
        yield from (f"  - {line}" for line in said)


def _assumed(entry: Mapping[str, Any]) -> Sequence[str]:
    told: Sequence[str] = entry.get("time", {}).get("assumed", ())
    return told


def _entry(entry: Mapping[str, Any]) -> Iterator[str]:
    yield str(entry["stage"])
    parts = {
        "parameters": _parameters,
        "batch": _batch,
        "memory": _options,
        "time": _time,
        "disk": _disk,
    }
    for key, lines in parts.items():
        if key in entry:
            yield from lines(entry)
    for key in ("pick", "warning", "error"):
        if key in entry:
            yield f"  {key:<12}{entry[key]}"
    for note in entry.get("notes", ()):
        yield f"  {'note':<12}{note}"
    for name, lines in entry.get("scaling", {}).items():
        yield from _scaling(_SCALES[name], lines)


def _parameters(entry: Mapping[str, Any]) -> Iterator[str]:
    trained = "all" if entry["trained"] == entry["parameters"] else _count(entry["trained"])
    teacher = f"; beside a teacher of {_count(entry['teacher'])}" if "teacher" in entry else ""
    yield f"  parameters  {_count(entry['parameters'])}, trained: {trained}{teacher}"


def _batch(entry: Mapping[str, Any]) -> Iterator[str]:
    batch = entry["batch"]
    yield f"  budget      {_budget(entry)}"
    yield (
        f"  batch       {batch['rows']} rows = {batch['micro_batch']} a micro-batch x "
        f"{batch['accumulation']} accumulated x {_plural(batch['ranks'], 'rank')}"
    )


def _budget(entry: Mapping[str, Any]) -> str:
    there = ", ".join(f"{_count(n)} in {name}" for name, n in entry.get("tokens_there", {}).items())
    told = f"; there are {there}" if there else ""
    if "steps" not in entry:
        return f"in epochs of data that is not prepared yet{told}"
    about = "about " if entry.get("is_about") else ""
    steps = _plural(entry["steps"], "step")
    return f"{about}{steps}, {_count(entry['tokens'])} tokens with padding{told}"


_COLUMNS = ("rest", "pass", "update", "host")


def _options(entry: Mapping[str, Any]) -> Iterator[str]:
    """Memory, communication and time of each option, side by side."""
    rows: Sequence[Mapping[str, Any]] = entry["memory"]
    width = max(19, *(len(row["zero"]) for row in rows))
    is_alone = not any(row["calls"] for row in rows)
    is_timed = any("step_seconds" in row for row in rows)
    heads = [*_COLUMNS, *([] if is_alone else ["sends"]), *(["step"] if is_timed else [])]
    columns = "".join(f"{key:>9}" for key in heads)
    yield f"{'  GiB a rank':<{width + 4}}{columns}"
    for row in rows:
        cells = [_gib(row[key]) for key in _COLUMNS]
        cells += [] if is_alone else [_gib(row["sent"])]
        cells += [_seconds(row["step_seconds"]) if "step_seconds" in row else "?"] * is_timed
        fits = "fits" if row["fits"] else "does not fit"
        picked = "  <" if row["picked"] else ""
        numbers = "".join(f"{cell:>9}" for cell in cells)
        yield f"    {row['zero']:<{width}}{numbers}  {fits}{picked}"


def _time(entry: Mapping[str, Any]) -> Iterator[str]:
    told = entry["time"]
    if "step" not in told:
        yield f"  compute     {told['flops_step']:.3g} FLOP a step"
        return
    step = told["step"]
    parts = ", ".join(
        f"{word} {_seconds(step[key])}"
        for key, word in (
            ("compute", "computing"),
            ("communication", "communicating"),
            ("update", "updating"),
        )
        if step[key]
    )
    yield f"  time        {_seconds(step['seconds'])} a step ({parts})"
    whole = ""
    if "seconds" in told:
        hours = told["device_hours"]
        whole = f"; {_seconds(told['seconds'])} in all, {hours:,.2f} device hours"
    yield f"  speed       {_count(round(told['tokens_day']))} tokens a day{whole}"
    used = f", {told['mfu']:.0%} of what the data sheet has (MFU)" if "mfu" in told else ""
    yield f"  compute     {told['flops_step']:.3g} FLOP a step{used}"


def _disk(entry: Mapping[str, Any]) -> Iterator[str]:
    disk = entry["disk"]
    shards = f", {_gib(disk['shards'])} of shards" if "shards" in disk else ""
    yield (
        f"  disk        {_gib(disk['checkpoints'])} GiB of checkpoints (at most {disk['most']} at "
        f"once, {_gib(disk['checkpoint'])} each), {_gib(disk['export'])} of exports"
        f"{shards}"
    )


def _scaling(title: str, lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield f"  simulated: {title}; a rank: its tokens/s against the first line that fits with a time"
    width = max(16, *(len(line["zero"]) for line in lines))
    heads = ("ranks", "hosts", "rows", "accum.", "step", "tokens/s", "a rank")
    yield f"    {'':<{width}}" + "".join(f"{head:>10}" for head in heads)
    for line in lines:
        cells = [f"{line[key]:,}" for key in ("ranks", "hosts", "rows", "accumulation")]
        is_timed = "step_seconds" in line
        cells.append(_seconds(line["step_seconds"]) if is_timed else "?")
        cells.append(_count(round(line["tokens_second"])) if is_timed else "?")
        speed = line.get("rank_speed")
        cells.append("?" if speed is None else f"{speed:.0%}")
        fits = "" if line["fits"] else "  does not fit"
        yield f"    {line['zero']:<{width}}" + "".join(f"{cell:>10}" for cell in cells) + fits


def _gib(count: float) -> str:
    if 0 < count < 0.005 * GIB:
        return "<0.01"
    return f"{count / GIB:.2f}" if count < 100 * GIB else f"{count / GIB:,.0f}"


def _count(number: int) -> str:
    for size, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return str(number)


def _seconds(seconds: float) -> str:
    """In the unit in which it has one to three digits before the point."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def _plural(count: int, word: str) -> str:
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"
