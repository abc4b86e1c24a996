"""Two hosts on one machine: what they need, that they go again, and what is made of their times."""

import os
import shutil
import subprocess
import sys
from contextlib import suppress

import pytest

from benchmarks import two_hosts as benchmark
from benchmarks.two_hosts import hosts
from benchmarks.two_hosts.cases import CASES, FREE, LARGE, RATES, Case
from benchmarks.two_hosts.predicted import figures
from configs.errors import ResourceError

COMPUTE = 0.05


def can_make_hosts() -> bool:
    try:
        with hosts.two_hosts():
            return True
    except ResourceError:
        return False


def test_missing_tools_and_rights_are_named(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ResourceError, match="no ip and no tc here; install iproute2"):
        hosts.require_tools()
    monkeypatch.setattr(shutil, "which", lambda name: f"/sbin/{name}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ResourceError, match="need root"):
        hosts.require_tools()


def test_without_hosts_the_row_says_why(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    row = benchmark.measure()
    assert (row["id"], row["value"], row["reached"]) == ("P14", None, False)
    assert "two hosts" in row["details"][0]["not measured"]


@pytest.mark.skipif(not can_make_hosts(), reason="needs root and network namespaces")
def test_hosts_reach_one_another_and_are_gone_afterwards(tmp_path):
    code = (
        "import socket\n"
        "from benchmarks.two_hosts.hosts import *\n"
        "shape('100mbit'); shape(None); shape('400mbit')\n"
        "before = sent_bytes()\n"
        "with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:\n"
        "    made.sendto(b'x' * 1000, (ADDRESSES[1], 9))\n"
        "assert sent_bytes() >= before + 1000\n"
    )
    names: list[str] = []
    with suppress(KeyError), hosts.two_hosts() as (first, second):
        names += [first.name, second.name]
        log = tmp_path / "log"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        started = first.start([sys.executable, "-c", code], environment, log)
        assert started.wait(60) == 0, log.read_text()
        raise KeyError
    assert len(names) == 2
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    assert not any(name in listed.stdout for name in names)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.stage}-{case.precision}")
def test_a_cable_as_planned_gives_the_time_that_is_predicted(case: Case):
    found = {"case": case.to_json(), "flops": 1e9, "seen": seen(case, 1e7)}
    for made in figures(found).values():
        assert made.ratio == pytest.approx(1.0, rel=1e-6)
        assert made.predicted - made.communication == pytest.approx(COMPUTE, rel=1e-6)
    # Bytes that are not planned show in the step, and not in what is predicted.
    more = {"case": case.to_json(), "flops": 1e9, "seen": seen(case, 1e7, extra=0.5)}
    assert all(made.ratio < 0.8 for made in figures(more).values())


def test_what_is_planned_to_be_sent_is_the_rings_share():
    weights = figures({"case": CASES[0].to_json(), "flops": 1.0, "seen": seen(CASES[0], 1e7)})
    sent = {made.planned_bytes for made in weights.values()}
    assert len(sent) == 1
    # Gradients in fp32 once around: 2.2 million of 4 bytes, and a few numbers.
    assert 8.8e6 < sent.pop() < 9.0e6


def seen(case: Case, bandwidth: float, extra: float = 0.0) -> dict[str, dict[str, list[float]]]:
    """As two ranks would see a cable of exactly such a bandwidth at every rate."""
    from benchmarks.two_hosts.predicted import HOSTS, _job, _network
    from engine.step_time import step_time

    made = {}
    for number, rate in enumerate((FREE, *RATES)):
        one = {"small": [1e-4], "large": [1e-4 + 4 * LARGE / (bandwidth * (1 + number))]}
        zero = case.deepspeed(HOSTS)["zero_optimization"]
        planned = step_time(_job(case), zero, 1.0, 1e9, _network(one)).communication
        more = 0.0 if rate == FREE else extra * (planned + COMPUTE)
        made[rate] = one | {"steps": [planned + COMPUTE + more], "sent": [0.0]}
    return made
