"""Step times against those worked out by hand."""

import pytest

from engine.activations import Pass
from engine.communication import Collective
from engine.planner import Group, Job, Weights
from engine.step_time import (
    Accelerator,
    Link,
    Network,
    collective_seconds,
    step_time,
    update_bytes,
)

FAST, SLOW = Link(1e9, 1e-6), Link(1e6, 1e-3)
WEIGHTS = Weights((Group((1_000_000,)), Group((8,))))
BF16 = {"bf16": {"enabled": True}, "gradient_clipping": 1.0}


def network(hosts: int, ranks: int) -> Network:
    return Network(FAST, SLOW, hosts, ranks)


def job(world: int, accumulation: int = 1) -> Job:
    return Job(WEIGHTS, BF16, world, accumulation, Pass(0, 0, 0, 0))


@pytest.mark.parametrize(
    ("kind", "hosts", "ranks", "seconds"),
    [
        # Twice three hops of 1 us, and 3/4 of 1 MB at 1 GB/s.
        ("all_reduce", 1, 4, 2 * (3e-6 + 0.75e-3)),
        ("all_gather", 1, 4, 3e-6 + 0.75e-3),
        ("reduce_scatter", 1, 4, 3e-6 + 0.75e-3),
        # One rank on each host: one hop, half of 1 MB at 1 MB/s.
        ("all_gather", 2, 1, 1e-3 + 0.5),
        # Four ranks on two hosts: two of three hops leave a host.
        ("all_gather", 2, 2, 2 * 1e-3 + 1e-6 + 0.75),
        ("all_gather", 1, 1, 0.0),
    ],
)
def test_rings(kind: str, hosts: int, ranks: int, seconds: float) -> None:
    call = Collective(kind, 1_000_000, 1, "weights")  # type: ignore[arg-type]  # a literal
    assert collective_seconds(call, network(hosts, ranks)) == pytest.approx(seconds)


def test_each_call_waits_for_its_own_hops() -> None:
    one = collective_seconds(Collective("all_gather", 10**6, 1, "weights"), network(1, 4))
    ten = collective_seconds(Collective("all_gather", 10**6, 10, "weights"), network(1, 4))
    assert ten - one == pytest.approx(9 * 3e-6)


def test_many_hosts_reduce_a_number_along_a_tree() -> None:
    number = Collective("all_reduce", 8, 1, "norm")
    # Nine levels of hosts and three of ranks, up and down.
    levels = 9 * 1e-3 + 3 * 1e-6
    assert collective_seconds(number, network(512, 8)) == pytest.approx(2 * levels, rel=1e-2)


def test_a_step_is_passes_collectives_and_update() -> None:
    found = step_time(job(1), {"stage": 1}, 1e12, 1e13, network(1, 1))
    assert (found.compute, found.communication, found.update, found.total) == (0.1, 0, 0, 0.1)
    gpu = Accelerator(1e9)
    found = step_time(job(2), {"stage": 1}, 1e12, 1e13, network(1, 2), gpu)
    # bf16: the gradient is read (2), the fp32 weight and two moments are read and written (24), and
    # the bf16 weight is written (2), for half of the weights.
    assert update_bytes(job(2), {"stage": 1}) == 28 * 500_004
    assert found.update == pytest.approx(28 * 500_004 / 1e9)
    # All gradients to all, then the weights: 2 MB twice, and once.
    assert found.communication == pytest.approx(3 * 2e6 / 2 / 1e9, rel=0.01)
    assert found.total == found.compute + found.communication + found.update


def test_no_pass_is_faster_than_its_host() -> None:
    gpu = Accelerator(1e9, host=0.5)
    assert step_time(job(1), {"stage": 1}, 1e12, 1e13, network(1, 1), gpu).compute == 0.5
    assert step_time(job(1), {"stage": 1}, 1e13, 1e13, network(1, 1), gpu).compute == 1.0


@pytest.mark.parametrize(
    ("zero", "hidden"),
    [
        ({"stage": 1}, 0.0),
        # Gradients of 2 MB over 1 MB/s: two seconds, beside two thirds of the last of two passes.
        ({"stage": 1, "overlap_comm": True}, 1 / 3),
        ({"stage": 2, "overlap_comm": True}, 2 / 3),
        # Stage 3 asks for it by itself, and gathers ahead in both directions.
        ({"stage": 3}, 1.0),
        ({"stage": 3, "overlap_comm": False}, 0.0),
    ],
)
def test_what_is_hidden_counts_once(zero: dict[str, object], hidden: float) -> None:
    given = (job(2, accumulation=2), zero, 1e13, 1e13, network(2, 1))
    found = step_time(*given, Accelerator(1e9))
    apart = found.compute + found.communication + found.update
    assert apart - found.total == pytest.approx(hidden)
    on_cpu = step_time(*given)
    assert on_cpu.total == on_cpu.compute + on_cpu.communication
