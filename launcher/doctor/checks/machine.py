"""Whether a host has what its slots need: devices, memory, open files."""

from collections.abc import Iterator, Mapping
from typing import Any

from launcher.doctor.finding import Finding
from launcher.doctor.scene import Scene
from launcher.hosts import Host

_GIB = 1 << 30
_MIB = 1 << 20
_BUFFER = 66 * _MIB
"""Shared memory that DeepSpeed's operator takes for each rank of a host (csrc/cpu/comm/shm.cpp);
NCCL takes less."""
_FILES = 160
"""Open files of one rank alone; each other rank adds connections, one a group."""
_FILES_A_RANK = 4
_LEAST_MEMORY = _GIB
"""Of a rank that has imported torch and holds a small model."""
_LOCKED = 64 * _MIB


def judge_slots(scene: Scene) -> Iterator[Finding]:
    """Slots against GPUs, or cores where there are none."""
    told = {host.name: facts for host, facts in scene.told("devices")}
    for host, facts in scene.told("machine"):
        devices = told.get(host.name)
        if devices is not None:
            yield from _of_slots(host, facts["cores"], devices)
    kinds = {name: facts["gpus"] > 0 for name, facts in told.items()}
    if len(set(kinds.values())) > 1:
        for name, has in kinds.items():
            if not has:
                yield Finding(
                    "has no GPU that torch can use, but others have",
                    name,
                    "leave it out, or set DS_ACCELERATOR=cpu for all",
                )


def _of_slots(host: Host, cores: int, devices: Mapping[str, Any]) -> Iterator[Finding]:
    gpus = devices["gpus"]
    details = {"slots": host.slots, "gpus": gpus, "cores": cores}
    if devices["trouble"]:
        yield Finding(
            f"has GPUs that torch cannot use: {devices['trouble']}",
            host.name,
            "match driver and torch, or set DS_ACCELERATOR=cpu",
            "warning",
            details,
        )
    if gpus and host.slots > gpus:
        what = f"{host.slots} slots, but {_counted(gpus, 'GPU')}"
        yield Finding(what, host.name, f"set slots={gpus}", details=details)
    elif gpus > host.slots:
        what = f"{_counted(gpus, 'GPU')}, but {_counted(host.slots, 'slot')}: the others stay idle"
        yield Finding(what, host.name, f"set slots={gpus} to use all", "warning", details)
    elif not gpus and host.slots > cores:
        what = f"{host.slots} slots, but {_counted(cores, 'core')} and no GPU"
        remedy = f"set slots={cores} or fewer: processes that share a core wait for one another"
        yield Finding(what, host.name, remedy, "warning", details)


def judge_memory(scene: Scene) -> Iterator[Finding]:
    """What is free, what swaps, and what a control group takes away."""
    for host, facts in scene.told("machine"):
        memory, limit = facts["memory"], facts["memory_limit"]
        if limit is not None and limit < memory["total"]:
            yield Finding(
                f"processes may use {_gib(limit)} of {_gib(memory['total'])} of memory (cgroup)",
                host.name,
                "plans for the CPU count the whole; raise the limit of the job or container",
                "warning",
                {"limit": limit, "total": memory["total"]},
            )
        free = min(memory["available"], limit or memory["available"])
        if free < host.slots * _LEAST_MEMORY:
            yield Finding(
                f"{_gib(free)} of memory is free for {_counted(host.slots, 'rank')}",
                host.name,
                "end what else runs there, or give fewer slots",
                "warning",
                {"free": free},
            )
        swapped = memory["swap_total"] - memory["swap_free"]
        if swapped > max(_GIB, memory["swap_total"] // 2):
            yield Finding(
                f"{_gib(swapped)} is swapped out",
                host.name,
                "end what else runs there: a rank that swaps makes all others wait",
                "warning",
                {"swapped": swapped},
            )


def judge_shared_memory(scene: Scene) -> Iterator[Finding]:
    """``/dev/shm``: a container has 64 MB unless told otherwise; who runs out dies of SIGBUS."""
    for host, facts in scene.told("machine"):
        shared = facts["shared_memory"]
        if host.slots < 2:
            continue
        needed = host.slots * _BUFFER
        free = shared["free"] if shared else 0
        if free < needed:
            yield Finding(
                f"/dev/shm has {_mib(free)} free; {host.slots} ranks take {_mib(needed)}",
                host.name,
                "mount it larger (docker run --shm-size, or mount -o remount,size=8G /dev/shm)",
                # Only ranks that are all on one host exchange gradients through it.
                "warning" if scene.is_several else "error",
                {"free": free, "needed": needed},
            )


def judge_limits(scene: Scene) -> Iterator[Finding]:
    """Open files; locked memory where a network card or a GPU needs it."""
    told = {host.name: facts for host, facts in scene.told("devices")}
    least = _FILES + _FILES_A_RANK * scene.world
    for host, facts in scene.told("machine"):
        soft, hard = facts["open_files"]
        if soft is not None and soft < least:
            enough = hard is None or hard >= least
            yield Finding(
                f"a process may open {soft} files; {least} are needed",
                host.name,
                f"raise it: ulimit -n {least * 4}"
                if enough
                else f"raise it (nofile) in /etc/security/limits.conf to {least * 4}; log in anew",
                details={"soft": soft, "hard": hard, "needed": least},
            )
        locked, _ = facts["locked_memory"]
        needs = facts["infiniband"] or told.get(host.name, {}).get("gpus", 0)
        if needs and locked is not None and locked < _LOCKED:
            yield Finding(
                f"a process may lock {_mib(locked)} of memory; InfiniBand and GPUs want more",
                host.name,
                "set memlock to unlimited in /etc/security/limits.conf; log in anew",
                "warning",
                {"soft": locked},
            )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB"


def _mib(size: int) -> str:
    return f"{size / _MIB:.0f} MiB"
