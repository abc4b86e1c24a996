"""How long an optimizer step takes, by arithmetic: compute, communication and the update.

Pure. Rings as in Thakur et al. (2005): each of a collective's rounds is a hop, and its bytes pass
the slowest link. Large groups reduce small messages along a tree, as NCCL does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, log2
from typing import Any

from engine.communication import Collective, communication
from engine.planner import Job, Widths, state_bytes

_BACKWARD = 2 / 3
"""Of a pass forward and backward."""
_ROUNDS = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1, "reduce": 1}


@dataclass(frozen=True, slots=True)
class Link:
    """What a rank sends over.

    Attributes:
        bandwidth: bytes a second in one direction.
        latency: seconds until a small message has arrived.
    """

    bandwidth: float
    latency: float


@dataclass(frozen=True, slots=True)
class Network:
    """Hosts of equally many ranks.

    Attributes:
        within: between two ranks of a host.
        between: of a whole host to the others: its ranks share it.
        scatters: whether a reduce-scatter leaves each rank its own part alone; gloo reduces
            everything for everyone, and drops the rest.
    """

    within: Link
    between: Link
    hosts: int
    ranks_per_host: int
    scatters: bool = True

    @property
    def ranks(self) -> int:
        """Of all hosts."""
        return self.hosts * self.ranks_per_host


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A device that communicates while it computes, where ``overlap_comm`` asks for it.

    Attributes:
        memory_rate: bytes/s between it and its memory, for the optimizer's update; infinite: that
            is in the ``rate`` already.
        host: seconds that the host needs to start a step's kernels, which no pass is faster than.
    """

    memory_rate: float
    host: float = 0.0


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of one optimizer step.

    Attributes:
        compute: of all forward and backward passes.
        communication: of all collectives, hidden or not; without the vote, which is beside it.
        update: of the optimizer; 0 on a CPU.
        total: with what is hidden counted once.
    """

    compute: float
    communication: float
    update: float
    total: float


def collective_seconds(collective: Collective, network: Network) -> float:
    """Of all its calls, one after the other; 0 on one rank."""
    ranks = network.ranks
    if ranks == 1 or not collective.calls:
        return 0.0
    is_local = network.hosts == 1
    narrowest = network.within if is_local else network.between
    bandwidth = min(narrowest.bandwidth, network.within.bandwidth)
    if network.ranks_per_host == 1:
        bandwidth = network.between.bandwidth
    rounds = _rounds(collective, network)
    ring = rounds * (
        collective.calls * _hops(network) + (ranks - 1) / ranks * collective.bytes / bandwidth
    )
    if collective.kind not in {"all_reduce", "reduce"}:
        return ring
    tree = rounds * (collective.calls * _levels(network) + collective.bytes / bandwidth)
    return min(ring, tree)


def _rounds(collective: Collective, network: Network) -> int:
    """How often a part of it goes around the ring."""
    is_whole = collective.kind == "reduce_scatter" and not network.scatters
    return _ROUNDS["all_reduce" if is_whole else collective.kind]


def sent_bytes(collective: Collective, network: Network) -> float:
    """What one rank sends for all its calls, along a ring."""
    ranks = network.ranks
    return _rounds(collective, network) * (ranks - 1) / ranks * collective.bytes


def _hops(network: Network) -> float:
    """Latency once around a ring that enters each host once."""
    ranks, hosts = network.ranks, network.hosts
    crossing = min(hosts, ranks - 1) if hosts > 1 else 0
    return crossing * network.between.latency + (ranks - 1 - crossing) * network.within.latency


def _levels(network: Network) -> float:
    """Latency down a tree of hosts, and of the ranks in each."""
    depths = [ceil(log2(count)) for count in (network.hosts, network.ranks_per_host)]
    return depths[0] * network.between.latency + depths[1] * network.within.latency


def step_time(
    job: Job,
    zero: Mapping[str, Any],
    flops: float,
    rate: float,
    network: Network,
    accelerator: Accelerator | None = None,
) -> StepTime:
    """What a step of all ranks takes.

    Args:
        job: with the weights, the ranks and the accumulation.
        zero: DeepSpeed's ``zero_optimization`` settings.
        flops: of one rank's forward and backward passes in a step, recomputing included.
        rate: FLOP/s that a rank really reaches.
        network: of as many ranks as the job has.
        accelerator: None: a CPU, whose ``rate`` was measured over whole steps: the update is in it,
            and nothing is computed while ranks communicate.
    """
    compute = max(flops / rate, accelerator.host if accelerator else 0.0)
    update = update_bytes(job, zero) / accelerator.memory_rate if accelerator else 0.0
    seconds = {
        call: collective_seconds(call, network)
        for call in communication(job, zero)
        if call.purpose != "vote"
    }
    whole = sum(seconds.values())
    hidden = 0.0
    if accelerator and zero.get("overlap_comm", zero.get("stage") == 3):
        hidden = _hidden(job, zero, compute, seconds)
    return StepTime(compute, whole, update, compute + whole + update - hidden)


def _hidden(
    job: Job, zero: Mapping[str, Any], compute: float, seconds: Mapping[Collective, float]
) -> float:
    """Seconds of communication that go on while passes are computed.

    Gradients while a backward pass goes on, of which stage 1 has only the last micro-batch's;
    at stage 3 weights, too, in all passes.
    """
    stage = int(zero.get("stage", 0))
    if stage == 0 or job.backend == "plain":
        return 0.0
    purposes = {"gradients", "weights"} if stage == 3 else {"gradients"}
    beside = sum(time for call, time in seconds.items() if call.purpose in purposes)
    passes = {1: _BACKWARD / job.accumulation, 2: _BACKWARD, 3: 1.0}[stage]
    return min(beside, passes * compute)


def update_bytes(job: Job, zero: Mapping[str, Any]) -> int:
    """What the optimizer reads and writes of a rank's memory: gradients, weights, states."""
    widths, weights = Widths.of(job.values), job.weights
    ranks = 1 if job.backend == "plain" or not zero.get("stage") else job.world
    states = state_bytes(job, widths, [sum(group.tensors) for group in weights.groups])
    low = widths.weight if widths.weight != widths.master else 0
    moved = (widths.gradient + 2 * widths.master + low) * weights.trained + 2 * states
    return ceil(moved / ranks)
