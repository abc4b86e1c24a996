"""The same prepare as datatrove pipelines: the same bytes, and scripts that Slurm can run."""

import inspect
import json
import pickle
from importlib.util import find_spec

import pytest

from configs.errors import DataError, RecipeError
from data_pipeline.preparing.job import PHASES
from tests.data_pipeline.test_prepare import context, files, made, recipe

__all__ = ["files"]
pytestmark = pytest.mark.skipif(find_spec("datatrove") is None, reason="the extra 'scale'")


@pytest.fixture(autouse=True)
def small_tasks(monkeypatch):
    monkeypatch.setattr("data_pipeline.sources.lines.PART_BYTES", 1500)
    monkeypatch.setattr("data_pipeline.sources.lines.BLOCK", 700)
    monkeypatch.setattr("data_pipeline.spool.BLOCK_BYTES", 400)
    monkeypatch.setattr("data_pipeline.preparing.chunks.SMALLEST_CHUNK", 1000)
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)


def build(files, folder, logs, kind, tasks, **settings):
    from data_pipeline.preparing.on_datatrove import build_executor

    return build_executor(recipe(files), context(folder), kind, tasks, logs, settings)


def chain_of(executor):
    found = []
    while executor:
        found.append(executor)
        executor = executor.depends
    return found[::-1]


def test_the_local_executor_makes_the_same(files, tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    plain, folder, logs = tmp_path / "plain", tmp_path / "run", tmp_path / "logs"
    recipe(files).run(context(plain))
    build(files, folder, logs, "local", 3, workers=1).run()
    assert (folder / ".prepare").exists()
    before = (folder / "prepared.json").stat().st_mtime_ns
    # What is left is to clean up.
    recipe(files).run(context(folder))
    assert (folder / "prepared.json").stat().st_mtime_ns == before
    assert made(folder) == made(plain)
    ranks = sorted((logs / "clean" / "stats").glob("*.json"))
    done = [json.loads(rank.read_text())[0]["stats"]["tasks"] for rank in ranks]
    assert len(done) == 3
    assert min(one["total"] if isinstance(one, dict) else one for one in done) > 2


@pytest.mark.processes
def test_ranks_are_processes(files, tmp_path, monkeypatch):
    """Of one phase, as a start of processes takes seconds."""
    monkeypatch.undo()
    executors = chain_of(build(files, tmp_path / "run", tmp_path / "logs", "local", 2))
    executors[0].run()
    job = executors[1].pipeline[0]
    assert next((tmp_path / "run/.prepare").glob("read-*/read/*.json"))
    assert list(job.run(iter(["handed on"]))) == ["handed on"]
    assert next((tmp_path / "run/.prepare").glob("work-*/begin/all.json"))


def test_a_phase_whose_turn_has_not_come_is_an_error(files, tmp_path):
    executors = chain_of(build(files, tmp_path / "run", tmp_path / "logs", "local", 2))
    with pytest.raises(DataError, match=r"task .* of phase read is not finished; run again"):
        list(executors[2].pipeline[0].run())


def test_slurm_jobs_wait_for_one_another(files, tmp_path, monkeypatch):
    from datatrove.executor import slurm

    submitted = []

    def launch(script, retriever, *arguments):
        submitted.append((script, arguments))
        return str(len(submitted))

    monkeypatch.setattr(slurm, "launch_slurm_job", launch)
    settings = {"partition": "cpu", "time": "20:00:00", "env_command": "source /env"}
    build(files, tmp_path / "run", tmp_path / "logs", "slurm", 7, **settings).run()
    jobs = [(s, a) for s, a in submitted if "launch_pickled_pipeline" in s]
    assert len(jobs) == len(PHASES)
    for number, (phase, (script, arguments)) in enumerate(zip(PHASES, jobs, strict=True)):
        lines = script.splitlines()
        alone = phase in {"begin", "decide", "tokenizer", "finish"}
        assert f"#SBATCH --array=0-{0 if alone else 6}" in lines
        assert f"#SBATCH --job-name=prepare-{phase}" in lines
        assert {"#SBATCH --partition=cpu", "#SBATCH --time=20:00:00", "source /env"} <= set(lines)
        waits = [word for word in arguments if "dependency" in word]
        # Each job is followed by one that adds up its statistics.
        assert waits == ([f"--dependency=afterok:{2 * number - 1}"] if number else [])
        executor = pickle.loads((tmp_path / "logs" / phase / "executor.pik").read_bytes())
        assert executor.pipeline[0].phase == phase
        assert executor.world_size == (1 if alone else 7)


def test_wrong_settings_are_refused(files, tmp_path):
    where = (files, tmp_path / "run", tmp_path / "logs")
    with pytest.raises(RecipeError, match=r"needs --set time=\.\.\., --set partition="):
        build(*where, "slurm", 2)
    with pytest.raises(RecipeError, match="--set nodes: datatrove's local executor has workers"):
        build(*where, "local", 2, nodes=3)
    with pytest.raises(RecipeError, match="--set depends"):
        build(*where, "local", 2, depends=None)


def test_what_ray_is_given_it_has(files, tmp_path):
    """Ray itself is not installed; datatrove's executor for it is made without it."""
    from datatrove.executor import RayPipelineExecutor

    last = build(files, tmp_path / "run", tmp_path / "logs", "ray", 3, cpus_per_task=2)
    assert isinstance(last, RayPipelineExecutor)
    assert [e.world_size for e in chain_of(last)] == [
        1 if p in {"begin", "decide", "tokenizer", "finish"} else 3 for p in PHASES
    ]
    assert "cpus_per_task" in inspect.signature(RayPipelineExecutor.__init__).parameters
