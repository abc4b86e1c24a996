"""How long a stage's steps take on a cluster that is not there: by data sheets and assumptions."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import ceil, inf
from typing import Any

from configs.deepspeed_checks import QUANTIZED
from configs.deepspeed_json import precision
from configs.devices import CPU_BETWEEN, CPU_WITHIN, Device, share_reached
from engine.communication import communication, total_bytes
from engine.flops import Cost, forward_flops, recomputed_flops, training_flops
from engine.parameter_shapes import ModelShape
from engine.planner import Job, offloaded
from engine.step_time import Accelerator, Link, Network, StepTime, sent_bytes, step_time
from engine.trained_part import TrainedPart

GPU_LATENCY, CPU_LATENCY = (5e-6, 20e-6), (50e-6, 100e-6)
"""Seconds within a host and between hosts; assumed."""
LAYER_SECONDS, TENSOR_SECONDS = 1e-3, 0.5e-3
"""Of the host: to start a layer's kernels both ways, assumed; ZeRO stage 3's for each tensor."""
_DAY = 86_400


@dataclass(frozen=True, slots=True)
class Cluster:
    """What a run is planned for.

    Attributes:
        rate: FLOP/s of the model, recomputing not counted, that one rank by itself reaches over
            whole steps; None: assumed from the data sheet.
        link: bytes/s of a host to the others; None: as such hosts usually have.
        latency: seconds between hosts; None: assumed.
    """

    hosts: int
    gpus_per_host: int
    device: Device
    rate: float | None = None
    link: float | None = None
    latency: float | None = None

    @property
    def world(self) -> int:
        """How many ranks."""
        return self.hosts * self.gpus_per_host

    def __str__(self) -> str:
        return f"{self.hosts} x {self.gpus_per_host} {self.device.title}"

    def of(self, ranks: int) -> "Cluster":
        """The same with another number of ranks, on hosts that are filled one after the other."""
        on_each = min(ranks, self.gpus_per_host)
        return replace(self, hosts=ceil(ranks / on_each), gpus_per_host=on_each)

    def network(self, ranks: int) -> Network:
        """Of so many of its ranks."""
        speeds = self.device.speeds
        inside, outside = GPU_LATENCY if speeds else CPU_LATENCY
        within = Link(speeds.within if speeds else CPU_WITHIN, inside)
        part = self.of(ranks)
        usual = speeds.of_host(part.gpus_per_host) if speeds else CPU_BETWEEN
        between = Link(self.link or usual, outside if self.latency is None else self.latency)
        return Network(within, between, part.hosts, part.gpus_per_host, scatters=speeds is not None)


@dataclass(frozen=True, slots=True)
class Work:
    """What a stage computes.

    Attributes:
        cost: FLOPs a token and a target.
        again: FLOPs a token that are computed a second time.
        length: tokens in a row.
        targets: share of a row's positions that are predicted.
        width: of the residual stream.
        layers: of them; a teacher's count a third, as they are not passed backward.
        teacher: FLOPs a token and a target of its forward passes; None: there is none.
    """

    cost: Cost
    again: float
    length: int
    targets: float
    width: int
    layers: float
    teacher: Cost | None = None

    def flops(self, rows: int) -> float:
        """Of the model, for so many rows; neither recomputing nor a teacher is counted."""
        return rows * self.length * (self.cost.token + self.targets * self.cost.target)

    def done(self, rows: int) -> float:
        """With what is recomputed, and the teacher."""
        teacher = self.teacher or Cost(0.0, 0.0)
        beside = self.again + teacher.token + self.targets * teacher.target
        return self.flops(rows) + rows * self.length * beside


def work_of(
    shape: ModelShape,
    length: int,
    targets: float,
    part: TrainedPart,
    recomputed_every: int | None,
    teacher: ModelShape | None = None,
) -> Work:
    """Of a stage that trains this model on full rows, and has a teacher read them, too."""
    again = 0.0
    if recomputed_every is not None:
        again = recomputed_flops(shape, length, recomputed_every)
    cost = training_flops(shape, length, part)
    layers: float = shape.sizes.layers
    if teacher is None:
        return Work(cost, again, length, targets, shape.sizes.hidden, layers)
    layers += teacher.sizes.layers / 3
    taught = forward_flops(teacher, length)
    return Work(cost, again, length, targets, shape.sizes.hidden, layers, taught)


class Clock:
    """Tells times on a cluster; None in their place where nothing is known of the device."""

    def __init__(self, cluster: Cluster, work: Work, values: Mapping[str, Any]) -> None:
        """Set up; ``values``: DeepSpeed's JSON."""
        self._cluster = cluster
        self._work = work
        speeds = cluster.device.speeds
        is_full = precision(values) == "fp32"
        self._sheet = None if speeds is None else speeds.full if is_full else speeds.low
        self._kind = "fp32" if is_full else "bf16"
        self._rate = cluster.rate
        if self._rate is None and self._sheet is not None:
            self._rate = self._sheet * share_reached(work.width)

    def step(self, job: Job, zero: Mapping[str, Any], rows: int) -> StepTime | None:
        """Of a step on ``rows`` rows of all ranks; None also where states lie on the host."""
        if self._rate is None or offloaded(zero) != "none":
            return None
        is_measured = self._cluster.rate is not None
        work = self._work.flops(rows) if is_measured else self._work.done(rows)
        return step_time(
            job,
            zero,
            work / job.world,
            self._rate,
            self._cluster.network(job.world),
            self._accelerator(job, zero),
        )

    def _accelerator(self, job: Job, zero: Mapping[str, Any]) -> Accelerator | None:
        """None: a CPU. A rate measured over whole steps has the update and the host in it."""
        speeds = self._cluster.device.speeds
        if speeds is None:
            return None
        if self._cluster.rate is not None:
            return Accelerator(inf)
        return Accelerator(speeds.memory, self._host(job, zero))

    def _host(self, job: Job, zero: Mapping[str, Any]) -> float:
        """Seconds that the host needs to start a step's kernels."""
        layers = LAYER_SECONDS * self._work.layers * job.accumulation
        is_cut = job.backend == "deepspeed" and int(zero.get("stage", 0)) == 3
        return layers + is_cut * TENSOR_SECONDS * len(job.weights.tensors)

    def row(self, job: Job, zero: Mapping[str, Any], rows: int) -> dict[str, Any]:
        """Facts of one option: what a rank sends in a step, in which calls, and the step's time."""
        calls = communication(job, zero)
        taken = self.step(job, zero, rows)
        network = self._cluster.network(job.world)
        sent = (sent_bytes(call, network) for call in calls if call.purpose != "vote")
        facts: dict[str, Any] = {
            "sent": round(sum(sent)),
            "communicated": total_bytes(calls),
            "calls": sum(call.calls for call in calls),
        }
        return facts | ({} if taken is None else {"step_seconds": taken.total})

    def facts(
        self, job: Job, zero: Mapping[str, Any], rows: int, steps: int | None
    ) -> dict[str, Any]:
        """Of the option that the stage will run with."""
        model = self._work.flops(rows)
        facts: dict[str, Any] = {"flops_step": model}
        if steps is not None:
            facts["flops"] = model * steps
        taken = self.step(job, zero, rows)
        if taken is None:
            return facts
        tokens = rows * self._work.length / taken.total
        facts |= {
            "step": {
                "seconds": taken.total,
                "compute": taken.compute,
                "communication": taken.communication,
                "update": taken.update,
            },
            "tokens_second": tokens,
            "tokens_day": tokens * _DAY,
        }
        if self._sheet is not None:
            facts["mfu"] = model / (taken.total * self._sheet * job.world)
        if steps is not None:
            facts["seconds"] = taken.total * steps
            facts["device_hours"] = taken.total * steps * job.world / 3600
        return facts

    def assumed(self, zero: Mapping[str, Any], ranks: int) -> Iterator[str]:
        """What the times of these settings stand on, in sentences."""
        cluster = self._cluster
        if offloaded(zero) != "none":
            yield "no time is told where the optimizer or the weights lie on the host"
            return
        if self._rate is None:
            yield (
                "no time is told for a CPU unless --rate gives the TFLOP/s that a rank reaches; "
                "a run's metrics tell what one reached: tflops"
            )
            return
        rate = f"{self._rate / 1e12:.3g} TFLOP/s a rank"
        if cluster.rate is not None:
            yield (
                f"{rate}, as given: FLOPs of the model over whole steps, recomputing not counted, "
                "taken as measured on one rank by itself with the same recomputing; the update is "
                "in it, communication is added"
            )
        elif self._sheet is not None:
            share = self._rate / self._sheet
            yield (
                f"{rate}: {share:.0%} of the data sheet's {self._sheet / 1e12:.0f} in "
                f"{self._kind} in forward and backward passes, recomputing included, which is "
                "assumed; --rate takes what you measured"
            )
        yield from self._passes()
        yield from self._links(ranks)
        if any(zero.get(key) for key in QUANTIZED):
            yield "what ZeRO++ sends in fewer bits is counted in all of them"
        if zero.get("zero_hpz_partition_size", 1) > 1:
            yield "what ZeRO++ gathers within a host is counted as from all hosts"
        yield "not in it: validation, checkpoints, start-up, waiting for data"

    def _passes(self) -> Iterator[str]:
        """Of forward and backward passes, beside their FLOPs."""
        if self._work.teacher is not None:
            yield (
                "the teacher's forward passes are in the time (in a rate that is given, too), but "
                "not in the FLOPs"
            )
        if self._cluster.device.speeds and self._cluster.rate is None:
            yield (
                f"the host needs {LAYER_SECONDS * 1e3:g} ms a layer and micro-batch to start the "
                f"kernels (assumed), and at ZeRO stage 3 {TENSOR_SECONDS * 1e3:g} ms a tensor: "
                "a step takes no less, however small the model"
            )

    def _links(self, ranks: int) -> Iterator[str]:
        network = self._cluster.network(ranks)
        if ranks == 1:
            return
        if network.ranks_per_host > 1:
            within = network.within
            yield (
                f"{within.bandwidth / 1e9:,.3g} GB/s and {within.latency * 1e6:.3g} microseconds "
                f"between ranks of a host, {self._origin(is_given=False)}"
            )
        if network.hosts > 1:
            between = network.between
            is_given = self._cluster.link is not None
            yield (
                f"{between.bandwidth * 8 / 1e9:,.4g} Gbit/s of a host and "
                f"{between.latency * 1e6:.3g} microseconds between hosts, "
                f"{self._origin(is_given=is_given)}; --link and --latency take others"
            )

    def _origin(self, *, is_given: bool) -> str:
        """Where a link's bandwidth comes from."""
        if is_given:
            return "as given, all of it"
        return "data sheet, all of it" if self._cluster.device.speeds else "assumed, all of it"
