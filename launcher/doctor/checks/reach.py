"""Whether every host can be reached, is who it should be, and answers."""

import shlex
from collections.abc import Iterator, Sequence

from launcher.doctor.finding import Finding
from launcher.doctor.scene import Scene, Unreached

_LOGIN = "`ssh {host} true` must pass without a question; "


def judge_reach(scene: Scene) -> Iterator[Finding]:
    """Names, ssh, host keys, and whether our program starts there."""
    for host in scene.hosts:
        reason = scene.unreached.get(host.name)
        if reason is not None and reason.asked == "start":
            way = scene.ways.get(host.name, ())
            if way and way[0] == "srun":
                what, remedy = _explain_step(reason, way)
            else:
                what, remedy = _explain(host.name, reason, scene.python)
            yield Finding(what, host.name, remedy, details={"said": reason.said})


def judge_silence(scene: Scene) -> Iterator[Finding]:
    """Hosts that answered at first, and then fell silent."""
    for host in scene.hosts:
        reason = scene.unreached.get(host.name)
        if reason is None or reason.asked == "start":
            continue
        said = reason.said.splitlines()[-1] if reason.said else f"exit code {reason.code}"
        about = _ABOUT.get(reason.asked, reason.asked)
        yield Finding(
            f"fell silent when asked about {about}: {said}",
            host.name,
            _SILENT.get(about, "see what the machine does (top, dmesg)"),
            details={"asked": reason.asked, "said": reason.said},
        )


_ABOUT = {
    "storage": "the run's folder",
    "written": "the run's folder",
    "read": "the run's folder",
    "speed": "the run's folder",
    "lock": "the run's folder",
    "devices": "its GPUs",
    "calls": "the other hosts",
}
_SILENT = {
    "the run's folder": "the file system hangs there: try `df` on it, and mount it again",
    "its GPUs": "try `nvidia-smi` there",
}


def judge_doubles(scene: Scene) -> Iterator[Finding]:
    """Two names of the hostfile that are one machine: it would be started twice."""
    seen: dict[tuple[str, ...], str] = {}
    for host, facts in scene.told("machine"):
        identity = tuple(facts["identity"])
        first = seen.setdefault(identity, host.name)
        if first != host.name:
            yield Finding(
                f"is the same machine as {first}",
                host.name,
                "name it once, with all its slots",
                details={"host_name": facts["host_name"]},
            )


def judge_first(scene: Scene) -> Iterator[Finding]:
    """Rank 0, and what is not launched, belong on one machine."""
    if not scene.is_several:
        return
    here = [host.name for host in scene.hosts if host.is_here]
    first = scene.hosts[0].name
    if first not in here:
        yield Finding(
            "is not this machine, though the hostfile has it first",
            first,
            "start from the first host: rank 0 runs there",
            "warning",
        )
    loopback = [n for n in here if n in {"localhost", "127.0.0.1"}]
    for name in loopback:
        yield Finding(
            "means another machine on each host: every host itself",
            name,
            "give this machine the name that the others know it by",
            "warning",
        )


def _explain_step(reason: Unreached, way: Sequence[str]) -> tuple[str, str]:
    """The same where srun was to start our program."""
    last = (reason.said.splitlines() or [f"exit code {reason.code}"])[-1]
    return f"srun started no program there: {last}", f"try: {shlex.join(way)} true"


def _explain(name: str, reason: Unreached, python: str) -> tuple[str, str]:
    """What happened, and what to do, from what ssh or the remote shell said."""
    said = reason.said
    for signs, what, remedy in _SIGNS:
        if any(sign in said for sign in signs):
            return what, remedy.format(host=name, python=python)
    if reason.code is None:
        last = said.splitlines()[-1] if said else "no answer"
        return last, f"see whether the machine is up; {_LOGIN.format(host=name)}".rstrip("; ")
    if reason.code == 127 or "not found" in said or "No such file" in said:
        return f"there is no {python}", "the Python environment must be at the same path on all"
    last = said.splitlines()[-1] if said else f"exit code {reason.code}"
    return f"the probe did not start: {last}", f"try: ssh {name} {python} -c 1"


_SIGNS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        ("REMOTE HOST IDENTIFICATION HAS CHANGED",),
        "its ssh host key has changed",
        "if the machine was set up anew: ssh-keygen -R {host}, then ssh {host} once; if not, "
        "another machine answers",
    ),
    (
        ("host key is known", "Host key verification failed"),
        "its ssh host key is not known here",
        "compare its fingerprint, then ssh {host} once (or ssh-keyscan {host} >> "
        "~/.ssh/known_hosts)",
    ),
    (
        ("Could not resolve", "Name or service not known", "name resolution"),
        "its name cannot be resolved",
        "put it into DNS, /etc/hosts or ~/.ssh/config, or correct the hostfile",
    ),
    (
        ("Permission denied", "Too many authentication failures"),
        "ssh wants a password or a key that is not here",
        "let a key in without a question: ssh-copy-id {host}",
    ),
    (("Connection refused",), "no ssh server answers", "start sshd there"),
    (
        ("timed out", "Connection timeout"),
        "no answer to ssh within its time-out",
        "see whether the machine is up, and whether a firewall drops port 22",
    ),
    (
        ("No route to host", "Network is unreachable"),
        "no way leads there",
        "see whether the machine is up and its network too",
    ),
    (("no ssh on this machine",), "there is no ssh here", "Debian: apt install openssh-client"),
    (
        ("No module named",),
        "our program is not there at the same path",
        "install the same environment, at the same path, on all hosts",
    ),
)
