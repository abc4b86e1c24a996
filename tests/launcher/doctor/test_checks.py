"""Each check against hosts that are broken in just that way; of healthy ones it says nothing."""

from pathlib import Path
from typing import Any

import pytest

from launcher.doctor.checks import CHECKS, judge
from launcher.doctor.scene import Needs, Unreached
from launcher.hosts import Host
from tests.launcher.doctor.healthy import GIB, scene

MIB = 1 << 20
LOCK = {"path": "/ext/op/lock", "age": 90.0, "is_held": False}
ETH = {"addresses": ["10.9.0.2"], "is_up": True}


@pytest.fixture(autouse=True)
def _is_node_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "node-1")


def found(broken: Any, check: str) -> list[tuple[str, str, str]]:
    findings = judge(broken)
    bad = [f for f in findings if f.severity != "ok"]
    assert {f.check for f in bad} <= {check}, bad
    assert all(f.remedy for f in bad)
    return [(f.where, f.severity, f.what) for f in bad]


def pairs(*rates: float, latencies: tuple[float, float, float] = (1e-4, 1e-4, 1e-4)) -> Any:
    names = (["node-1", "node-2"], ["node-1", "node-3"], ["node-2", "node-3"])
    return {
        "pairs": [
            {"hosts": hosts, "bandwidth": rate, "latency": late}
            for hosts, rate, late in zip(names, rates, latencies, strict=True)
        ]
    }


def unreached(said: str, code: int | None = 255, asked: str = "start") -> dict[str, Any]:
    return {"unreached": {"node-2": Unreached(asked, said, code)}}


def test_of_healthy_hosts_nothing_is_said() -> None:
    assert all(f.severity == "ok" for f in judge(scene()))
    names = [f.check for f in judge(scene())]
    assert names == [check.name for check in CHECKS if check.name not in {"meeting", "pace"}]
    timed = scene(collectives=pairs(1e9, 0.9e9, 1.1e9))
    assert [f.check for f in judge(timed) if f.severity == "ok"] == [c.name for c in CHECKS]


