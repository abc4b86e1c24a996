"""Probes, held-out losses and decisions on two ranks at ZeRO stage 3: one start of warm workers."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.assemble import assemble
from engine.training import train_from_newest
from tests.downstream.probing_cases import context, deciding, prepare
from tests.warm import WarmWorkers

pytestmark = pytest.mark.processes
PLAIN = {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 4}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, warm: WarmWorkers) -> Path:
    """A run on two ranks, and the same on this process alone."""
    folder = prepare(tmp_path_factory.mktemp("ranks"))
    ended = warm.run("tests.downstream.probing_worker:main", {"place": str(folder)}, timeout=200)
    assert [each.code for each in ended] == [0, 0], "".join(e.text[-3000:] for e in ended)
    asked = deciding(folder, {"name": "plain", "config": PLAIN})
    train_from_newest(assemble(asked, context(folder, folder / "plain")))
    return folder


def both(place: Path, name: str) -> list[list[dict[str, Any]]]:
    paths = [place / run / f"{name}.jsonl" for run in ("zero3", "plain")]
    return [[json.loads(line) for line in path.read_text().splitlines()] for path in paths]


@pytest.mark.grid
def test_all_ranks_decide_alike_and_again_after_the_end(place: Path) -> None:
    assert json.loads((place / "answers.json").read_text()) == [[2, 2], [2, 2]]
    told = [json.loads((place / run / "choice.json").read_text()) for run in ("zero3", "plain")]
    assert [(each["step"], each["last_step"]) for each in told] == [(2, 6), (2, 6)]


def test_what_is_measured_does_not_depend_on_the_ranks(place: Path) -> None:
    mine, theirs = both(place, "validation")
    assert [line["step"] for line in mine] == [line["step"] for line in theirs] == [0, 2, 4, 6]
    for one, other in zip(mine, theirs, strict=True):
        kept, expected = one["sets"]["kept"], other["sets"]["kept"]
        assert kept["loss"] == pytest.approx(expected["loss"], abs=2e-3)
        assert kept["average"]["loss"] == pytest.approx(expected["average"]["loss"], abs=2e-3)
        assert kept["targets"] == expected["targets"]
    assert mine[-1]["sets"]["kept"]["average"]["loss"] != mine[-1]["sets"]["kept"]["loss"]
    # Before the first step the weights are the same.
    first, expected = (lines[0]["probes"]["parts"] for lines in both(place, "probes"))
    assert first == pytest.approx(expected)


def test_the_noise_and_the_rate_are_the_same(place: Path) -> None:
    mine, theirs = both(place, "forgetting")
    for one, other in zip(mine, theirs, strict=True):
        assert one["floor"] == pytest.approx(other["floor"], rel=1e-3)
        assert one["change"] == pytest.approx(other["change"], abs=2e-3)
        assert one["rate"] == other["rate"]
    assert mine[-1]["rate"] < 1
