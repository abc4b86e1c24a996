"""What one rank asks torch.distributed for in an optimizer step, by arithmetic.

Pure, as the planner is. What it counts is what DeepSpeed 0.19.8 and the loop do;
benchmarks/counted.py holds it to the calls of real steps.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil
from typing import Any, Literal

from configs.deepspeed_json import gradient_clipping, precision
from engine.gathering import Gathering, gathered
from engine.layout import backward
from engine.planner import (
    BUCKET,
    LIVE,
    PERSISTS_BELOW,
    PREFETCH,
    Group,
    Job,
    Weights,
    Widths,
    offloaded,
    setting,
    sub_groups,
)
from engine.update_sizes import GATHERED

Kind = Literal["all_reduce", "all_gather", "reduce_scatter", "reduce"]
Purpose = Literal[
    "gradients", "weights", "matrices", "norm", "overflow", "counts", "judgement", "vote"
]

_STAGE_0_BUCKET = 500_000_000
_NUMBER = 8
"""Bytes of what the loop sums: fp64."""


@dataclass(frozen=True, slots=True)
class Collective:
    """Calls of one kind, for one purpose.

    Attributes:
        kind: which of torch.distributed's functions, in short.
        bytes: of all ``calls`` together: the full tensors that are reduced or gathered.
        calls: how often.
        purpose: what for. A ``vote`` is on the CPU, over a group of its own, beside the step.
    """

    kind: Kind
    bytes: int
    calls: int
    purpose: Purpose


def communication(job: Job, zero: Mapping[str, Any]) -> tuple[Collective, ...]:
    """What one rank asks for in a step that is not one of the first three.

    Stage 3 traces the model in its first steps. Not counted is what happens once in many steps:
    metrics, validation, checkpoints. What ZeRO++ quantizes is counted in full; and low-rank updates
    beside weights that stage 3 gives back between passes are counted without the model's order.
    """
    if job.world == 1 or job.backend == "plain":
        return ()
    stage = int(zero.get("stage", 0))
    of_stage = {0: _stage_0, 3: _stage_3}.get(stage, _flat)
    return tuple(_merged([*_loop(job), *of_stage(job, zero)]))


def total_bytes(collectives: Iterable[Collective]) -> int:
    """Of all calls together."""
    return sum(collective.bytes for collective in collectives)


def _merged(calls: Iterable[Collective]) -> Iterator[Collective]:
    """Those of one kind and purpose as one."""

    def key(call: Collective) -> tuple[str, str]:
        return call.purpose, call.kind

    for _, same in groupby(sorted(calls, key=key), key=key):
        those = list(same)
        yield Collective(
            those[0].kind,
            sum(call.bytes for call in those),
            sum(call.calls for call in those),
            those[0].purpose,
        )


def _loop(job: Job) -> Iterator[Collective]:
    """Targets and tokens of the step, whole and by source; whether anybody is to stop."""
    yield Collective("all_reduce", _NUMBER * (2 + 2 * job.sources), 1, "counts")
    yield Collective("all_reduce", _NUMBER, 1, "vote")
    if job.is_judged:
        yield Collective("all_reduce", 2 * _NUMBER, 1, "judgement")


def _sent(job: Job) -> int:
    """Bytes a value of what is reduced."""
    kind = job.values.get("communication_data_type", precision(job.values))
    return 4 if kind == "fp32" else 2


def _weight(job: Job) -> int:
    return 4 if precision(job.values) == "fp32" else 2


def _clips(job: Job) -> bool:
    return gradient_clipping(job.values) > 0


def _stage_0(job: Job, zero: Mapping[str, Any]) -> Iterator[Collective]:
    """The engine's own: gradients in the model's order, a bucket sent once it is over-full."""
    del zero
    calls = len(list(_parts(_in_order(job.weights), _STAGE_0_BUCKET)))
    trained = job.weights.trained
    yield Collective("all_reduce", _sent(job) * trained, calls, "gradients")
    if _clips(job):
        yield Collective("all_reduce", 4, 1, "norm")


def _in_order(weights: Weights) -> Iterator[int]:
    """Sizes of the trained tensors, in the model's order."""
    trained = len(weights.trainable)
    seen = dict.fromkeys(n for module in weights.modules for n in module.tensors if n < trained)
    return (weights.tensors[number] for number in seen)


