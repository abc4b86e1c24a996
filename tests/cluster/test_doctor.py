"""What doctor says of real hosts, each broken in one way, through real ssh."""

import importlib.metadata
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.hosts import ROOT, Cluster, cluster

pytestmark = pytest.mark.cluster
_LIMIT = 10.0
"""Seconds for the checks of four hosts; starting Python on a busy machine is allowed for below."""


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(4, tmp_path_factory.mktemp("hosts")) as made:
        yield made


@pytest.fixture
def run_folder(four: Cluster) -> Iterator[Path]:
    folder = four.folder / "run"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def doctor(
    hosts: Cluster, *words: str, file: Path | None = None, **environment: str
) -> tuple[int, dict[str, Any]]:
    done = hosts.hosts[0].run(
        [sys.executable, "-m", "launcher", "doctor", "--json", "--hostfile",
         str(file or hosts.hostfile()), "--run", str(hosts.folder / "run"), *words],
        **environment,
    )  # fmt: skip
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def wrong(told: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Without what this machine's smallness makes of it."""
    beside = {"memory", "disk space", "disk speed", "CPU operator"}
    return [
        (finding["check"], finding["where"], finding["what"])
        for finding in told["findings"]
        if finding["severity"] != "ok" and finding["check"] not in beside
    ]


def light(hosts: Cluster, *words: str, **more: Any) -> tuple[int, list[tuple[str, str, str]]]:
    code, told = doctor(hosts, "--no-collectives", *words, **more)
    return code, wrong(told)


def test_healthy_hosts_are_ready_and_every_pair_is_timed(four, run_folder):
    code, told = doctor(four)
    # Which of several hosts on one machine is quick, its load decides.
    assert (code, [what for what in wrong(told) if what[0] != "pace"]) == (0, [])
    names = [pair["hosts"] for pair in told["collectives"]["pairs"]]
    assert sorted(names) == [
        [f"node-{a}", f"node-{b}"] for a in range(1, 5) for b in range(a + 1, 5)
    ]
    assert all(pair["bandwidth"] > 1e6 for pair in told["collectives"]["pairs"])
    assert told["collectives"]["all"]["bandwidth"] > 1e6
    assert not list(run_folder.iterdir())


def test_a_slow_host_is_named(four, run_folder):
    four.hosts[2].slow("50mbit")
    try:
        code, told = doctor(four)
    finally:
        four.hosts[2].do("tc", "qdisc", "del", "dev", "eth0", "root")
    told_of = {where: what for check, where, what in wrong(told) if check == "pace"}
    assert code == 0
    assert told_of["node-3"].startswith("is slow to every other host: ")
    assert not {"node-1", "node-2", "node-4"} & set(told_of)


def test_a_host_that_is_off_and_one_whose_link_is_cut_and_one_unknown_are_named(four, run_folder):
    four.hosts[1].power_off()
    four.hosts[2].cut()
    file = four.folder / "stale"
    file.write_text("".join(f"{name} slots=1\n" for name in ("node-1", "node-2", "node-3", "gone")))
    start = time.monotonic()
    try:
        code, found = light(four, file=file)
    finally:
        four.hosts[1].boot()
        four.hosts[2].mend()
    assert code == 1
    assert [(check, where) for check, where, _ in found] == [
        ("ssh", "node-2"), ("ssh", "node-3"), ("ssh", "gone"),
    ]  # fmt: skip
    assert found[2][2] == "its name cannot be resolved"
    assert time.monotonic() - start < 3 * _LIMIT


def test_a_folder_that_one_host_does_not_share_is_found(four, run_folder):
    four.hosts[3].hide(run_folder)
    try:
        code, found = light(four)
    finally:
        four.hosts[3].bare(run_folder)
    assert code == 1
    assert ("shared folder", "node-4") in [(check, where) for check, where, _ in found]
    assert {where for _, where, _ in found} == {"node-4"}


def test_a_blocked_port_of_rank_0_is_found(four, run_folder):
    four.hosts[0].block(29777)
    try:
        code, found = light(four, "--master-port", "29777")
    finally:
        four.hosts[0].unblock(29777)
    assert code == 1
    assert [(check, where) for check, where, _ in found] == [
        ("connections", f"node-{n} -> node-1") for n in (2, 3, 4)
    ]
    assert "29777" in found[0][2]
    assert light(four, "--master-port", "29777") == (0, [])


def test_other_versions_and_other_code_are_found(four, run_folder):
    site = Path(importlib.metadata.distribution("numpy").locate_file(""))
    version = importlib.metadata.version("numpy")
    installed = next(site.glob("numpy-*.dist-info"))
    other = four.folder / "numpy-info"
    shutil.copytree(installed, other)
    metadata = (other / "METADATA").read_text()
    (other / "METADATA").write_text(metadata.replace(f"Version: {version}", "Version: 0.9.9", 1))
    code_file = ROOT / "launcher" / "spared.py"
    edited = four.folder / "spared.py"
    edited.write_text(code_file.read_text() + "# edited\n")
    four.hosts[1].overlay(installed, other)
    four.hosts[2].overlay(code_file, edited)
    try:
        code, found = light(four)
    finally:
        four.hosts[1].bare(installed)
        four.hosts[2].bare(code_file)
    assert code == 1
    assert [(check, where) for check, where, _ in found] == [
        ("same versions", "node-3"), ("same versions", "node-2"),
    ]  # fmt: skip
    assert found[0][2].startswith("our code is ")
    assert found[1][2].startswith("numpy is 0.9.9")


def test_a_small_shared_memory_and_an_own_name_on_loopback_are_found(four, run_folder):
    four.hosts[1].do("mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", "/dev/shm")
    names = four.folder / "hosts-of-3"
    text = (four.folder / "hosts").read_text()
    names.write_text(text.replace("10.77.0.3 node-3", "127.0.1.1 node-3"))
    four.hosts[2].overlay(Path("/etc/hosts"), names)
    try:
        code, found = light(four, file=four.hostfile(slots=2))
    finally:
        four.hosts[1].bare(Path("/dev/shm"))
        four.hosts[2].bare(Path("/etc/hosts"))
    assert code == 0
    assert [(check, where) for check, where, _ in found] == [
        ("own names", "node-3"), ("shared memory", "node-2"),
    ]  # fmt: skip


def test_one_machine_by_two_names_and_an_interface_that_is_not_there(four, run_folder):
    file = four.folder / "double"
    file.write_text("node-1 slots=1\nnode-2 slots=1\n10.77.0.2 slots=1\n")
    code, found = light(four, file=file)
    assert (code, [(check, where) for check, where, _ in found]) == (
        1, [("one name a machine", "10.77.0.2")],
    )  # fmt: skip
    code, found = light(four, GLOO_SOCKET_IFNAME="ib0")
    assert (code, {check for check, *_ in found}) == (1, {"interfaces"})
    assert {where for _, where, _ in found} == {f"node-{n}" for n in range(1, 5)}


def test_a_host_key_that_changed_is_told_from_one_that_is_unknown(four, run_folder):
    known = four.folder / "known_hosts"
    kept = known.read_text()
    lines = kept.splitlines()
    other = four.folder / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)], check=True)
    strange = other.with_suffix(".pub").read_text().split()[:2]
    changed = " ".join([lines[1].split()[0], *strange])
    known.write_text("\n".join([lines[0], changed, lines[3]]) + "\n")
    try:
        code, found = light(four)
    finally:
        known.write_text(kept)
    assert code == 1
    assert [(where, what) for _, where, what in found] == [
        ("node-2", "its ssh host key has changed"),
        ("node-3", "its ssh host key is not known here"),
    ]


def test_who_does_not_come_to_rank_0_is_named_with_its_address(four, run_folder):
    # The port is chosen after the light checks, so nothing has tried it before.
    script = four.folder / "meet.py"
    script.write_text(
        "import json, os\n"
        "from launcher.doctor.examine import launch_values\n"
        "from launcher.doctor.trials import Meeting, collectives\n"
        "values = launch_values({'DS_ACCELERATOR': 'cpu'}, os.environ)\n"
        "from launcher.hosts import SSH\n"
        "ways = {name: [*SSH, name] for name in ('node-1', 'node-2')}\n"
        "print(json.dumps(collectives(Meeting([*ways], '10.77.0.1', 29778, values, ways))))\n"
    )
    four.hosts[0].block(29778)
    try:
        done = four.hosts[0].run([sys.executable, str(script)])
    finally:
        four.hosts[0].unblock(29778)
    told = json.loads(done.stdout)
    assert told["place"] == "10.77.0.1:29778"
    assert told["came"] == {"node-1": "called", "node-2": "started"}
    assert set(told["errors"]) == {"node-1", "node-2"}
