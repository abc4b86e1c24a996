"""The part of the examination that every launch on several hosts begins with: seconds at most."""

import dataclasses
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from configs.errors import LaunchError
from launcher.doctor.checks import CHECKS, judge
from launcher.doctor.examine import launch_values
from launcher.doctor.facts.software import PROGRAMS
from launcher.doctor.scene import Scene
from launcher.doctor.visit import Visit, place_for, trial_folder
from launcher.exports import exports, own_files
from launcher.hosts import Host, is_local

_CHEAP = {"ssh", "answers", "one name a machine", "installed", "same versions", "same paths",
          "interfaces", "shared folder", "stale locks"}  # fmt: skip


def require_ready(hosts: Sequence[Host], run_folder: Path, environment: Mapping[str, str]) -> None:
    """Nothing on one machine; of several: names, ssh, versions, the shared folder.

    Raises:
        LaunchError: all that would make the run fail, host by host.
    """
    if is_local(hosts):
        return
    scene = Scene(
        hosts=hosts,
        environment=exports(environment, own_files(environment)),
        programs=frozenset(name for name in PROGRAMS if shutil.which(name)),
        folder=run_folder,
        is_folder_given=True,
        python=sys.executable,
    )
    found = judge(_visited(scene, environment), [c for c in CHECKS if c.name in _CHEAP])
    errors = [finding for finding in found if finding.severity == "error"]
    if errors:
        lines = [f"{one.where}: {one.what}; {one.remedy}" for one in errors]
        raise LaunchError("\n".join(["these hosts are not ready:", *lines]))


def _visited(scene: Scene, given: Mapping[str, str]) -> Scene:
    visit = Visit(scene.hosts, launch_values(scene.environment, given), by_ssh=True)
    unwritable = ""
    try:
        visit.begin()
        visit.ask("machine")
        visit.ask("software")
        visit.ask_network(None)
        with trial_folder(place_for(scene.folder)) as folder:
            visit.share(folder)
    except OSError as error:
        unwritable = error.strerror or str(error)
    finally:
        visit.end()
    return dataclasses.replace(
        scene, facts=visit.facts, unreached=visit.unreached, unwritable=unwritable
    )
