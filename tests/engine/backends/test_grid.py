"""Every architecture at every stage trains, resumes, changes ranks and stage, and is exported."""

import json
from typing import Any

import numpy as np
import pytest

from tests.engine import tiny
from tests.engine.backends import grid_worker as worker
from tests.warm import WarmWorkers

pytestmark = [pytest.mark.processes, pytest.mark.grid]
FLOAT32 = {"rtol": 2e-5, "atol": 2e-5}
UNTIED = {"mixtral_tiny"}
CELLS = [f"{shape} {stage}" for shape in tiny.SHAPES for stage in range(4)]


@pytest.fixture(scope="module")
def answers(
    warm: WarmWorkers, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """One rank; two, which also take over what the one saved; one, which takes over theirs."""
    folder = tmp_path_factory.mktemp("grid")
    found = {}
    for name, world, other in (("one", 1, None), ("two", 2, 1), ("back", 1, 2)):
        arguments = {"folder": str(folder), "shapes": tiny.SHAPES, "other": other, "name": name}
        ended = warm.run(f"{worker.__name__}:grid", arguments, world=world, timeout=500)
        logs = "\n".join(rank.text[-3000:] for rank in ended)
        assert {rank.code for rank in ended} == {0}, logs
        found[name] = json.loads((folder / name).read_text())
    return found


def next_stage(cell: str) -> str:
    shape, stage = cell.split()
    return f"{shape} {(int(stage) + 1) % 4}"


@pytest.mark.parametrize("cell", CELLS)
def test_a_resumed_run_is_the_same_to_the_bit(answers, cell):
    for launch in ("one", "two"):
        assert answers[launch][cell]["resumed"] == answers[launch][cell]["on"]


@pytest.mark.parametrize("cell", CELLS)
def test_other_ranks_at_another_stage_go_on_with_the_same_losses(answers, cell):
    both = [
        (answers["two"][cell]["taken over"], answers["one"][next_stage(cell)]["on"]),
        (answers["back"][cell]["taken over"], answers["two"][next_stage(cell)]["on"]),
    ]
    for found, expected in both:
        np.testing.assert_allclose(np.array(found), np.array(expected), **FLOAT32)


def test_every_stage_and_number_of_ranks_gives_one_curve_with_dropout(answers):
    for shape in tiny.SHAPES:
        expected = answers["one"][f"{shape} 0"]["on"]
        for launch in ("one", "two"):
            for stage in range(4):
                found = answers[launch][f"{shape} {stage}"]["on"]
                np.testing.assert_allclose(np.array(found), np.array(expected), **FLOAT32)


@pytest.mark.parametrize("cell", CELLS)
def test_tied_weights_are_exported_tied(answers, cell):
    assert bool(answers["two"][cell]["ties"]) == (cell.split()[0] not in UNTIED)
