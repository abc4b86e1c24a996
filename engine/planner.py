"""The memory of a training run, by arithmetic: what each rank holds at rest, in a pass, in a step.

Pure: no tensor is made and no library imported. What it counts, and when, is what DeepSpeed 0.19.8
and the plain backend allocate; a census of all live tensors holds it to that (tests/engine).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

from configs.deepspeed_json import precision
from engine.activations import Pass
from engine.layout import Layout, Module

Offload = Literal["none", "optimizer", "all"]
BUCKET = 500_000_000
"""Values in DeepSpeed's reduction buffer, which is allocated whole, however small the model."""
SUB_GROUP = 1_000_000_000
LIVE = 1_000_000_000
PREFETCH = 50_000_000
PERSISTS_BELOW = 100_000


@dataclass(frozen=True, slots=True)
class Weights:
    """A model as an optimizer sees it: the sizes of its tensors, in values.

    Attributes:
        matrices: the trained ones that are decayed, in the model's order.
        vectors: the trained ones that are not.
        frozen: without gradients and states.
        layout: the model's modules, with tensors numbered as in ``tensors``; empty: not known,
            every tensor counts as a module by itself.
    """

    matrices: tuple[int, ...]
    vectors: tuple[int, ...]
    frozen: tuple[int, ...] = ()
    layout: Layout = ()

    @property
    def tensors(self) -> tuple[int, ...]:
        """All of them: matrices, vectors, frozen ones."""
        return (*self.matrices, *self.vectors, *self.frozen)

    @property
    def modules(self) -> Layout:
        """The layout; where it is not known, one that has the tensors in their order."""
        return self.layout or tuple(Module(0, (number,)) for number in range(len(self.tensors)))

    @property
    def trained(self) -> int:
        """Values that have gradients and states."""
        return sum(self.matrices) + sum(self.vectors)

    @property
    def all(self) -> int:
        """Values altogether."""
        return self.trained + sum(self.frozen)


@dataclass(frozen=True, slots=True)
class Job:
    """A training run on a given number of ranks, as far as memory depends on it.

    Attributes:
        values: the DeepSpeed JSON; ``zero_optimization`` is not looked at.
        backend: ``plain`` or ``deepspeed``.
        states: tensors of a weight's shape in the optimizer's state, in the states' precision.
        averages: the same, always fp32.
        pulls: whether penalties add to gradients, which takes one more tensor for a moment.
        accumulation: micro-batches a step.
        work: activations of one micro-batch.
        sources: of data, which the loop counts each.
        is_judged: a guard reads the loss and the norm before the update.
        most_stage: the highest ZeRO stage that the rest of the recipe goes with.
    """

    weights: Weights
    values: Mapping[str, Any]
    world: int
    accumulation: int
    work: Pass
    states: int = 2
    averages: int = 0
    pulls: bool = False
    backend: Literal["plain", "deepspeed"] = "deepspeed"
    sources: int = 1
    is_judged: bool = False
    most_stage: int = 3


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one rank's device, the largest of all ranks', at three points; and on its host.

    Attributes:
        rest: between two steps.
        backward: when the last gradient has been made, before the update; without activations.
        in_pass: the most while activations are there.
        step: when the optimizer begins its step on the largest group of weights.
        update: the most from there on, and while gradients are made ready for it.
        host: what offloading puts into the host's memory.
    """

    rest: int
    backward: int
    in_pass: int
    step: int
    update: int
    host: int = 0

    @property
    def peak(self) -> int:
        """The most at any time."""
        return max(self.rest, self.backward, self.in_pass, self.update)


@dataclass(frozen=True, slots=True)
class Widths:
    """Bytes a value: weights, master weights, optimizer states, accumulated gradients."""

    weight: int
    master: int
    state: int
    gradient: int

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Widths":
        """As DeepSpeed's JSON has them."""
        kind = precision(values)
        if kind == "fp32":
            return cls(4, 4, 4, 4)
        given = values[kind]
        low = bool(given.get(f"{kind}_master_weights_and_grads"))
        states = 2 if given.get("bf16_optimizer_states") else 4
        accumulated = values.get("data_types", {}).get("grad_accum_dtype", kind)
        return cls(2, 2 if low else 4, states, 4 if accumulated == "fp32" else 2)


