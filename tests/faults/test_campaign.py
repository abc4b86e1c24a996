"""The fault campaign: cells that must end as if nothing had happened, and how it judges."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults import damage, judge, report
from benchmarks.faults.campaign import Campaign, silent_corruptions
from benchmarks.faults.draw import DAMAGES, KINDS, Drawn, Fault, Setup, draw
from benchmarks.faults.supervise import Attempt, Played
from tests.warm import WarmWorkers

BERT = Setup("bert", 2, "bf16", 2, "average", 8, 2, 8, 2, keep=2, mode="async", guard=True)
GPT2 = Setup("gpt2", 1, "fp32", 2, "penalty", 8, 2, 8, 2, keep=1, mode="sync", guard=False)
UNEVEN = Setup("bert", 3, "fp32", 4, "lora", 12, 1, 4, 2, keep=2, mode="sync", guard=False)


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    return Campaign(tmp_path_factory.mktemp("campaign"), seed=0, warning=0.2)


def play(campaign: Campaign, warm: WarmWorkers, number: int, setup: Setup, *faults: Fault) -> Any:
    told = campaign.play(Drawn(number, setup, faults), warm)
    assert told["passed"], report.line(told) + json.dumps(told, indent=1)
    return told


def kills(*points: str) -> list[Fault]:
    return [Fault("killed", f"kill@{point}") for point in points]


@pytest.mark.processes
@pytest.mark.grid
def test_a_kill_in_every_phase_of_a_step_changes_nothing(campaign, warm):
    points = ("start:rank=1", "data:step=2", "reduce:rank=1,step=2", "forward:rank=1,step=3,nth=2")
    more = ("backward:step=4,nth=2", "optimizer:rank=1,step=6", "validation:rank=1,nth=1")
    told = play(campaign, warm, 1, BERT, *kills(*points, *more))
    assert all(attempt["struck"] for attempt in told["attempts"][:-1])
    assert {attempt["said"]["exit_code"] for attempt in told["attempts"][:-1]} == {5}


@pytest.mark.processes
@pytest.mark.grid
def test_a_kill_at_every_point_of_a_save_changes_nothing(campaign, warm):
    first = ("begin", "shard:rank=1", "half:rank=1", "gather", "manifest", "rename", "renamed")
    points = [f"checkpoint.{name}" for name in (*first, "prune")]
    told = play(campaign, warm, 2, GPT2, *kills(*points))
    assert all(attempt["struck"] for attempt in told["attempts"][:-1])
    assert told["asked_person"] == 0


@pytest.mark.processes
@pytest.mark.grid
def test_other_numbers_of_ranks_and_other_stages_read_the_same_rows(campaign, warm):
    where = "kill@optimizer:step=2"
    faults = [Fault("1", where, world=1), Fault("2", "kill@forward:step=4", world=2, stage=3)]
    told = play(campaign, warm, 3, GPT2, *faults)
    assert [attempt["world"] for attempt in told["attempts"]] == [2, 1, 2]
    told = play(campaign, warm, 4, UNEVEN, Fault("3", where, world=3, reading="pread"))
    assert [attempt["world"] for attempt in told["attempts"]] == [4, 3]
    assert told["loss_difference"] < 1e-6


@pytest.mark.processes
@pytest.mark.grid
def test_fifty_steps_after_the_change_are_those_of_the_unbroken_run(campaign, warm):
    setup = replace(UNEVEN, world=2, steps=56, every=5, extra="average")
    told = play(campaign, warm, 6, setup, Fault("4", "kill@forward:step=6", world=1, stage=1))
    assert [attempt["steps"] for attempt in told["attempts"]] == [6, 51]
    assert told["ids_exact"]
    assert told["loss_difference"] < 1e-5


@pytest.mark.processes
@pytest.mark.grid
def test_no_step_is_trained_from_a_damaged_checkpoint(campaign, warm):
    hit = Fault("damaged", "kill@forward:rank=1,step=7", damage="flip", draw=3)
    told = play(campaign, warm, 5, BERT, hit)
    first, second = told["attempts"]
    assert first["spoilt"]["step"] > second["started_at"][0] > 0


def test_runs_are_drawn_by_seed_and_number():
    drawn = [draw(1, number) for number in range(300)]
    assert drawn == [draw(1, number) for number in range(300)]
    assert drawn != [draw(2, number) for number in range(300)]
    assert len({fault.kind for run in drawn for fault in run.faults}) == len(KINDS) + 1
    assert {fault.damage for run in drawn for fault in run.faults} == {"", *DAMAGES}
    assert not any(run.standing and run.changes_sums for run in drawn)


def write_records(folder: Path, rank: int, *lines: Any) -> Path:
    folder.mkdir(exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / f"rank-{rank}.jsonl").write_text(text + '{"step": 9, "ro')
    return folder


def test_only_steps_that_nothing_undid_count(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    for rank in range(2):
        steps = [{"step": n, "rows": [[0, 0, 10 * n + rank]]} for n in range(1, 4 - rank)]
        write_records(first, rank, {"start": 0, "world": 2}, *steps)
    write_records(second, 0, {"start": 1, "world": 1}, {"step": 2, "rows": [[0, 0, 7]]})
    # Step 3 was taken by one rank of two alone; step 2 was taken again.
    assert judge.rows_trained_on([first]) == {
        1: [[0, 0, 10], [0, 0, 11]],
        2: [[0, 0, 20], [0, 0, 21]],
    }
    assert judge.rows_trained_on([first, second])[2] == [[0, 0, 7]]
    assert judge.way_of(first) == judge.Way([0], 3, 3)
    late = write_records(tmp_path / "3", 0, {"start": 5, "world": 1})
    with pytest.raises(RuntimeError, match="nobody took step 3"):
        judge.rows_trained_on([first, late])


def test_what_differs_from_the_control_is_told() -> None:
    rows = {1: [[0, 0, 1]], 2: [[0, 0, 2]]}
    control = judge.Result("a", "b", [[1, 2.0], [2, 1.0]], [], rows, {"w": 1.0})
    assert judge.Result.from_json(json.loads(json.dumps(control.to_json()))) == control
    other = replace(
        control, digest="c", losses=[[1, 2.0], [2, 1.5]], rows={1: [[0, 0, 1]], 2: [[0, 0, 1]]}
    )
    told = judge.compare(other, control, 2)
    assert (told["digest_equal"], told["losses_equal"], told["ids_exact"]) == (False,) * 3
    assert (told["rows_twice"], told["rows_missing"], told["loss_difference"]) == (1, 1, 0.5)


def test_training_on_from_what_was_damaged_is_seen(tmp_path: Path) -> None:
    before = Attempt(0, 2, 1, "", "", spoilt={"step": 4})
    for start, seen in ((4, 1), (2, 0)):
        after = Attempt(1, 2, 1, "", "", started_at=[start])
        assert silent_corruptions(Played(tmp_path, [before, after], finished=True)) == seen


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_done_to_the_newest_alone(tmp_path: Path, kind: str) -> None:
    def contents(step: int) -> dict[str, bytes]:
        folder = tmp_path / f"step-{step}"
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    for step in (2, 10):
        (tmp_path / f"step-{step}").mkdir()
        for name in ("rank-0", "rank-1", "index.json"):
            (tmp_path / f"step-{step}" / name).write_text(f"{name} of {step}")
    before = contents(2), contents(10)
    told = damage.spoil(tmp_path, kind, draw=1)
    assert told is not None
    assert told["step"] == 10
    assert contents(2) == before[0]
    assert contents(10) != before[1]
