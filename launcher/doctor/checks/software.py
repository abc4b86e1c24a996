"""Whether all hosts run the same programs."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from launcher.doctor.finding import Finding
from launcher.doctor.scene import Scene

# Ranks of different versions of these compute different things, or do not understand one another.
_MUST_AGREE = {"torch", "deepspeed", "transformers", "numpy", "our code", "Python"}
_SAME = "install the same environment on all hosts"


def judge_versions(scene: Scene) -> Iterator[Finding]:
    """Each host against what most have; the first host decides a draw."""
    told = {host.name: _versions(facts) for host, facts in scene.told("software")}
    for place, facts in scene.told("devices"):
        if facts["driver"]:
            told.setdefault(place.name, {})["GPU driver"] = facts["driver"]
    packages = dict.fromkeys(name for versions in told.values() for name in versions)
    for package in packages:
        values = {name: versions.get(package) for name, versions in told.items()}
        usual = Counter(values.values()).most_common(1)[0][0]
        for name, value in values.items():
            if value != usual:
                yield Finding(
                    f"{package} is {_said(value)}, on the others {_said(usual)}",
                    name,
                    _SAME,
                    "error" if package in _MUST_AGREE else "warning",
                    {"package": package, "here": value, "others": usual},
                )


def judge_installed(scene: Scene) -> Iterator[Finding]:
    """What no run does without."""
    for host, facts in scene.told("software"):
        for name in ("torch", "deepspeed", "transformers", "numpy"):
            if facts["versions"][name] is None:
                remedy = "install Onward's dependencies in this environment"
                yield Finding(f"{name} is not installed", host.name, remedy)


def judge_places(scene: Scene) -> Iterator[Finding]:
    """Our code must be read from the same path, or ranks run what somebody else left there."""
    told = {host.name: facts["code"] for host, facts in scene.told("software")}
    if len(set(told.values())) > 1:
        usual = Counter(told.values()).most_common(1)[0][0]
        for host, path in told.items():
            if path != usual:
                what = f"our code is read from {path}, on the others from {usual}"
                yield Finding(what, host, _SAME)


def judge_programs(scene: Scene) -> Iterator[Finding]:
    """What starts processes on the hosts."""
    if not scene.is_several:
        return
    package = {"pdsh": "pdsh", "mpirun": "openmpi-bin", "srun": "slurm-client"}
    program = {"pdsh": "pdsh", "openmpi": "mpirun", "slurm": "srun"}[scene.launcher]
    if program not in scene.programs:
        yield Finding(
            f"there is no {program}, which --launcher {scene.launcher} needs",
            "this machine",
            f"Debian: apt install {package[program]}",
        )
    if scene.launcher == "openmpi":
        for host, facts in scene.told("software"):
            if not {"orted", "mpirun"} & set(facts["programs"]):
                yield Finding("there is no OpenMPI", host.name, "Debian: apt install openmpi-bin")


def _versions(facts: Mapping[str, Any]) -> dict[str, str | None]:
    return {"Python": facts["python"], "our code": facts["digest"], **facts["versions"]}


def _said(version: str | None) -> str:
    return version or "not installed"
