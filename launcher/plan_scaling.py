"""A stage over more and more ranks, by the planner's arithmetic: nothing of it was measured."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import gcd
from typing import Any

from configs.errors import ResourceError
from engine import choosing
from engine.choosing import JobOf, Option, Split
from engine.planner import memory
from launcher.plan_times import Clock, Cluster

MOST_RANKS = 4096


@dataclass(frozen=True, slots=True)
class Scaled:
    """A stage to be told of at other sizes.

    Attributes:
        split: as planned for the cluster.
        rows: the global batch.
        length: tokens in a row.
        zero: settings of the recipe's own; None: "auto".
    """

    jobs: JobOf
    split: Split
    rows: int
    length: int
    zero: Mapping[str, Any] | None
    cluster: Cluster
    clock: Clock


def scaling(stage: Scaled) -> dict[str, list[dict[str, Any]]]:
    """Two tables over 1, 2, 4, ... ranks; every line has ``simulated: true``.

    ``same_batch``: the rows of a step stay the same, so that there are no more ranks than rows.
    ``same_rows_a_rank``: the rows of a step grow with the ranks.
    """
    return {
        "same_batch": _with_rank_speed(_same_batch(stage)),
        "same_rows_a_rank": _with_rank_speed(_same_rows(stage)),
    }


def _worlds() -> Iterator[int]:
    ranks = 1
    while ranks <= MOST_RANKS:
        yield ranks
        ranks *= 2


def _same_batch(stage: Scaled) -> Iterator[dict[str, Any]]:
    for ranks in _worlds():
        if stage.rows % ranks:
            return
        micro = gcd(stage.rows // ranks, stage.split.micro_batch)
        split = replace(stage.split, world=ranks, micro_batch=micro)
        yield _line(stage, stage.jobs, split, stage.rows)


def _same_rows(stage: Scaled) -> Iterator[dict[str, Any]]:
    each = stage.rows // stage.split.world

    def jobs(split: Split) -> Any:
        job = stage.jobs(replace(split, world=stage.split.world))
        return replace(job, world=split.world)

    for ranks in _worlds():
        yield _line(stage, jobs, replace(stage.split, world=ranks), each * ranks)


def _line(stage: Scaled, jobs: JobOf, split: Split, rows: int) -> dict[str, Any]:
    job, device = jobs(split), stage.cluster.device
    option = _option(stage, jobs, split)
    part = stage.cluster.of(split.world)
    line: dict[str, Any] = {
        "simulated": True,
        "ranks": split.world,
        "hosts": part.hosts,
        "rows": rows,
        "micro_batch": split.micro_batch,
        "accumulation": job.accumulation,
    }
    if option is None:
        return line | {"zero": "nothing fits", "fits": False}
    line |= {"zero": option.title, "fits": choosing.fits(option.memory, device)}
    line |= stage.clock.row(job, option.zero, rows)
    if "step_seconds" in line:
        line["tokens_second"] = rows * stage.length / line["step_seconds"]
    return line


def _option(stage: Scaled, jobs: JobOf, split: Split) -> Option | None:
    if stage.zero is not None:
        return Option(stage.zero, memory(jobs(split), stage.zero))
    try:
        return choosing.choose(jobs, split, stage.cluster.device)
    except ResourceError:
        return None


def _with_rank_speed(lines: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """``rank_speed``: a rank's tokens a second over those of the first line that fits with a time.

    No share of an ideal: more ranks may fit lower settings, and then each of them is faster.
    """
    found = list(lines)
    first = next((line for line in found if line["fits"] and "tokens_second" in line), None)
    for line in found:
        if first is not None and "tokens_second" in line:
            alone = first["tokens_second"] / first["ranks"]
            line["rank_speed"] = line["tokens_second"] / line["ranks"] / alone
    return found
