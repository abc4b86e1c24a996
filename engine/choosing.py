"""Which ZeRO settings a run gets that asks for ``"zero_optimization": "auto"``: the least that fit.

A pure function of the run, the number of ranks and the device: every rank comes to the same.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from configs.deepspeed_checks import honours
from configs.deepspeed_json import AUTO
from configs.devices import GIB, Device
from configs.errors import Cause, ResourceError
from engine.planner import Job, Memory, memory, offloaded

RESERVED = GIB
"""Of each device: the driver's context, communication and kernels' workspaces."""
FRAGMENTED = 0.07
"""Of what is left: lost between the allocator's blocks."""
_OF_HOST = 0.8
_BUCKET = 500_000_000
_WORTH_STAGE_3 = 2_000_000_000
_MOST_RANKS = 4096


@dataclass(frozen=True, slots=True)
class Split:
    """What may be changed to make a run fit.

    Attributes:
        recomputed_every: see ``activation_checkpointing.every``; None: nothing is recomputed.
    """

    world: int
    micro_batch: int
    recomputed_every: int | None


@dataclass(frozen=True, slots=True)
class Option:
    """ZeRO settings, and what they take."""

    zero: Mapping[str, Any]
    memory: Memory

    @property
    def title(self) -> str:
        """In words."""
        return title(self.zero)

    @property
    def is_on_host(self) -> bool:
        """Whether the optimizer or weights are moved there."""
        return offloaded(self.zero) != "none"


JobOf = Callable[[Split], Job]


def title(zero: Mapping[str, Any]) -> str:
    """``ZeRO stage 2, optimizer on the host``."""
    words = [f"ZeRO stage {zero.get('stage', 0)}"]
    if "sub_group_size" in zero:
        words.append("small groups")
    moved = {"optimizer": "optimizer", "param": "weights"}
    parts = [
        name
        for key, name in moved.items()
        if (zero.get(f"offload_{key}") or {}).get("device", "none") != "none"
    ]
    return ", ".join([*words, *([f"{' and '.join(parts)} on the host"] if parts else [])])


def usable(device: Device) -> int:
    """Bytes of a device that a run may count on."""
    return int((device.memory - RESERVED) * (1 - FRAGMENTED))


def fits(need: Memory, device: Device) -> bool:
    """Whether a rank has that much, and its host so much of what is moved there."""
    on_host = device.host is None or need.host <= _OF_HOST * device.host
    return need.peak <= usable(device) and on_host


def options(job: Job, device: Device) -> Iterator[Option]:
    """What ``auto`` may choose from, the least of ZeRO first: all that goes with recipe and JSON.

    Lower stages need fewer collectives, and no time of the host for each tensor. That is no order
    of speed: stage 3 communicates beside its passes, which stages 1 and 2 do only if asked to.
    """
    if job.backend == "plain":
        yield Option({"stage": 0}, memory(job, {"stage": 0}))
        return
    bucket = {"reduce_bucket_size": max(1, min(_BUCKET, job.weights.trained))}
    stages: list[dict[str, Any]] = [{"stage": 1}, {"stage": 2}, {"stage": 3}]
    small = {"stage": 3, "sub_group_size": 100_000_000}
    away = {"offload_optimizer": {"device": "cpu"}}
    settings = [{"stage": 0}, *({**zero, **bucket} for zero in (*stages, small))]
    if not device.is_cpu:
        settings += [{**zero, **bucket, **away} for zero in stages[:2]]
        settings += [{**small, **bucket, **away}]
        settings += [{**small, **bucket, **away, "offload_param": {"device": "cpu"}}]
    for zero in settings:
        if zero["stage"] <= job.most_stage and honours(job.values, zero):
            yield Option(zero, memory(job, zero))


def choose(job_of: JobOf, split: Split, device: Device) -> Option:
    """The first option that fits.

    Raises:
        ResourceError: none does; it says what would.
    """
    room = usable(device)
    found = list(options(job_of(split), device))
    for option in found:
        if fits(option.memory, device):
            return option
    least = min(found, key=lambda option: option.memory.peak)
    told = recomputing_would(job_of, split, device)
    msg = (
        f"it does not fit {device.title}: at the least, with {least.title}, a rank needs "
        f"{gib(least.memory.peak)} of {gib(room)} GiB ({gib(device.memory)} less "
        f"{gib(RESERVED)} for the driver and {FRAGMENTED:.0%} lost between blocks)"
        f"{beside(least.memory, device)}; {_what_would(job_of, split, device)}"
        f"{f'; {told}' if told else ''}"
    )
    raise ResourceError(msg, Cause("memory"))


