"""The hosts that the other tests here stand on keep their own promises."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.hosts import Cluster, ClusterHost, cluster, wait_until

pytestmark = pytest.mark.cluster
_BOTH = "node-1,node-2"
_OPENS = "exec 3<>/dev/tcp/node-2/9000"


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(2, tmp_path_factory.mktemp("hosts")) as made:
        yield made


def names(host: ClusterHost, others: str = _BOTH) -> set[str]:
    done = host.run(["pdsh", "-u", "10", "-t", "3", "-w", others, "hostname"])
    return set(done.stdout.splitlines())


def reaches(host: ClusterHost) -> bool:
    return host.run(["timeout", "2", "bash", "-c", _OPENS]).returncode == 0


def test_each_enters_each_without_a_question(two):
    for host in two.hosts:
        assert names(host) == {"node-1: node-1", "node-2: node-2"}
        for other in two.hosts:
            strict = ["ssh", "-oBatchMode=yes", "-oStrictHostKeyChecking=yes"]
            assert host.run([*strict, other.address, "hostname"]).stdout == f"{other.name}\n"


def test_memory_processes_and_the_private_folder_are_its_own_and_the_rest_is_shared(two):
    first, second = two.hosts
    for folder in ("/dev/shm", "/run", two.private):
        first.run(["touch", f"{folder}/mine"])
        assert second.run(["test", "-e", f"{folder}/mine"]).returncode == 1
        assert not Path(folder, "mine").exists()
    first.run(["touch", str(two.folder / "ours")])
    assert second.run(["test", "-e", str(two.folder / "ours")]).returncode == 0
    sleeping = first.start(["sleep", "600"], two.folder / "log")
    wait_until(lambda: first.run(["pgrep", "sleep"]).returncode == 0, 10, "it sleeps")
    assert second.run(["pgrep", "sleep"]).returncode == 1
    sleeping.kill()
    assert sleeping.wait(10) == -signal.SIGKILL
    assert first.run(["pgrep", "sleep"]).returncode == 1


def test_a_port_can_be_blocked_from_others_alone(two):
    first, second = two.hosts
    server = [sys.executable, "-m", "http.server", "9000"]
    listening = second.start(server, two.folder / "server.log")
    wait_until(lambda: reaches(first), 20, "the server listens")
    second.block(9000)
    assert not reaches(first)
    assert reaches(second)
    second.unblock(9000)
    assert reaches(first)
    listening.terminate()
    listening.wait(10)


def test_a_cut_cable_is_silent_until_it_is_mended(two):
    first, second = two.hosts
    second.cut()
    assert names(first) == {"node-1: node-1"}
    second.mend()
    assert names(first) == {"node-1: node-1", "node-2: node-2"}


def test_power_off_ends_everything_at_once_and_boot_brings_it_back(two):
    first, second = two.hosts
    sleeping = second.start(["sleep", "600"], two.folder / "log")
    second.power_off()
    assert sleeping.returncode == -signal.SIGKILL
    assert names(first) == {"node-1: node-1"}
    second.boot()
    assert names(first) == {"node-1: node-1", "node-2: node-2"}
    assert second.run(["pgrep", "sleep"]).returncode == 1


def test_files_can_be_hidden_or_others_on_one_host(two):
    first, second = two.hosts
    shared, other = two.folder / "shared", two.folder / "other"
    for folder in (shared, other):
        folder.mkdir()
        (folder / folder.name).touch()
    second.hide(shared)
    assert second.run(["ls", str(shared)]).stdout == ""
    second.bare(shared)
    second.overlay(shared, other)
    assert second.run(["ls", str(shared)]).stdout == "other\n"
    assert first.run(["ls", str(shared)]).stdout == "shared\n"
    second.bare(shared)


def test_a_command_that_takes_too_long_is_killed(two):
    with pytest.raises(subprocess.TimeoutExpired):
        two.hosts[0].run(["sleep", "600"], timeout=0.5)
    assert two.hosts[0].run(["pgrep", "sleep"]).returncode == 1


def test_clusters_side_by_side_do_not_meet(two, tmp_path):
    with cluster(1, tmp_path / "other") as other:
        assert other.hosts[0].address == two.hosts[0].address
        assert names(other.hosts[0], "node-1") == {"node-1: node-1"}
        ping = ["timeout", "2", "bash", "-c", "exec 3<>/dev/tcp/10.77.0.2/22"]
        assert other.hosts[0].run(ping).returncode != 0
        assert names(two.hosts[0]) == {"node-1: node-1", "node-2: node-2"}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_the_process_that_made_them(tmp_path, number):
    code = (
        "import sys, time; from pathlib import Path; from tests.cluster.hosts import cluster\n"
        "with cluster(2, Path(sys.argv[1])) as made:\n"
        "    made.hosts[0].start(['sleep', '6001'], made.folder / 'log')\n"
        "    print('up', flush=True); time.sleep(600)\n"
    )
    maker = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "made")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert maker.stdout is not None
    assert maker.stdout.readline() == "up\n"
    assert running(str(tmp_path))
    maker.send_signal(number)
    maker.wait(20)
    maker.stdout.close()
    wait_until(lambda: not running(str(tmp_path)), 10, "all its processes have ended")


def running(word: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_text())
        except OSError:
            continue
    return [line for line in found if word in line]