# check, what is broken (a fact of node-2, or a field of the scene), where, severity, said
TABLE: list[tuple[str, dict[str, Any], dict[str, Any], str, str, str]] = [
    ("one name a machine", {"node-2/machine/identity": ["node-1", "m", "b"]}, {},
     "node-2", "error", "is the same machine as node-1"),
    ("first host", {}, {"hosts": (Host("node-2", 2), Host("node-1", 2))},
     "node-2", "warning", "is not this machine, though the hostfile has it first"),
    ("programs", {}, {"programs": frozenset({"ssh"})},
     "this machine", "error", "there is no pdsh, which --launcher pdsh needs"),
    ("programs", {}, {"programs": frozenset({"ssh"}), "launcher": "slurm"},
     "this machine", "error", "there is no srun"),
    ("programs", {"node-2/software/programs": ["ssh"]}, {"launcher": "openmpi"},
     "node-2", "error", "there is no OpenMPI"),
    ("same versions", {"node-2/software/versions/torch": "2.0"}, {},
     "node-2", "error", "torch is 2.0, on the others 1.0"),
    ("same versions", {"node-2/software/python": "3.12.1"}, {},
     "node-2", "error", "Python is 3.12.1, on the others 3.11.7"),
    ("same versions", {"node-2/software/digest": "d2"}, {},
     "node-2", "error", "our code is d2, on the others d1"),
    ("same versions", {"node-2/software/versions/tokenizers": "2.0"}, {},
     "node-2", "warning", "tokenizers is 2.0"),
    ("same versions", {"node-2/devices/driver": "470"}, {},
     "node-2", "warning", "GPU driver is 470, on the others 550.54"),
    ("same paths", {"node-2/software/code": "/other"}, {},
     "node-2", "error", "our code is read from /other, on the others from /code"),
    ("slots", {"node-2/devices/gpus": 1}, {}, "node-2", "error", "2 slots, but 1 GPU"),
    ("slots", {"node-2/devices/gpus": 4}, {},
     "node-2", "warning", "4 GPUs, but 2 slots: the others stay idle"),
    ("slots", {"node-2/devices/gpus": 0}, {},
     "node-2", "error", "has no GPU that torch can use, but others have"),
    ("clocks", {"node-2/clock": {"offset": -3.5, "error": 0.1}}, {},
     "node-2", "warning", "its clock is 3.5 s behind this machine's"),
    ("interfaces", {}, {"environment": {"GLOO_SOCKET_IFNAME": "ib0"}},
     "node-1", "error", "GLOO_SOCKET_IFNAME=ib0: no such interface with an address"),
    ("interfaces", {}, {"environment": {"NCCL_SOCKET_IFNAME": "=eth"}},
     "node-1", "error", "NCCL_SOCKET_IFNAME==eth: no such interface"),
    ("interfaces", {"node-2/network/interfaces/eth1": ETH}, {},
     "node-2", "warning", "has several networks (eth0, eth1); gloo will use eth0"),
    ("own names", {"node-2/network/own_name/addresses": ["127.0.1.1"]}, {},
     "node-2", "warning", "its own name node-2 means 127.0.1.1 there"),
    ("own names", {"node-2/network/own_name/addresses": []}, {},
     "node-2", "warning", "its own name node-2 cannot be resolved there"),
    ("own names", {"node-2/network/own_name/addresses": ["10.0.0.7"]}, {},
     "node-2", "warning", "means 10.0.0.7 there, which it has not"),
    ("interfaces", {"node-2/network/address": "127.0.0.1", "node-2/network/interface": "lo",
                    "node-2/network/listens": [{"address": "127.0.0.1", "port": 1, "word": "w"}]},
     {}, "node-2", "error", "its processes would talk over lo (127.0.0.1), which leads"),
    ("interfaces", {"node-2/network/address": ""}, {},
     "node-2", "error", "no network leads from it to the first host"),
    ("connections", {"node-1/calls": {"node-2 10.0.0.2 41000": "no answer within 3 s"}}, {},
     "node-1 -> node-2", "error", "cannot call 10.0.0.2:41000: no answer within 3 s"),
    ("connections", {"node-2/network/listens": []}, {},
     "node-2", "error", "cannot listen at its address 10.0.0.2"),
    ("port", {"node-1/network/port_trouble": "port 80: in use by process 7; give another"}, {},
     "node-1", "error", "port 80: in use by process 7"),
    ("shared folder", {}, {"unwritable": "Read-only file system"},
     "this machine", "error", "/runs/a: Read-only file system"),
    ("shared folder", {"node-2/written": {"trouble": "No such file or directory"}}, {},
     "node-2", "error", "cannot write below /runs/a: No such file"),
    ("shared folder", {"node-2/read": {"node-1": "No such file or directory", "node-2": ""}}, {},
     "node-2", "error", "does not see what node-1 wrote below /runs/a"),
    ("shared folder", {"node-2/read": {"node-1": "No such file", "node-2": ""}},
     {"is_folder_given": False}, "node-2", "warning", "does not see what node-1 wrote"),
    ("locks across hosts", {"node-2/lock": {"answer": "taken"}}, {},
     "all hosts", "error", "node-1, node-2 hold the same lock below /runs/a at once"),
    ("locks across hosts", {"node-2/lock": {"answer": "Function not implemented"}}, {},
     "node-2", "error", "cannot lock a file below /runs/a: Function not implemented"),
    ("disk space", {"node-2/storage/free": 3 * GIB}, {"needs": Needs(9 * GIB, 4 * GIB)},
     "node-2", "error", "/runs/a: 3.0 GiB free; the recipe's checkpoints and exports take"),
    ("disk space", {"node-2/storage/free": 5 * GIB}, {"needs": Needs(9 * GIB, 4 * GIB)},
     "node-2", "warning", "/runs/a: 5.0 GiB free; the recipe's"),
    ("disk space", {"node-2/storage/free": 5 * MIB}, {},
     "node-2", "warning", "/runs/a: only 5 MiB free"),
    ("disk space", {"node-2/storage/free_files": 0}, {},
     "node-2", "error", "/runs/a: no more files can be made (inodes)"),
    ("disk speed", {"node-2/speed/seconds": 16.0}, {},
     "node-2", "warning", "writes 4.0 MiB/s below /runs/a"),
    ("disk speed", {"node-2/speed/seconds": 1.0}, {"needs": Needs(0, 20 * GIB)},
     "node-2", "warning", "writes 64.0 MiB/s below /runs/a; a checkpoint would take 160 s"),
    ("disk speed", {"node-2/speed": {"trouble": "No space left on device", "written": 0}}, {},
     "node-2", "error", "could not be written below /runs/a: No space left on device"),
    ("limits", {"node-2/machine/open_files": [64, 4096]}, {},
     "node-2", "error", "a process may open 64 files; 176 are needed"),
    ("limits", {"node-2/machine/locked_memory": [8 * MIB, 8 * MIB]}, {},
     "node-2", "warning", "a process may lock 8 MiB of memory"),
    ("memory", {"node-2/machine/memory_limit": 8 * GIB}, {},
     "node-2", "warning", "processes may use 8.0 GiB of 64.0 GiB of memory (cgroup)"),
    ("memory", {"node-2/machine/memory/available": GIB}, {},
     "node-2", "warning", "1.0 GiB of memory is free for 2 ranks"),
    ("memory", {"node-2/machine/memory/swap_free": GIB}, {},
     "node-2", "warning", "7.0 GiB is swapped out"),
    ("shared memory", {"node-2/machine/shared_memory": {"total": 64 * MIB, "free": 64 * MIB}}, {},
     "node-2", "warning", "/dev/shm has 64 MiB free; 2 ranks take 132 MiB"),
    ("shared memory", {"node-2/machine/shared_memory": None}, {},
     "node-2", "warning", "/dev/shm has 0 MiB free"),
    ("leftovers", {"node-2/software/leftovers": {"paths": ["/dev/shm/d"], "bytes": 66 * MIB}}, {},
     "node-2", "warning", "1 leftovers of killed runs in /dev/shm (66 MiB), such as /dev/shm/d"),
    ("recipe", {}, {"needs": Needs(trouble=("stage a: 8 rows cannot be split over 3",))},
     "the recipe", "error", "stage a: 8 rows cannot be split over 3"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("check", "changes", "fields", "where", "severity", "said"),
    TABLE,
    ids=[f"{row[0]}-{number}" for number, row in enumerate(TABLE)],
)
def test_what_is_broken_is_found_where_it_is(
    check: str,
    changes: dict[str, Any],
    fields: dict[str, Any],
    where: str,
    severity: str,
    said: str,
) -> None:
    first, *_ = found(scene(changes, **fields), check)
    assert first[:2] == (where, severity)
    assert said in first[2]


CPU = {f"node-{n}/devices": {"gpus": 0, "trouble": "", "driver": None} for n in (1, 2)}


NOT_BUILT = {"node-2/software/operator/is_built": False, "node-2/software/operator/folder": None}
"""Nor looked for by the check of that."""


@pytest.mark.parametrize(
    ("check", "changes", "severity", "said"),
    [
        ("slots", {"node-2/machine/cores": 1}, "warning", "2 slots, but 1 core and no GPU"),
        ("stale locks", {"node-2/software/operator/locks": [LOCK],
                         **NOT_BUILT}, "error",
         "/ext/op/lock: left behind by a killed build, 90 s ago"),
        ("CPU operator", {"node-2/software/operator/is_built": False}, "warning",
         "the first start takes minutes"),
        ("CPU operator", {"node-2/software/operator/is_built": False,
                          "node-2/software/operator/compiler": False}, "error",
         "there is no C++ compiler"),
    ],
)  # fmt: skip
def test_what_counts_without_gpus_alone(
    check: str, changes: dict[str, Any], severity: str, said: str
) -> None:
    [(where, how, what)] = found(scene(CPU | changes), check)
    assert (where, how) == ("node-2", severity)
    assert said in what
    on_gpus = [f for f in judge(scene(changes)) if f.severity != "ok"]
    assert not on_gpus


def test_a_lock_that_another_host_holds_is_none_of_a_killed_build() -> None:
    held = LOCK | {"is_held": True}
    both = {"node-1/software/operator/locks": [held], "node-2/software/operator/locks": [LOCK]}
    both |= NOT_BUILT
    assert not found(scene(CPU | both), "stale locks")
    young = {"node-2/software/operator/locks": [LOCK | {"age": 1.0}]}
    young |= NOT_BUILT
    assert not found(scene(CPU | young), "stale locks")


def test_a_stale_lock_of_a_built_operator_is_no_trouble() -> None:
    assert not found(scene(CPU | {"node-2/software/operator/locks": [LOCK]}), "stale locks")


@pytest.mark.parametrize(
    ("said", "code", "what"),
    [
        ("ssh: Could not resolve hostname node-2: Name or service not known", 255,
         "its name cannot be resolved"),
        ("No ED25519 host key is known for node-2 and you have requested strict checking.\n"
         "Host key verification failed.", 255, "its ssh host key is not known here"),
        ("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.",
         255, "its ssh host key has changed"),
        ("root@node-2: Permission denied (publickey,password).", 255, "ssh wants a password"),
        ("ssh: connect to host node-2 port 22: Connection refused", 255, "no ssh server answers"),
        ("ssh: connect to host node-2 port 22: Connection timed out", 255, "no answer to ssh"),
        ("ssh: connect to host node-2 port 22: No route to host", 255, "no way leads there"),
        ("no answer within 8 s", None, "no answer within 8 s"),
        ("env: '/env/bin/python': No such file or directory", 127, "there is no /env/bin/python"),
        ("/env/bin/python: Error while finding module specification for 'launcher.doctor.probe' "
         "(ModuleNotFoundError: No module named 'launcher')", 1, "our program is not there"),
        ("Segmentation fault", 139, "the probe did not start: Segmentation fault"),
    ],
)  # fmt: skip
def test_why_a_host_cannot_be_asked_is_told_apart(said: str, code: int | None, what: str) -> None:
    broken = scene({"node-2": {}}, **unreached(said, code))
    [(where, severity, told)] = found(broken, "ssh")
    assert (where, severity) == ("node-2", "error")
    assert told.startswith(what)


@pytest.mark.parametrize(
    ("asked", "about"), [("speed", "the run's folder"), ("devices", "its GPUs")]
)
def test_a_host_that_falls_silent_is_told_with_what_it_was_asked(asked: str, about: str) -> None:
    broken = scene(**unreached("no answer within 30 s", None, asked))
    [(where, severity, told)] = found(broken, "answers")
    assert (where, severity) == ("node-2", "error")
    assert told == f"fell silent when asked about {about}: no answer within 30 s"


@pytest.mark.parametrize(
    ("told", "where", "said"),
    [
        (pairs(1e9, 1e8, 1e9), "node-1 - node-3", "slow: 800.0 Mbit/s, 0.10 ms; the others 8.0"),
        (pairs(1e9, 1e8, 1e8), "node-3", "is slow to every other host: 800.0 Mbit/s"),
        (pairs(1e9, 1e9, 1e9, latencies=(1e-4, 1e-4, 1e-2)), "node-2 - node-3", "10.00 ms"),
    ],
)
def test_a_slow_pair_is_named_or_the_host_whose_every_pair_is(
    told: Any, where: str, said: str
) -> None:
    [(place, severity, what)] = found(scene(collectives=told), "pace")
    assert (place, severity) == (where, "warning")
    assert said in what


def test_one_pair_has_nothing_to_be_slower_than() -> None:
    only = {"pairs": [{"hosts": ["node-1", "node-2"], "bandwidth": 1.0, "latency": 9.0}]}
    assert not found(scene(collectives=only), "pace")


GONE = "given up, as another one had failed"
WAITED = "Timed out after 30 seconds waiting for clients. 1/2 clients joined."


@pytest.mark.parametrize(
    ("came", "errors", "where", "said"),
    [
        (("called", "started"), {"node-1": WAITED, "node-2": "[Errno 110] timed out"}, "node-2",
         "did not come to rank 0 on node-1 at 10.0.0.1:5: [Errno 110] timed out"),
        (("called", "nothing"), {"node-1": WAITED, "node-2": "No module named 'torch'"}, "node-2",
         "its process did not start: No module named 'torch'"),
        (("called", "started"), {"node-1": "address already in use", "node-2": GONE}, "node-1",
         "address already in use"),
        (("joined", "joined"), {"node-2": "Connection closed by peer", "node-1": GONE}, "node-2",
         "met the others, then failed: Connection closed by peer"),
    ],
)  # fmt: skip
def test_who_did_not_come_is_named_and_where_they_were_to(
    came: tuple[str, str], errors: dict[str, str], where: str, said: str
) -> None:
    told = {
        "place": "10.0.0.1:5",
        "came": dict(zip(("node-1", "node-2"), came, strict=True)),
        "errors": errors,
    }
    results = found(scene(collectives=told), "meeting")
    assert (where, "error", said) in results


def test_one_host_has_none_of_the_troubles_of_several() -> None:
    lone = scene(
        {"node-1/network/own_name/addresses": ["127.0.1.1"], "node-1/network/address": "127.0.0.1"},
        hosts=(Host("node-1", 2),),
        programs=frozenset(),
        folder=Path(),
    )
    assert all(f.severity == "ok" for f in judge(lone))


def test_what_all_ranks_of_one_host_share_must_be_large_enough() -> None:
    small = {"node-1/machine/shared_memory": {"total": 64 * MIB, "free": 64 * MIB}}
    lone = scene(small, hosts=(Host("node-1", 2),))
    assert found(lone, "shared memory")[0][1] == "error"
    alone = scene(small | {"node-1/devices/gpus": 1}, hosts=(Host("node-1", 1),))
    assert not found(alone, "shared memory")


def test_what_no_run_does_without_must_be_installed() -> None:
    lone = scene({"node-1/software/versions/torch": None}, hosts=(Host("node-1", 2),))
    assert found(lone, "installed") == [("node-1", "error", "torch is not installed")]
