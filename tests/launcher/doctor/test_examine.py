"""The examination itself: this machine, and others behind an ssh that answers as it is told to."""

import json
import os
import resource
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from launcher.doctor import visit
from launcher.doctor.examine import Diagnosis, Order, examine
from launcher.doctor.text import lines
from launcher.doctor.trial import rounds
from tests.launcher.fakes import Fakes

ROOT = Path(__file__).parents[3]
SSH = """#!{python}
import json, subprocess, sys, time
*_, name, command = sys.argv[1:]
print("Welcome to", name, "- all is watched", flush=True)
edits = json.load(open({folder!r} + "/edits")).get(name, {{}})
if "says" in edits:
    sys.stderr.write(edits["says"] + "\\n")
    sys.exit(edits.get("code", 255))
if "sleeps" in edits:
    time.sleep(60)
if "overlay" in edits:
    command = command.replace("PYTHONPATH=", "PYTHONPATH=" + edits["overlay"] + ":")
pipe = subprocess.PIPE
probe = subprocess.Popen(["sh", "-c", command], stdin=pipe, stdout=pipe, text=True)
for line in sys.stdin:
    question = json.loads(line)
    asked = question["ask"]
    if asked in edits.get("silent", ()):
        time.sleep(60)
    probe.stdin.write(line)
    probe.stdin.flush()
    mark, _, answer = probe.stdout.readline().partition(":")
    facts = json.loads(answer)
    facts.update({{"identity": [name]}} if asked == "machine" else {{}})
    if asked == "calls":
        facts = {{}}
    if asked == "network":
        facts.update(address="192.0.2.9", interface="eth0", trouble="",
                     listens=[{{"address": a, "port": 1, "word": ""}}
                              for a in ("192.0.2.9", facts["master"])],
                     own_name={{"name": name, "addresses": ["192.0.2.9"]}},
                     interfaces={{"eth0": {{"addresses": ["192.0.2.9"], "is_up": True}}}})
    facts.update(edits.get(asked, {{}}))
    facts.update({{k: facts[k] + v for k, v in edits.get("plus", {{}}).get(asked, {{}}).items()}})
    print(mark + ":" + json.dumps(facts), flush=True)
"""