def beside(need: Memory, device: Device) -> str:
    """What of its host's memory a rank needs, where that is known to be too little."""
    if device.host is None or need.host <= _OF_HOST * device.host:
        return ""
    return (
        f" and {gib(need.host)} of the {gib(_OF_HOST * device.host)} GiB that it may use of its "
        f"host's memory ({_OF_HOST:.0%} of its share)"
    )


def recomputing_would(
    job_of: JobOf, split: Split, device: Device, asked: Mapping[str, Any] | None = None
) -> str | None:
    """What fits on the device itself if every layer is recomputed; None: nothing, or it is so.

    Args:
        job_of: see ``choose``.
        split: as the recipe has it.
        device: what a rank computes on.
        asked: settings that are tried before those of ``auto``.
    """
    if split.recomputed_every == 1:
        return None
    job = job_of(replace(split, recomputed_every=1))
    found = list(options(job, device))
    if asked is not None:
        found.insert(0, Option(asked, memory(job, asked)))
    for option in found:
        if not option.is_on_host and fits(option.memory, device):
            return f"with activation_checkpointing: {{every: 1}} {option.title} fits on the device"
    return None


def _what_would(job_of: JobOf, split: Split, device: Device) -> str:
    """Of smaller micro-batches, recomputing and more ranks: what makes it fit by itself."""

    def would(changed: Split) -> bool:
        return any(fits(option.memory, device) for option in options(job_of(changed), device))

    global_rows = job_of(split).accumulation * split.micro_batch * split.world
    found = []
    smaller = [n for n in range(split.micro_batch - 1, 0, -1) if split.micro_batch % n == 0]
    if rows := next((n for n in smaller if would(replace(split, micro_batch=n))), None):
        found.append(f"train_micro_batch_size_per_gpu: {rows}")
    if split.recomputed_every != 1 and would(replace(split, recomputed_every=1)):
        found.append("activation_checkpointing: {every: 1}")
    elif split.recomputed_every != 1 and smaller:
        least = replace(split, micro_batch=1, recomputed_every=1)
        if not found and would(least):
            found.append(
                "train_micro_batch_size_per_gpu: 1 with activation_checkpointing: {every: 1}"
            )
    more = (n for n in range(split.world + 1, min(_MOST_RANKS, global_rows) + 1))
    possible = (n for n in more if global_rows % (n * split.micro_batch) == 0)
    if ranks := next((n for n in possible if would(replace(split, world=n))), None):
        found.append(f"{ranks} ranks")
    if not found:
        return "neither a smaller micro-batch nor recomputing nor more ranks would make it fit"
    return f"what would fit: {', or '.join(found)}"


def resolve(
    values: Mapping[str, Any], job_of: JobOf, split: Split, device: Device
) -> tuple[dict[str, Any], Option | None]:
    """The JSON with ZeRO settings in the place of "auto", and the choice; None if it had its own.

    Raises:
        ResourceError: nothing fits.
    """
    if values.get("zero_optimization") != AUTO:
        return dict(values), None
    option = choose(job_of, split, device)
    return {**values, "zero_optimization": dict(option.zero)}, option


def warning(job: Job, zero: Mapping[str, Any], device: Device) -> str | None:
    """Of a stage 3 that is not needed."""
    if zero.get("stage") != 3 or job.weights.all >= _WORTH_STAGE_3:
        return None
    lower = (o for o in options(job, device) if int(o.zero["stage"]) < 3)
    fitting = next((o for o in lower if fits(o.memory, device)), None)
    if fitting is None:
        return None
    return (
        f"ZeRO stage 3 spends about half a millisecond a tensor and step on the host, which "
        f"models below 2 billion parameters seldom win back; {fitting.title} fits, too"
    )


def gib(count: float) -> str:
    """Bytes in GiB, in three digits or whole."""
    return f"{count / GIB:.3g}" if count < 999 * GIB else f"{count / GIB:,.0f}"
