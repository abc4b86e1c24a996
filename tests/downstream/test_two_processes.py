"""Two processes: plain cells are shared out, DeepSpeed cells done together, to the same numbers."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.downstream import table_worker, tiny

pytestmark = [pytest.mark.processes, pytest.mark.grid]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, operators):
    place = tmp_path_factory.mktemp("table")
    for seed, arm in enumerate("ab"):
        tiny.model_folder(place / arm, seed)
        tiny.shard_folder(place / ("general", "domain")[seed], place / "a", seed)
    tiny.task_folder(place)
    _launch(place, operators)
    return place


def _launch(place: Path, operators: dict[str, str]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        **os.environ,
        **operators,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "WORLD_SIZE": "2",
    }
    logs = [place / f"rank{rank}.log" for rank in range(2)]
    started = []
    for rank, log in enumerate(logs):
        environment = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, table_worker.__file__, str(place)]
        with log.open("w") as out:
            started.append(subprocess.Popen(command, env=environment, stdout=out, stderr=out))
    try:
        codes = [process.wait(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert codes == [0, 0], "\n".join(log.read_text()[-3000:] for log in logs)


@pytest.fixture(scope="module")
def alone(folder):
    """The same table on this process alone, under another name."""
    table_worker.finetune(folder, "alone")
    return cells(folder, "alone")


def cells(folder, name):
    found = tiny.read(folder / name / "results.json")["cells"]
    return {(cell["arm"], cell["seed"]): cell for cell in found}


def test_plain_cells_do_not_depend_on_who_runs_them(folder, alone):
    for key, cell in cells(folder, "plain").items():
        # Sums in another number of threads differ in their last bits.
        for found, expected in zip(cell["epochs"], alone[key]["epochs"], strict=True):
            assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        assert cell["test"] == pytest.approx(alone[key]["test"], abs=0.05)


def test_deepspeed_cells_learn_like_plain_ones(folder, alone):
    for key, cell in cells(folder, "zero3").items():
        assert cell["tokens"] == alone[key]["tokens"]
        for found, expected in zip(cell["epochs"], alone[key]["epochs"], strict=True):
            assert found["loss"] == pytest.approx(expected["loss"], rel=2e-2)
            assert found["dev"]["accuracy"] == pytest.approx(expected["dev"]["accuracy"], abs=0.06)


def test_the_evaluation_does_not_depend_on_the_ranks(folder, alone):
    table_worker.evaluate(folder, "evaluate-alone")
    together, single = (
        tiny.read(folder / name / "results.json") for name in ("evaluate", "evaluate-alone")
    )
    assert together["differences"] == single["differences"]
    for name, found in together["language_model"]["sets"].items():
        expected = single["language_model"]["sets"][name]
        assert found["targets"] == expected["targets"]
        for arm in "ab":
            assert found["arms"][arm] == pytest.approx(expected["arms"][arm], abs=1e-5)
