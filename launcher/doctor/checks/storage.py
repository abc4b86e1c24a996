"""Whether the run's folder is one folder for all hosts, with room, and quick enough."""

from collections.abc import Iterator

from launcher.doctor.finding import Finding, Severity
from launcher.doctor.scene import Scene

_MIB = 1 << 20
_GIB = 1 << 30
_LEAST = _GIB
_SLOW = 20 * _MIB
_PATIENT = 60.0
"""Seconds that a checkpoint may take before somebody should know."""
_GIVE = "put the run on a file system that all hosts share"


def judge_shared(scene: Scene) -> Iterator[Finding]:
    """What one host writes there, every other one must read."""
    if scene.unwritable:
        yield Finding(
            f"{scene.folder}: {scene.unwritable}",
            "this machine",
            "make the folder writable, or give another one",
            _severity(scene),
        )
        return
    for host, facts in scene.told("written"):
        if facts["trouble"]:
            yield Finding(
                f"cannot write below {scene.folder}: {facts['trouble']}",
                host.name,
                _GIVE if scene.is_several else "make the folder writable, or give another one",
                _severity(scene),
            )
    for host, facts in scene.told("read"):
        unseen = [name for name, trouble in facts.items() if trouble]
        if unseen and scene.facts[host.name].get("written", {}).get("trouble") == "":
            yield Finding(
                f"does not see what {', '.join(unseen)} wrote below {scene.folder}",
                host.name,
                _GIVE,
                _severity(scene),
                facts,
            )


def judge_lock(scene: Scene) -> Iterator[Finding]:
    """Two runs in one folder are kept apart by a lock that all hosts must see."""
    told = {host.name: facts["answer"] for host, facts in scene.told("lock")}
    takers = [name for name, answer in told.items() if answer == "taken"]
    if len(takers) > 1:
        yield Finding(
            f"{', '.join(takers)} hold the same lock below {scene.folder} at once",
            remedy="mount the file system with locks (NFS: without nolock; Lustre: with flock)",
            details=told,
        )
    for name, answer in told.items():
        if answer not in {"taken", "busy"}:
            yield Finding(
                f"cannot lock a file below {scene.folder}: {answer}",
                name,
                "mount the file system with locks (NFS: without nolock; Lustre: with flock)",
            )


def judge_room(scene: Scene) -> Iterator[Finding]:
    """Bytes and files that are free, against what the recipe's stages will write."""
    needed = scene.needs.disk if scene.needs else 0
    for host, facts in scene.told("storage"):
        if not facts["is_there"]:
            continue
        if facts["free"] < needed:
            yield Finding(
                f"{scene.folder}: {_size(facts['free'])} free; the recipe's checkpoints and "
                f"exports take up to {_size(needed)}",
                host.name,
                "make room, lower checkpoint.keep, or give another folder",
                # The last one counts: what fits now may be room enough for a while.
                "error" if scene.needs and facts["free"] < scene.needs.checkpoint else "warning",
                {"free": facts["free"], "needed": needed},
            )
        elif facts["free"] < _LEAST:
            what = f"{scene.folder}: only {_size(facts['free'])} free"
            yield Finding(what, host.name, "make room", "warning", {"free": facts["free"]})
        if facts["free_files"] == 0:
            what = f"{scene.folder}: no more files can be made (inodes)"
            yield Finding(what, host.name, "delete files there", _severity(scene))


def judge_speed(scene: Scene) -> Iterator[Finding]:
    """A file of 64 MiB, written and synced by all hosts at once."""
    checkpoint = scene.needs.checkpoint if scene.needs else 0
    told = list(scene.told("speed"))
    for host, facts in told:
        if facts["trouble"]:
            what = f"a file of 64 MiB could not be written below {scene.folder}: {facts['trouble']}"
            remedy = "make room (df, quota, ulimit -f), or give another folder"
            yield Finding(what, host.name, remedy, _severity(scene), facts)
            continue
        rate = facts["written"] / max(facts["seconds"], 1e-9)
        share = checkpoint / max(1, len(told))
        if rate < _SLOW or share / rate > _PATIENT:
            wait = f"; a checkpoint would take {share / rate:.0f} s" if checkpoint else ""
            yield Finding(
                f"writes {rate / _MIB:.1f} MiB/s below {scene.folder}{wait}",
                host.name,
                "give a quicker file system, or save less often",
                "warning",
                {"bytes_second": rate},
            )


def _severity(scene: Scene) -> Severity:
    """Of the current folder nobody knows whether a run will use it."""
    return "error" if scene.is_folder_given else "warning"


def _size(count: int) -> str:
    return f"{count / _GIB:.1f} GiB" if count >= _GIB else f"{count / _MIB:.0f} MiB"
