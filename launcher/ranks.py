"""Which rank this process is, whoever started it: torchrun's names from mpirun's and srun's."""

from collections.abc import Mapping, MutableMapping

from configs.errors import LaunchError

_COMPLETE = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_ENTRY = "MASTER_ADDR", "MASTER_PORT"
_OPENMPI = {
    "RANK": "OMPI_COMM_WORLD_RANK",
    "WORLD_SIZE": "OMPI_COMM_WORLD_SIZE",
    "LOCAL_RANK": "OMPI_COMM_WORLD_LOCAL_RANK",
    "LOCAL_SIZE": "OMPI_COMM_WORLD_LOCAL_SIZE",
}
_SLURM = {
    "RANK": "SLURM_PROCID",
    "WORLD_SIZE": "SLURM_STEP_NUM_TASKS",
    "LOCAL_RANK": "SLURM_LOCALID",
}


def settle(environment: MutableMapping[str, str]) -> None:
    """Set RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_SIZE from what mpirun or srun has set.

    What torchrun or deepspeed has set stays. Alone in its job, a process is left as it is.

    Raises:
        LaunchError: only a part is set, or mpirun says otherwise.
    """
    given = [name for name in _COMPLETE if name in environment]
    if len(given) == len(_COMPLETE) or set(given) == {"RANK", "WORLD_SIZE"}:
        _refuse_contradiction(environment)
        return
    found = _from_openmpi(environment) or _from_slurm(environment)
    if not found:
        return
    other = [name for name in given if environment[name] != found[name]]
    if other:
        name = other[0]
        msg = f"{name}={environment[name]} is set, but {found['from']} says {found[name]}; unset it"
        raise LaunchError(msg)
    del found["from"]
    environment.update(found)


def _from_openmpi(environment: Mapping[str, str]) -> dict[str, str]:
    if _OPENMPI["RANK"] not in environment:
        return {}
    made = {name: environment[own] for name, own in _OPENMPI.items() if own in environment}
    return {**made, "from": "mpirun"}


def _from_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    """Of a step that srun started with several tasks; a batch script's own process is no rank.

    A single task counts, too, where somebody has told it of a place to meet.
    """
    size = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS", "")
    is_step = environment.get("SLURM_STEP_ID", "batch").isdecimal() and size.isdecimal()
    if not is_step or _SLURM["RANK"] not in environment:
        return {}
    if int(size) == 1 and not set(_ENTRY) <= environment.keys():
        return {}
    made = {
        "RANK": environment[_SLURM["RANK"]],
        "WORLD_SIZE": size,
        "LOCAL_RANK": environment.get(_SLURM["LOCAL_RANK"], "0"),
    }
    local = _tasks_here(environment)
    return {**made, **({"LOCAL_SIZE": local} if local else {}), "from": "srun"}


def _tasks_here(environment: Mapping[str, str]) -> str:
    """Of ``SLURM_STEP_TASKS_PER_NODE=2(x3),1`` this node's; empty if it cannot be told."""
    given = environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    node = environment.get("SLURM_NODEID", "")
    counts: list[str] = []
    for part in filter(None, given.split(",")):
        count, times, repeated = part.partition("(x")
        counts += [count] * (int(repeated.rstrip(")")) if times else 1)
    return counts[int(node)] if node.isdecimal() and int(node) < len(counts) else ""


def _refuse_contradiction(environment: Mapping[str, str]) -> None:
    """A launcher within a launcher is fine, unless each process takes itself for the only one."""
    size = environment.get(_OPENMPI["WORLD_SIZE"])
    rank = environment.get(_OPENMPI["RANK"])
    if rank is None or size is None:
        return
    if size == environment["WORLD_SIZE"] and rank != environment["RANK"]:
        msg = (
            f"RANK={environment['RANK']} is set, but mpirun says rank {rank} of {size}; start "
            "with one launcher alone, or unset RANK"
        )
        raise LaunchError(msg)