class World:
    """Hosts ``a`` and ``b``, both this machine, each with a network and what a test says of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.edits: dict[str, Any] = {}
        self.hostfile = folder / "hosts"
        self.hostfile.write_text("a slots=1\nb slots=1\n")
        ssh = folder / "bin" / "ssh"
        ssh.parent.mkdir()
        ssh.write_text(SSH.format(python=sys.executable, folder=str(folder)))
        ssh.chmod(0o755)
        (ssh.parent / "pdsh").touch(mode=0o755)
        self.run = folder / "run"

    def found(self, **more: Any) -> Diagnosis:
        (self.folder / "edits").write_text(json.dumps(self.edits))
        return examine(Order(self.hostfile, self.run, sums=False, **more))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.delenv("NCCL_SOCKET_IFNAME", raising=False)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("HOME", str(tmp_path))
    extensions = tmp_path / "ext"
    extensions.mkdir()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(extensions))
    return made


def bad(diagnosis: Diagnosis, *checks: str) -> list[tuple[str, str, str]]:
    """Without what this machine itself may have wrong, unless it is asked for."""
    beside = {"first host", "CPU operator", "memory", "disk space", "disk speed", "slots"}
    return [
        (f.check, f.where, f.what)
        for f in diagnosis.findings
        if f.severity != "ok" and f.check not in beside - set(checks)
    ]


def test_healthy_hosts_behind_a_talkative_ssh_are_ready(world: World) -> None:
    diagnosis = world.found()
    assert bad(diagnosis) == []
    assert diagnosis.is_ready
    assert not list(world.folder.glob(".onward-doctor*"))
    told = json.loads(json.dumps(diagnosis.as_json()))
    assert told["ok"] is True
    assert {*told["hosts"]} == {"a", "b"}
    assert told["hosts"]["a"]["read"] == {"a": "", "b": ""}
    assert {f["severity"] for f in told["findings"]} <= {"ok", "warning"}


def test_only_the_hosts_and_slots_of_the_filters_are_looked_at(world: World) -> None:
    world.edits = {"b": {"says": "Permission denied (publickey)."}}
    diagnosis = world.found(exclude="b")
    assert [host.name for host in diagnosis.scene.hosts] == ["a"]
    assert bad(diagnosis) == []
    ((check, where, what),) = bad(world.found(include="c"))
    assert (check, where) == ("hostfile", "this command")
    assert "no host 'c' in the hostfile" in what


def test_what_must_not_or_cannot_reach_other_hosts_is_a_finding(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = world.folder / ".deepspeed_env"
    own.write_text("HF_TOKEN=canary-value\n")
    ((check, _, what),) = bad(world.found())
    assert check == "environment"
    assert "HF_TOKEN is not handed to other hosts" in what
    assert "canary-value" not in what
    own.unlink()
    monkeypatch.setenv("PYTHONHASHSEED", "a b")
    ((check, _, what),) = bad(world.found())
    assert (check, "PYTHONHASHSEED" in what) == ("environment", True)


def test_a_given_address_must_be_the_first_hosts(world: World) -> None:
    answers = {"listens": [{"address": "192.0.2.9", "port": 1, "word": ""}]}
    world.edits = {"a": {"network": answers}}
    assert ("connections", "a", "cannot listen at its address 198.51.100.7") in bad(
        world.found(address="198.51.100.7")
    )


def test_under_slurm_srun_asks_the_hosts_of_the_allocation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes = Fakes(tmp_path)
    monkeypatch.setenv("PATH", f"{fakes.folder}:{os.environ['PATH']}")
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    ((check, _, what),) = bad(examine(Order(run=tmp_path / "run", launcher="slurm", sums=False)))
    assert (check, "SLURM_JOB_NODELIST is not set" in what) == ("programs", True)
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node-1,node-2")
    order = Order(run=tmp_path / "run", launcher="slurm", sums=False, processes=1)
    scene = examine(order).scene
    assert [host.name for host in scene.hosts] == ["node-1", "node-2"]
    assert {name: facts["software"]["python"] for name, facts in scene.facts.items()}.keys() == {
        "node-1",
        "node-2",
    }
    asked = [note["words"] for note in fakes.notes("srun")]
    assert sorted(words[3] for words in asked) == ["--nodelist=node-1", "--nodelist=node-2"]
    # It says what a name stands for, and enters nobody.
    assert all(note["words"][0] == "-G" for note in fakes.notes("ssh"))


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        ({"says": "Permission denied (publickey)."},
         ("ssh", "b", "ssh wants a password or a key that is not here")),
        ({"says": "REMOTE HOST IDENTIFICATION HAS CHANGED!"},
         ("ssh", "b", "its ssh host key has changed")),
        ({"says": "No module named 'launcher'", "code": 1},
         ("ssh", "b", "our program is not there at the same path")),
        ({"software": {"digest": "0"}}, ("same versions", "b", "our code is 0, on the others")),
        ({"plus": {"clock": {"time": 60}}}, ("clocks", "b", "its clock is 60.")),
        ({"machine": {"identity": ["a"]}}, ("one name a machine", "b", "is the same machine as a")),
        ({"machine": {"shared_memory": None}}, None),
        ({"read": {"a": "No such file or directory"}},
         ("shared folder", "b", "does not see what a wrote below")),
        ({"lock": {"answer": "taken"}}, ("locks across hosts", "all hosts", "a, b hold the same")),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_one_host_answers_otherwise_is_found_there(
    world: World, edits: dict[str, Any], expected: tuple[str, str, str] | None
) -> None:
    world.edits = {"b": edits}
    found = bad(world.found())
    if expected is None:
        assert found == []
        return
    [(check, where, what)] = found
    assert (check, where) == expected[:2]
    assert what.startswith(expected[2])


def test_another_version_of_a_package_is_found(world: World) -> None:
    overlay = world.folder / "overlay"
    package = overlay / "numpy-0.1.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 0.1\n")
    world.edits = {"b": {"overlay": str(overlay)}}
    [(check, where, what)] = bad(world.found())
    assert (check, where) == ("same versions", "b")
    assert what.startswith("numpy is 0.1, on the others")


@pytest.mark.parametrize("asked", ["start", "storage"])
def test_a_host_that_hangs_is_a_finding(
    world: World, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visit, "START_SECONDS", 2.0)
    monkeypatch.setattr(visit, "_ANSWER_SECONDS", 2.0)
    world.edits = {"b": {"sleeps": True} if asked == "start" else {"silent": [asked]}}
    start = time.monotonic()
    [(_, where, what)] = bad(world.found())
    assert where == "b"
    assert "no answer within 2 s" in what
    assert time.monotonic() - start < 30


def test_all_bad_lines_of_a_hostfile_are_findings_and_nobody_is_asked(world: World) -> None:
    world.hostfile.write_text("a slots=0\na\n-x slots=1\n")
    found = world.found()
    assert [f.where for f in found.findings] == [f"{world.hostfile}:{n}" for n in (1, 2, 3)]
    assert not found.is_ready
    assert not found.scene.facts


def test_a_recipe_that_cannot_be_read_is_a_finding(world: World) -> None:
    recipe = world.folder / "my.yaml"
    recipe.write_text("nmae: x\n")
    world.run = recipe
    [finding] = world.found().findings
    assert (finding.check, finding.severity) == ("recipe", "error")


def test_a_recipe_brings_its_folder_and_its_needs(world: World) -> None:
    world.run = ROOT / "configs" / "recipes" / "quickstart.yaml"
    scene = world.found().scene
    assert scene.folder.name == "quickstart"
    assert scene.needs is not None
    assert scene.needs.disk > scene.needs.checkpoint > 0


def here(*words: str, preexec: Any = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launcher", "doctor", "--no-collectives", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", **environment},
        preexec_fn=preexec,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def limit(kind: int, value: int) -> Any:
    return lambda: resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


def test_a_small_limit_of_open_files_is_found_here() -> None:
    done = here(preexec=limit(resource.RLIMIT_NOFILE, 60))
    assert done.returncode == 1, done.stderr
    assert "error   a process may open 60 files" in done.stdout
    assert "ulimit -n" in done.stdout
    assert done.stdout.endswith("a run would fail\n")


def test_a_full_disk_is_found_here(tmp_path: Path) -> None:
    done = here("--run", str(tmp_path), preexec=limit(resource.RLIMIT_FSIZE, 1 << 20))
    assert done.returncode == 1, done.stderr
    assert "a file of 64 MiB could not be written" in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_stale_lock_is_found_here(tmp_path: Path) -> None:
    lock = tmp_path / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir()
    lock.touch()
    os.utime(lock, (time.time() - 99,) * 2)
    done = here(TORCH_EXTENSIONS_DIR=str(tmp_path))
    assert done.returncode == 1
    assert f"rm {lock}" in done.stdout
    lock.unlink()
    assert "rm " not in here(TORCH_EXTENSIONS_DIR=str(tmp_path)).stdout


def test_a_port_in_use_is_found_here_with_its_holder() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = here("--master-port", str(port))
    assert done.returncode == 1
    assert f"port {port}: in use by process {os.getpid()}" in done.stdout


def test_a_folder_that_cannot_be_written_is_found_here(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        place = Path("/proc/self")
    else:
        place = tmp_path
        place.chmod(stat.S_IRUSR | stat.S_IXUSR)
    done = here("--run", str(place), "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["ok"]) == (1, False)
    assert [f["check"] for f in told["findings"] if f["severity"] == "error"] == ["shared folder"]


def test_the_example_is_a_hostfile_that_it_accepts() -> None:
    done = here("--hostfile", str(ROOT / "hostfile.example"))
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith(": a run would start\n")


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8])
def test_a_tournament_has_every_pair_once_and_nobody_twice_in_a_round(count: int) -> None:
    games = rounds(count)
    played = [pair for games_of_round in games for pair in games_of_round]
    assert sorted(played) == [(a, b) for a in range(count) for b in range(a + 1, count)]
    for games_of_round in games:
        busy = [player for pair in games_of_round for player in pair]
        assert len(busy) == len(set(busy))


def test_the_text_has_a_sign_and_a_remedy_for_each_finding(world: World) -> None:
    world.edits = {"b": {"says": "Permission denied"}}
    text = list(lines(world.found()))
    at = text.index("b")
    assert text[at + 1].startswith("  error   ssh wants a password")
    assert text[at + 2].strip() == "let a key in without a question: ssh-copy-id b"
    assert text[-1].startswith("1 error, ")
    assert text[-1].endswith("a run would fail")


@pytest.mark.processes
def test_two_processes_here_sum_and_are_timed(operators: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "doctor", "--json"],
        env={**os.environ, **operators, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    told = json.loads(done.stdout)
    assert done.returncode == 0, told
    [pair] = told["collectives"]["pairs"]
    assert pair["bandwidth"] > 1e6
    assert 0 < pair["latency"] < 10
    assert told["collectives"]["device"] == "cpu"
