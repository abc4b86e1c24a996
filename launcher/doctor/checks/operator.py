"""What killed processes left, and whether DeepSpeed's operator for the CPU can be built."""

from collections.abc import Iterator, Mapping
from typing import Any

from launcher.doctor.finding import Finding
from launcher.doctor.scene import Scene
from launcher.hosts import Host
from launcher.jit import SETTLE_SECONDS

_MIB = 1 << 20


def judge_locks(scene: Scene) -> Iterator[Finding]:
    """A lock that nobody holds: every start would wait for it for ever."""
    told = list(_on_cpu(scene))
    held = {lock["path"] for _, facts in told for lock in facts["locks"] if lock["is_held"]}
    for host, facts in told:
        for lock in facts["locks"]:
            # A shared folder shows the locks of other hosts' processes, too.
            is_stale = lock["path"] not in held and lock["age"] > SETTLE_SECONDS
            # Of an operator that is built it is removed at the start.
            if is_stale and not facts["is_built"]:
                yield Finding(
                    f"{lock['path']}: left behind by a killed build, {lock['age']:.0f} s ago; "
                    "every start would wait for it",
                    host.name,
                    f"rm {lock['path']}",
                    details=lock,
                )


def judge_operator(scene: Scene) -> Iterator[Finding]:
    """Built once by ``onward run`` where it runs alone; on several hosts by hand."""
    for host, facts in _on_cpu(scene):
        if facts["folder"] is None or facts["is_built"]:
            continue
        if not facts["compiler"]:
            yield Finding(
                "DeepSpeed's operator for the CPU is not built, and there is no C++ compiler",
                host.name,
                "Debian: apt install g++",
                details={"folder": facts["folder"]},
            )
        elif scene.is_several:
            yield Finding(
                "DeepSpeed's operator for the CPU is not built: the first start takes minutes",
                host.name,
                f"there: {scene.python} -m launcher.jit",
                "warning",
                {"folder": facts["folder"]},
            )


def judge_leftovers(scene: Scene) -> Iterator[Finding]:
    """Shared memory of killed ranks, which no process has open."""
    for host, facts in scene.told("software"):
        left = facts["leftovers"]
        if left["paths"]:
            count, first = len(left["paths"]), left["paths"][0]
            what = f"{count} leftovers of killed runs in /dev/shm ({left['bytes'] // _MIB} MiB)"
            yield Finding(
                f"{what}, such as {first}",
                host.name,
                f"rm {' '.join(left['paths'][:4])}{' ...' if count > 4 else ''}",
                "warning",
                left,
            )


def _on_cpu(scene: Scene) -> Iterator[tuple[Host, Mapping[str, Any]]]:
    told = {host.name: facts for host, facts in scene.told("devices")}
    for host, facts in scene.told("software"):
        if not told.get(host.name, {}).get("gpus", 0):
            yield host, facts["operator"]