def memory(job: Job, zero: Mapping[str, Any]) -> Memory:
    """What a rank needs with these ``zero_optimization`` settings."""
    stage = int(zero.get("stage", 0))
    if job.backend == "plain" or stage == 0:
        return _whole(job)
    return _sharded(job, zero) if stage == 3 else _flat(job, zero, stage)


def _states(job: Job, widths: Widths, count: int) -> int:
    return (job.states * widths.state + 4 * job.averages) * count


def _whole(job: Job) -> Memory:
    """The plain backend, and stage 0: every rank holds everything."""
    widths, weights = Widths.of(job.values), job.weights
    trained = weights.trained
    masters = 0 if widths.weight == 4 else 4 * trained
    rest = widths.weight * weights.all + masters + _states(job, widths, trained)
    gradients = 4 * trained
    largest = max((*weights.matrices, *weights.vectors), default=0)
    passing = max(gradients * (job.accumulation > 1) + job.work.bytes, gradients)
    if masters:
        # A low-precision gradient beside its copy in fp32, parameter by parameter at the end.
        passing += widths.weight * trained
    reduced = 4 * min(trained, BUCKET) if job.world > 1 else 0
    pulls = 4 * largest if job.pulls else 0
    ready = rest + gradients
    return Memory(rest, ready, rest + passing, ready, ready + max(reduced, pulls))