def _flat(job: Job, zero: Mapping[str, Any]) -> Iterator[Collective]:
    """Stages 1 and 2: all gradients to all ranks, then each rank's share of the weights."""
    weights, world = job.weights, job.world
    passes = job.accumulation if int(zero["stage"]) == 2 else 1
    for kind, values in _reductions(job, zero):
        yield Collective(kind, _sent(job) * values * passes, passes, "gradients")
    groups = [group.tensors for group in weights.groups]
    if _checks_overflow(job, zero):
        yield Collective("all_reduce", 1, 1, "overflow")
    if zero.get("compute_grad_norm", True):
        yield Collective("all_reduce", 4 * len(groups), len(groups), "norm")
    flat = sum(ceil(sum(group) / (2 * world)) * 2 * world for group in groups)
    yield Collective("all_gather", _weight(job) * flat, len(groups), "weights")
    owners, number = _owners(weights, world), 0
    for group in weights.groups:
        numbers = range(number, number := number + len(group.tensors))
        cut = [weights.tensors[each] for each in numbers if len(owners[each]) > 1]
        yield from _turned(job, group, cut)


def _turned(job: Job, group: Group, cut: Sequence[int]) -> Iterator[Collective]:
    """Matrices that are cut over ranks are put together for a rule that turns them."""
    if group.working.turning:
        width = Widths.of(job.values).master
        for values in _parts(cut, GATHERED - 1):
            yield Collective("all_reduce", width * values, 1, "matrices")


def _checks_overflow(job: Job, zero: Mapping[str, Any]) -> bool:
    """At stages 1 and 2 bf16's gradients are looked at, too, unless told otherwise."""
    kind = precision(job.values)
    if kind == "bf16" and int(zero["stage"]) < 3:
        return bool(job.values["bf16"].get("check_grad_overflow", True))
    return kind == "fp16"


def _reductions(job: Job, zero: Mapping[str, Any]) -> Iterator[tuple[Kind, int]]:
    """(kind, values) of each call after one backward pass of stage 1 or 2."""
    weights, size = job.weights, int(zero.get("reduce_bucket_size", BUCKET))
    trained = range(len(weights.trainable))
    at_end = int(zero["stage"]) == 1 and not zero.get("overlap_comm")
    order: Iterable[int] = trained if at_end else _as_computed(weights)
    owners = _owners(weights, job.world)
    for bucket in _buckets(order, weights.tensors, size):
        slices = [each for number in bucket for each in owners[number]]
        yield from _bucket(slices, zero, size)


def _as_computed(weights: Weights) -> Iterator[int]:
    """Trained tensors in the order in which a backward pass is done with them."""
    modules, trained = weights.modules, len(weights.trainable)
    order = [n for at in backward(modules) for n in reversed(modules[at].tensors) if n < trained]
    # What serves twice is done with when its first use is.
    last = {number: position for position, number in enumerate(order)}
    return iter(sorted(last, key=last.__getitem__))


def _buckets(order: Iterable[int], sizes: Sequence[int], most: int) -> Iterator[list[int]]:
    """Tensors in a row, as long as they are not more values than that; a larger one by itself."""
    bucket: list[int] = []
    for number in order:
        if bucket and sum(sizes[each] for each in bucket) + sizes[number] > most:
            yield bucket
            bucket = []
        bucket.append(number)
    if bucket:
        yield bucket


