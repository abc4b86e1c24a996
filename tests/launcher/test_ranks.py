"""A process knows its rank, whoever started it."""

import pytest

from configs.errors import LaunchError
from launcher import spelling
from launcher.ranks import settle

MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
STEP = {
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "2",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
}
MEETING = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4000"}


def settled(**environment: str) -> dict[str, str]:
    made = dict(environment)
    settle(made)
    return {name: value for name, value in made.items() if environment.get(name) != value}


def test_by_mpirun() -> None:
    ranks = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_SIZE": "2"}
    assert settled(**MPI, **MEETING) == ranks


def test_by_srun() -> None:
    ranks = {"RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "LOCAL_SIZE": "1"}
    assert settled(**STEP) == ranks
    even = {**STEP, "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}
    assert settled(**even)["LOCAL_SIZE"] == "2"


def test_a_batch_script_is_no_rank_and_a_lone_task_only_where_it_is_to_meet_others() -> None:
    assert settled(**{**STEP, "SLURM_STEP_ID": "batch"}) == {}
    alone = {**STEP, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}
    assert settled(**alone) == {}
    assert settled(**alone, **MEETING)["RANK"] == "0"


def test_what_deepspeed_or_torchrun_has_set_stays() -> None:
    given = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    assert settled(**given, **STEP) == {}
    assert settled(RANK="0", WORLD_SIZE="2") == {}
    assert settled() == {}
    # mpirun started one deepspeed a host: its numbers are not the ranks'.
    assert settled(**given, **MPI) == {}


def test_contradictions_are_told() -> None:
    with pytest.raises(LaunchError, match="RANK=0 is set, but mpirun says rank 3 of 4"):
        settled(RANK="0", WORLD_SIZE="4", LOCAL_RANK="0", **MPI)
    with pytest.raises(LaunchError, match="RANK=0 is set, but srun says 2; unset it"):
        settled(RANK="0", **STEP)


def test_words_are_spelled_only_where_one_needs_it() -> None:
    assert spelling.spell_if_needed(["/a/b.yaml", "--grace=60"]) == ["/a/b.yaml", "--grace=60"]
    hostile = ["/a b/$x", "+20", "é\udcff", ""]
    words = spelling.spell_if_needed(hostile)
    assert all(map(spelling.is_plain, (word.replace("+", "") for word in words)))
    assert spelling.read_if_spelled(["--local_rank=10", *words]) == ["--local_rank=10", *hostile]