def _shares(numels: Sequence[int], world: int) -> tuple[int, int]:
    """Of one flat group: (values in a partition, most values of tensors that touch one)."""
    aligned = ceil(sum(numels) / (2 * world)) * 2 * world
    size = aligned // world
    touched, start = [0] * world, 0
    for numel in numels:
        if numel:
            for rank in range(start // size, min(world - 1, (start + numel - 1) // size) + 1):
                touched[rank] += numel
        start += numel
    return size, max(touched)


def _flat(job: Job, zero: Mapping[str, Any], stage: int) -> Memory:
    """Stages 1 and 2: a flat tensor a group, its partition on this rank."""
    widths, weights, world = Widths.of(job.values), job.weights, job.world
    groups = [_shares(group, world) for group in (weights.matrices, weights.vectors) if group]
    share, touched = sum(size for size, _ in groups), sum(most for _, most in groups)
    largest_group = max(size for size, _ in groups)
    largest = max((*weights.matrices, *weights.vectors))
    flat = widths.weight * (share * world + sum(weights.frozen))
    optimizer = widths.master * share + _states(job, widths, share)
    bucket = widths.weight * int(zero.get("reduce_bucket_size", BUCKET))
    if zero.get("overlap_comm"):
        bucket *= 2
    kept = widths.gradient * (share if widths.gradient > widths.weight else touched)
    whole = widths.weight * weights.trained
    # Stage 2 has them in the bucket as they come; stage 1 has all of them until the last is made.
    unreduced = whole if stage == 1 else widths.weight * largest
    before = (whole if stage == 1 else kept) if job.accumulation > 1 else 0
    passing = bucket + before + job.work.bytes
    reducing = bucket + kept + unreduced + (before if stage == 2 else 0)
    if offloaded(zero) != "none":
        host = optimizer + (widths.master + widths.weight) * share + widths.weight * largest
        rest = flat + widths.weight * largest
        moving = bucket + (whole if stage == 1 else widths.weight * largest)
        in_pass = rest + max(bucket + job.work.bytes, moving)
        held = 4 * share * (job.accumulation > 1)
        return Memory(rest, rest, in_pass, rest, rest, host + held)
    rest = flat + optimizer
    # All groups' gradients are views of one tensor, which the last of them holds.
    step = rest + (kept if len(groups) > 1 else 0) + widths.master * largest_group
    update = max(rest + kept + _cast(widths) * largest_group, step)
    update = max(update, step + widths.master * largest_group * job.pulls)
    return Memory(rest, rest + kept, rest + max(passing, reducing), step, update)


def _cast(widths: Widths) -> int:
    """Bytes a value while accumulated gradients become the flat ones of the optimizer."""
    apart = widths.gradient != widths.master
    return widths.gradient + (widths.master if apart else 0)


def _sharded(job: Job, zero: Mapping[str, Any]) -> Memory:
    """Stage 3: every tensor is cut over the ranks, and gathered for use."""
    widths, weights, world = Widths.of(job.values), job.weights, job.world
    tensors = (*weights.matrices, *weights.vectors)
    cut = sum(ceil(numel / world) for numel in tensors)
    frozen = sum(ceil(numel / world) for numel in weights.frozen)
    threshold = setting(zero, "param_persistence_threshold", PERSISTS_BELOW)
    # On one rank what is gathered is the cut itself.
    persistent = sum(n for n in (*tensors, *weights.frozen) if n <= threshold and world > 1)
    bucket = widths.weight * int(zero.get("reduce_bucket_size", BUCKET))
    optimizer = widths.master * cut + _states(job, widths, cut)
    gradients = widths.gradient * cut
    share = widths.weight * (cut + frozen + _within_host((*tensors, *weights.frozen), zero))
    offload = offloaded(zero)
    gathered = widths.weight * _live(weights, zero) if world > 1 else 0
    host = 0
    if offload != "none":
        host = optimizer + widths.master * cut + gradients
        optimizer = gradients = 0
    if offload == "all":
        host, share = host + share, 0
    held = share + optimizer + gradients + bucket
    rest = held + widths.weight * persistent
    scattered = widths.weight * min(weights.trained, bucket // widths.weight)
    in_pass = held + max(gathered, widths.weight * persistent) + max(job.work.bytes, scattered)
    sub_group = max(sub_groups(weights, world, zero))
    backward = held + max(gathered, widths.weight * persistent)
    if offload != "none":
        return Memory(rest, backward, in_pass, held, max(held, rest), host)
    step = held + widths.master * sub_group
    update = max(step + widths.master * sub_group * job.pulls, held + _cast(widths) * sub_group)
    return Memory(rest, backward, in_pass, step, max(update, rest))


def setting(zero: Mapping[str, Any], key: str, usual: int) -> int:
    """DeepSpeed takes these of stage 3 with its prefix and without."""
    return int(zero.get(f"stage3_{key}", zero.get(key, usual)))


def _within_host(tensors: Sequence[int], zero: Mapping[str, Any]) -> int:
    """Values of the second copy, cut over a host's ranks alone, that backward passes gather."""
    ranks = int(zero.get("zero_hpz_partition_size", 1))
    return sum(ceil(numel / ranks) for numel in tensors) if ranks > 1 else 0


def _live(weights: Weights, zero: Mapping[str, Any]) -> int:
    """The most values of gathered tensors at once."""
    most = setting(zero, "max_live_parameters", LIVE)
    ahead = setting(zero, "prefetch_bucket_size", PREFETCH)
    largest = max((*weights.matrices, *weights.vectors, *weights.frozen))
    return min(weights.all, max(most, largest) + ahead)


def sub_groups(weights: Weights, world: int, zero: Mapping[str, Any]) -> list[int]:
    """Values of each of stage 3's sub-groups: tensors in a row until there are enough of them."""
    size = int(zero.get("sub_group_size", SUB_GROUP))
    found = []
    for group in (weights.matrices, weights.vectors):
        together = 0
        for numel in group:
            together += ceil(numel / world)
            if together >= size:
                found.append(together)
                together = 0
        if together:
            found.append(together)
    return found


def offloaded(zero: Mapping[str, Any]) -> Offload:
    """What of a rank's share lies on the host."""
    parts = [
        part
        for part in ("optimizer", "param")
        if (zero.get(f"offload_{part}") or {}).get("device", "none") != "none"
    ]
    if "param" in parts:
        return "all"
    return "optimizer" if parts else "none"