def _owners(weights: Weights, world: int) -> dict[int, list[tuple[int, int]]]:
    """For each trained tensor the (rank, values) that its group's partitions cut it into."""
    found: dict[int, list[tuple[int, int]]] = {}
    number = 0
    for group in weights.groups:
        size = ceil(sum(group.tensors) / (2 * world)) * 2
        start = 0
        for numel in group.tensors:
            end = start + numel
            found[number] = [
                (rank, min(end, (rank + 1) * size) - max(start, rank * size))
                for rank in range(start // size, (end - 1) // size + 1)
            ]
            start, number = end, number + 1
    return found


def _bucket(
    slices: Sequence[tuple[int, int]], zero: Mapping[str, Any], most: int
) -> Iterator[tuple[Kind, int]]:
    """The calls for one bucket; slices of one rank that lie in a row are one."""
    values = sum(size for _, size in slices)
    if not (zero.get("reduce_scatter", True) and zero.get("contiguous_gradients", True)):
        yield "all_reduce", values
        return
    runs = [
        (rank, sum(size for _, size in same))
        for rank, same in groupby(slices, key=lambda each: each[0])
    ]
    if zero.get("use_multi_rank_bucket_allreduce", True):
        yield from (("all_reduce", part) for part in _parts([size for _, size in runs], most))
        return
    ranks = dict.fromkeys(rank for rank, _ in runs)
    for owner in ranks:
        mine = [size for rank, size in runs if rank == owner]
        yield from (("reduce", part) for part in _parts(mine, most))


def _parts(sizes: Iterable[int], most: int) -> Iterator[int]:
    """Sent as soon as there are more values than that; and what is left at the end."""
    held = 0
    for size in sizes:
        held += size
        if held > most:
            yield held
            held = 0
    if held:
        yield held


def _stage_3(job: Job, zero: Mapping[str, Any]) -> Iterator[Collective]:
    """Weights are gathered for each pass, gradients scattered; what persists comes at the end."""
    weights, world = job.weights, job.world
    given = _gathering(weights, zero)
    width, passes = _weight(job), job.accumulation
    for calls in gathered(given):
        values = sum(_padded(weights.tensors[n], world) for call in calls for n in call)
        yield Collective("all_gather", width * values * passes, len(calls) * passes, "weights")
    kept = [n for n, stays in zip(weights.tensors, given.persistent, strict=True) if stays]
    values = sum(_padded(numel, world) for numel in kept)
    yield Collective("all_gather", width * values, len(kept), "weights")
    for kind, values in _scattered(weights, world, zero):
        yield Collective(kind, _sent(job) * values * passes, passes, "gradients")
    if _checks_overflow(job, zero):
        yield Collective("all_reduce", 1, 1, "overflow")
    parts = sub_groups(weights, world, zero)
    groups = len(parts)
    wide = 4 if offloaded(zero) != "none" else 8
    yield Collective("all_reduce", wide * groups, groups, "norm")
    for part in parts:
        yield from _turned(job, part, part.tensors)


def _padded(numel: int, world: int) -> int:
    return ceil(numel / world) * world


def _gathering(weights: Weights, zero: Mapping[str, Any]) -> Gathering:
    threshold = setting(zero, "param_persistence_threshold", PERSISTS_BELOW)
    return Gathering(
        weights.modules,
        weights.tensors,
        tuple(numel <= threshold for numel in weights.tensors),
        setting(zero, "prefetch_bucket_size", PREFETCH),
        setting(zero, "max_live_parameters", LIVE),
        setting(zero, "max_reuse_distance", LIVE),
    )


def _scattered(weights: Weights, world: int, zero: Mapping[str, Any]) -> Iterator[tuple[Kind, int]]:
    """(kind, values) of each call in a backward pass of stage 3."""
    sizes, most = weights.tensors, int(zero.get("reduce_bucket_size", BUCKET))
    is_whole = not zero.get("reduce_scatter", True) and zero.get("contiguous_gradients", True)
    for bucket in _buckets(_as_computed(weights), sizes, most):
        values = sum(sizes[number] for number in bucket)
        if is_whole and values <= most:
            yield "all_reduce", values
        else:
            yield "reduce_scatter", sum(_padded(sizes[number], world) for number in bucket)
