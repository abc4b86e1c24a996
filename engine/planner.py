"""The memory of a training run, by arithmetic: what each rank holds at rest, in a pass, in a step.

Pure: no tensor is made and no library imported. What it counts, and when, is what DeepSpeed 0.19.8
and the plain backend allocate; a census of all live tensors holds it to that (tests/engine).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Literal

from configs.deepspeed_json import precision
from engine.activations import Pass
from engine.layout import Layout, Module
from engine.update_sizes import GATHERED, PIECE

Offload = Literal["none", "optimizer", "all"]
BUCKET = 500_000_000
"""Values in DeepSpeed's reduction buffer, which is allocated whole, however small the model."""
SUB_GROUP = 1_000_000_000
LIVE = 1_000_000_000
PREFETCH = 50_000_000
PERSISTS_BELOW = 100_000


@dataclass(frozen=True, slots=True)
class Working:
    """What an update takes for a moment, beside weights, states and gradients.

    Attributes:
        copies: tensors of the shape of what is updated at once.
        turning: bytes a value of the one whole matrix that is turned; 0: none is.
    """

    copies: int = 0
    turning: int = 0


@dataclass(frozen=True, slots=True)
class Group:
    """Weights that are trained alike: of one decay, one rate and one rule.

    Attributes:
        tensors: the values of each, in the model's order.
        states: tensors of a weight's shape in the optimizer's state, in the states' precision.
    """

    tensors: tuple[int, ...]
    states: int = 2
    working: Working = Working()


@dataclass(frozen=True, slots=True)
class Weights:
    """A model as an optimizer sees it: the sizes of its tensors, in values.

    Attributes:
        groups: of those that are trained; none is empty.
        frozen: without gradients and states.
        layout: the model's modules, with tensors numbered as in ``tensors``; empty: not known,
            every tensor counts as a module by itself.
    """

    groups: tuple[Group, ...]
    frozen: tuple[int, ...] = ()
    layout: Layout = ()

    @property
    def trainable(self) -> tuple[int, ...]:
        """Those that have gradients and states, group by group."""
        return tuple(numel for group in self.groups for numel in group.tensors)

    @property
    def tensors(self) -> tuple[int, ...]:
        """All of them: the trainable ones, then the frozen ones."""
        return (*self.trainable, *self.frozen)

    @property
    def modules(self) -> Layout:
        """The layout; where it is not known, one that has the tensors in their order."""
        return self.layout or tuple(Module(0, (number,)) for number in range(len(self.tensors)))

    @property
    def trained(self) -> int:
        """Values that have gradients and states."""
        return sum(self.trainable)

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
        pulls: tensors that penalties add to each weight's states; adding to the gradient takes one
            more for a moment.
        averages: tensors that an average of the weights adds, always fp32.
        is_swapped: validation puts the average in the weights' place, and keeps these.
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
    pulls: int = 0
    averages: int = 0
    is_swapped: bool = False
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
        swapped: while the average of the weights is validated; 0: it is not.
    """

    rest: int
    backward: int
    in_pass: int
    step: int
    update: int
    host: int = 0
    swapped: int = 0

    @property
    def peak(self) -> int:
        """The most at any time."""
        return max(self.rest, self.backward, self.in_pass, self.update, self.swapped)


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


def state_bytes(job: Job, widths: Widths, shares: Sequence[int]) -> int:
    """Of the optimizer's states; ``shares``: values that a rank holds of each group."""
    return sum(
        ((group.states + job.pulls) * widths.state + 4 * job.averages) * share
        for group, share in zip(job.weights.groups, shares, strict=True)
    )


def _working(job: Job, width: int, group: Group, tensors: Sequence[int], share: int) -> int:
    """The most that an update of some of a group's tensors takes for a moment.

    Args:
        job: tells whether penalties pull.
        width: bytes of a value of what is updated.
        group: how it is updated.
        tensors: whole, those that the update is of.
        share: values of them on this rank.
    """
    largest, turned = max(tensors), 0
    if group.working.turning:
        gathered = min(sum(tensors), GATHERED + largest) if share < sum(tensors) else 0
        turned = width * gathered + group.working.turning * largest
    # The update's norm is measured: what was before, the difference, and its square in fp64.
    measured = width * min(share, 2 * PIECE) + (width + 16) * min(share, PIECE)
    update = width * group.working.copies * share + max(turned, measured)
    return max(update, width * share * (job.pulls > 0))


def _whole(job: Job) -> Memory:
    """The plain backend, and stage 0: every rank holds everything."""
    widths, weights = Widths.of(job.values), job.weights
    trained = weights.trained
    masters = 0 if widths.weight == 4 else 4 * trained
    states = state_bytes(job, widths, [sum(group.tensors) for group in weights.groups])
    rest = widths.weight * weights.all + masters + states
    gradients = 4 * trained
    passing = max(gradients * (job.accumulation > 1) + job.work.bytes, gradients)
    if masters:
        # A low-precision gradient beside its copy in fp32, parameter by parameter at the end.
        passing += widths.weight * trained
    reduced = 4 * min(trained, BUCKET) if job.world > 1 else 0
    working = max(
        _working(replace(job, pulls=0), 4, group, group.tensors, sum(group.tensors))
        for group in weights.groups
    )
    pulled = 4 * max(weights.trainable) * (job.pulls > 0)
    ready = rest + gradients
    most = ready + max(reduced, working, pulled)
    swapped = _swapped(job, rest + 4 * trained)
    return Memory(rest, ready, rest + passing, ready, most, swapped=swapped)


