"""Every check by name: each judges facts, and asks nobody."""

import dataclasses
from collections.abc import Sequence

from launcher.doctor.checks.clocks import judge_clocks
from launcher.doctor.checks.collectives import judge_meeting, judge_pace
from launcher.doctor.checks.machine import (
    judge_limits,
    judge_memory,
    judge_shared_memory,
    judge_slots,
)
from launcher.doctor.checks.network import (
    judge_connections,
    judge_interfaces,
    judge_own_name,
    judge_port,
)
from launcher.doctor.checks.operator import judge_leftovers, judge_locks, judge_operator
from launcher.doctor.checks.reach import judge_doubles, judge_first, judge_reach, judge_silence
from launcher.doctor.checks.recipe import judge_recipe
from launcher.doctor.checks.software import (
    judge_installed,
    judge_places,
    judge_programs,
    judge_versions,
)
from launcher.doctor.checks.storage import judge_lock, judge_room, judge_shared, judge_speed
from launcher.doctor.finding import Finding
from launcher.doctor.scene import Check, Scene

CHECKS = (
    Check("ssh", judge_reach),
    Check("answers", judge_silence),
    Check("one name a machine", judge_doubles),
    Check("first host", judge_first),
    Check("programs", judge_programs),
    Check("installed", judge_installed),
    Check("same versions", judge_versions),
    Check("same paths", judge_places),
    Check("slots", judge_slots),
    Check("clocks", judge_clocks),
    Check("interfaces", judge_interfaces),
    Check("own names", judge_own_name),
    Check("connections", judge_connections),
    Check("port", judge_port),
    Check("shared folder", judge_shared),
    Check("locks across hosts", judge_lock),
    Check("disk space", judge_room),
    Check("disk speed", judge_speed),
    Check("limits", judge_limits),
    Check("memory", judge_memory),
    Check("shared memory", judge_shared_memory),
    Check("stale locks", judge_locks),
    Check("CPU operator", judge_operator),
    Check("leftovers", judge_leftovers),
    Check("recipe", judge_recipe),
    Check("meeting", judge_meeting),
    Check("pace", judge_pace),
)
_OF_COLLECTIVES = {"meeting", "pace"}


def judge(scene: Scene, checks: Sequence[Check] = CHECKS) -> list[Finding]:
    """What all checks find; of one that finds nothing, that all is well."""
    findings: list[Finding] = []
    for check in checks:
        if check.name in _OF_COLLECTIVES and not scene.collectives:
            continue
        found = list(check.judge(scene))
        if not found and any(scene.facts.values()):
            # Of hosts that have not answered nothing is known to be well.
            found = [Finding(check.name, severity="ok")]
        findings += [dataclasses.replace(one, check=check.name) for one in found]
    return findings
