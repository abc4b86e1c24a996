"""What the planner says of a case, given the cable as it was gauged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.two_hosts.cases import FREE, LARGE, LENGTH, SHAPE, Case

if TYPE_CHECKING:
    from engine.planner import Job
    from engine.step_time import Network

HOSTS = 2


@dataclass(frozen=True, slots=True)
class Figures:
    """One case at one rate.

    Attributes:
        predicted, measured: seconds of a step.
        communication: of ``predicted``, seconds.
        planned_bytes, sent_bytes: that leave a host in a step.
        bandwidth: of the cable, bytes/s of what is exchanged, headers not counted.
    """

    predicted: float
    measured: float
    communication: float
    planned_bytes: float
    sent_bytes: float
    bandwidth: float

    @property
    def ratio(self) -> float:
        """Predicted over measured."""
        return self.predicted / self.measured


def figures(found: Mapping[str, Any]) -> dict[str, Figures]:
    """By rate: what was measured, and what the planner says.

    The free cable tells how fast a rank computes: a step there, less the exchanges planned. Each
    rate's bandwidth and latency are those of all-reduces beside its steps.
    """
    from engine.step_time import step_time

    case = Case(**found["case"])
    job, zero = _job(case), case.deepspeed(HOSTS)["zero_optimization"]
    free = found["seen"][FREE]
    exchanged = step_time(job, zero, 1.0, 1.0, _network(free)).communication
    compute = max(median(free["steps"]) - exchanged, 1e-9)
    made = {}
    for rate, seen in found["seen"].items():
        network = _network(seen)
        planned = step_time(job, zero, found["flops"], found["flops"] / compute, network)
        made[rate] = Figures(
            planned.total,
            median(seen["steps"]),
            planned.communication,
            _sent(job, zero, network),
            median(seen["sent"]),
            network.between.bandwidth,
        )
    del made[FREE]
    return made


def _network(seen: Mapping[str, Sequence[float]]) -> "Network":
    """The cable as all-reduces of two ranks, large and small, found it."""
    from engine.step_time import Link, Network

    small, large = median(seen["small"]), median(seen["large"])
    # Of two ranks each sends in two rounds half of the tensor.
    link = Link(4 * LARGE / max(large - small, 1e-9), small / 2)
    return Network(link, link, hosts=HOSTS, ranks_per_host=1, scatters=False)


def _sent(job: "Job", zero: Mapping[str, Any], network: "Network") -> float:
    from engine.communication import communication
    from engine.step_time import sent_bytes

    return sum(sent_bytes(each, network) for each in communication(job, zero))


def _job(case: Case) -> "Job":
    """As ``onward plan`` makes it of a recipe's stage."""
    from configs.devices import find_device
    from engine.parameter_shapes import model_shape
    from engine.pretraining import PretrainStage
    from engine.stage_memory import asked_split, job_of, weights_of

    values = {key: value for key, value in SHAPE.items() if key != "vocab_size"}
    stage = PretrainStage.model_validate(
        {
            "kind": "pretrain",
            "model": {"name": "random", "shape": values, "tokenizer": "made up"},
            "data": {"length": LENGTH, "sources": {"made up": {"shards": "made up"}}},
            "objective": {"name": "mlm"},
            "optimizer": {"name": "adamw", "lr": 1e-4},
            "schedule": {"name": "linear"},
            "steps": 1,
            "backend": {"name": "deepspeed", "config": case.deepspeed(HOSTS)},
            "checkpoint": {"every": 1},
        }
    )
    shape = model_shape(dict(SHAPE), "masked_lm")
    jobs = job_of(stage, shape, weights_of(stage, shape), find_device("cpu"))
    return jobs(asked_split(stage, HOSTS))