def _swapped(job: Job, held: int) -> int:
    """While the average is validated; ``held``: with a copy of the weights."""
    return held + job.work.head + job.work.passing if job.is_swapped else 0


def _shares(numels: Sequence[int], world: int) -> tuple[int, list[int]]:
    """Of one flat group: (values in a partition, for each rank values of tensors that touch it)."""
    aligned = ceil(sum(numels) / (2 * world)) * 2 * world
    size = aligned // world
    touched, start = [0] * world, 0
    for numel in numels:
        if numel:
            for rank in range(start // size, min(world - 1, (start + numel - 1) // size) + 1):
                touched[rank] += numel
        start += numel
    return size, touched


def _flat(job: Job, zero: Mapping[str, Any], stage: int) -> Memory:
    """Stages 1 and 2: a flat tensor a group, its partition on this rank."""
    widths, weights, world = Widths.of(job.values), job.weights, job.world
    found = [_shares(group.tensors, world) for group in weights.groups]
    shares = [size for size, _ in found]
    share = sum(shares)
    touched = max(map(sum, zip(*(ranks for _, ranks in found), strict=True)))
    largest = max(weights.trainable)
    flat = widths.weight * (share * world + sum(weights.frozen))
    optimizer = widths.master * share + state_bytes(job, widths, shares)
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
    steps = [rest + kept + widths.master * size for size in shares]
    steps[-1] -= kept
    update = max(
        rest + kept + _cast(widths) * max(shares),
        *(
            step + _working(job, widths.master, group, group.tensors, size)
            for group, step, size in zip(weights.groups, steps, shares, strict=True)
        ),
    )
    in_pass, swapped = rest + max(passing, reducing), _swapped(job, rest + widths.master * share)
    return Memory(rest, rest + kept, in_pass, max(steps), update, swapped=swapped)


def _cast(widths: Widths) -> int:
    """Bytes a value while accumulated gradients become the flat ones of the optimizer."""
    apart = widths.gradient != widths.master
    return widths.gradient + (widths.master if apart else 0)


def _sharded(job: Job, zero: Mapping[str, Any]) -> Memory:
    """Stage 3: every tensor is cut over the ranks, and gathered for use."""
    widths, weights, world = Widths.of(job.values), job.weights, job.world
    cuts = [cut_values(group.tensors, world) for group in weights.groups]
    cut, frozen = sum(cuts), cut_values(weights.frozen, world)
    threshold = setting(zero, "param_persistence_threshold", PERSISTS_BELOW)
    # On one rank what is gathered is the cut itself.
    persistent = sum(n for n in weights.tensors if n <= threshold and world > 1)
    bucket = widths.weight * int(zero.get("reduce_bucket_size", BUCKET))
    optimizer = widths.master * cut + state_bytes(job, widths, cuts)
    gradients = widths.gradient * cut
    share = widths.weight * (cut + frozen + _within_host(weights.tensors, zero))
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
    backward = held + max(gathered, widths.weight * persistent)
    if offload != "none":
        return Memory(rest, backward, in_pass, held, max(held, rest), host)
    parts = [(part, cut_values(part.tensors, world)) for part in sub_groups(weights, world, zero)]
    largest = max(values for _, values in parts)
    update = max(
        rest,
        held + _cast(widths) * largest,
        *(
            held + widths.master * values + _working(job, widths.master, part, part.tensors, values)
            for part, values in parts
        ),
    )
    step = held + widths.master * largest
    swapped = _swapped(job, backward + widths.master * cut)
    return Memory(rest, backward, in_pass, step, update, swapped=swapped)


def cut_values(tensors: Sequence[int], world: int) -> int:
    """Values on a rank of tensors that stage 3 cuts, each by itself."""
    return sum(ceil(numel / world) for numel in tensors)


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
    return min(weights.all, max(most, *weights.tensors) + ahead)


def sub_groups(weights: Weights, world: int, zero: Mapping[str, Any]) -> list[Group]:
    """Stage 3's sub-groups: a group's tensors in a row until there are enough of them."""
    size = int(zero.get("sub_group_size", SUB_GROUP))
    found = []
    for group in weights.groups:
        together, values = list[int](), 0
        for numel in group.tensors:
            together.append(numel)
            values += ceil(numel / world)
            if values >= size:
                found.append(replace(group, tensors=tuple(together)))
                together, values = [], 0
        if together:
            found.append(replace(group, tensors=tuple(together)))
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
