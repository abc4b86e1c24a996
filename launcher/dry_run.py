"""What a run would start, told without starting or writing anything."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from configs.stage import Runs
from launcher import environment
from launcher.command import Launch, deepspeed_command, runner
from launcher.conduct import Conductor
from launcher.exports import format_exports
from launcher.hosts import format_hostfile
from launcher.secrecy import MASK, is_secret_name, mask, mask_word
from launcher.start import environments, plan_launch


def rehearse(conductor: Conductor) -> dict[str, Any]:
    """Check, and tell of every group of stages how it would be started.

    Of each group: ``stages``; ``in``: ``this process`` or ``a launch``. Of a launch besides:
    ``command`` (words), ``shell`` (the same as one line, to be run in ``folder``), ``hosts``,
    ``set`` (variables that differ from this shell's), ``passed`` (variables for other hosts),
    ``launcher_gets`` (names of this shell's variables that the launcher itself gets; all, on this
    machine alone). Raises what ``Conductor.check`` raises.
    """
    names = conductor.check()
    groups = [_group(conductor, runs, stages) for runs, stages in conductor.groups(names)]
    return {"run": str(conductor.folder.root), "groups": groups}


def _group(conductor: Conductor, runs: Runs, stages: Sequence[str]) -> dict[str, Any]:
    if runs == "once":
        return {"stages": list(stages), "in": "this process"}
    placement = conductor.placement.for_stage(runs)
    replace = conductor.replaced(stages)
    launch = plan_launch(conductor.folder, stages, replace, placement, shown_only=True)
    command = deepspeed_command(launch, runner(), placement.environment)
    passed, prepared = environments(launch, placement)
    # Refused here what would be refused at the start.
    format_exports(passed)
    given = placement.environment
    return {
        "stages": list(stages),
        "in": "a launch",
        "processes": launch.world,
        "launcher": launch.launcher or "deepspeed's own, on this machine",
        "command": list(map(mask_word, command)),
        "shell": mask(shlex.join(map(mask_word, command))),
        "folder": str(launch.working if launch.is_here else environment.PROJECT),
        "hosts": _hosts(launch),
        "hostfile": format_hostfile(launch.hosts).splitlines(),
        "set": _masked({n: v for n, v in prepared.items() if given.get(n) != v}),
        "passed": _masked(passed),
        "launcher_gets": "all" if launch.is_here else sorted(set(prepared) & set(given)),
    }


def _hosts(launch: Launch) -> list[dict[str, Any]]:
    return [
        {"name": host.name, "processes": host.slots, "slots": list(host.ids)}
        for host in launch.hosts
    ]


def _masked(values: Mapping[str, str]) -> dict[str, str]:
    return {
        name: MASK if is_secret_name(name) else mask(value)
        for name, value in sorted(values.items())
    }


def lines(told: Mapping[str, Any]) -> Iterator[str]:
    """The same for people."""
    yield f"# run folder: {told['run']}"
    if not told["groups"]:
        yield "# nothing to do: all stages are done"
    for group in told["groups"]:
        names = ", ".join(group["stages"])
        if group["in"] == "this process":
            yield f"\n# {names}: in this process"
            continue
        hosts = ", ".join(f"{host['name']} ({host['processes']})" for host in group["hosts"])
        count = group["processes"]
        processes = f"{count} process{'' if count == 1 else 'es'}"
        yield f"\n# {names}: {processes} on {hosts or 'this machine'}"
        yield f"# launcher: {group['launcher']}"
        yield from (f"# hostfile: {line}" for line in group["hostfile"])
        yield from (f"# set: {_assigned(item)}" for item in group["set"].items())
        yield from (f"# passed on: {_assigned(item)}" for item in group["passed"].items())
        gets = group["launcher_gets"]
        shown = gets if isinstance(gets, str) else " ".join(gets)
        yield f"# of this shell's variables the launcher gets: {shown}"
        yield f"cd {shlex.quote(group['folder'])} && {group['shell']}"


def _assigned(item: tuple[str, str]) -> str:
    return f"{item[0]}={shlex.quote(item[1])}"
