"""Runs that decide by what they measure, on plain torch: chosen, ended, eased, rolled back."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from configs.errors import NumericalError
from configs.stage import StageContext
from data_pipeline.example import WORD_START
from data_pipeline.shards import ShardWriter
from data_pipeline.streaming import Cursor
from data_pipeline.tokenization import tokenizer_record
from engine import faults
from engine.assemble import assemble
from engine.checkpoint import open_checkpoint
from engine.pretraining import PretrainStage
from engine.training import train_from_newest
from launcher.chain import enter
from launcher.inspection import order_table
from launcher.recipe import Recipe
from launcher.run_folder import RunFolder
from tests.engine import tiny

STEPS = 12
TIMING = (
    *("seconds", "tokens_per_second", "tflops", "mfu", "step_seconds", "data_wait", "memory"),
    "restarts",
)
HALVES = {"domain": (5, 34), "general": (34, tiny.VOCABULARY), "held_out": (34, tiny.VOCABULARY)}
"""Tokens of each set: who learns the domain's unlearns what the others consist of."""


@pytest.fixture(autouse=True)
def _no_faults() -> Iterator[None]:
    yield
    faults.load("")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, two sources and a held-out set."""
    folder = tmp_path_factory.mktemp("deciding")
    record = tokenizer_record(tiny.tokenizer_folder(folder / "tokenizer"))
    record = record.model_copy(update={"special": tiny.SPECIAL, "prefix": [1], "suffix": [2]})
    for seed, (name, (low, high)) in enumerate(HALVES.items()):
        rng = np.random.default_rng(seed)
        lengths = rng.integers(3, 10, 400).astype(np.int32)
        tokens = rng.integers(low, high, lengths.sum())
        with ShardWriter(folder / name, record, 10_000) as writer:
            writer.write(tokens, lengths, np.full(len(tokens), WORD_START, np.uint8))
            writer.finish({})
    return folder


def stage(place: Path, **changes: Any) -> PretrainStage:
    values = {
        "kind": "pretrain",
        "model": {"name": "random", "shape": "bert_tiny", "tokenizer": str(place / "tokenizer")},
        "data": {"length": 12, "sources": sources(place)},
        "objective": {"name": "mlm"},
        "optimizer": {"name": "adamw", "lr": 1e-2},
        "schedule": {"name": "constant"},
        "steps": STEPS,
        "backend": {"name": "plain", "config": {"train_batch_size": 8}},
        "checkpoint": {"every": 5, "keep": 1},
        "validation": {"every": 2, "rows": 16, "sets": {"kept": str(place / "held_out")}},
        "log_every": 1,
    }
    return PretrainStage.model_validate(values | changes)


def sources(place: Path) -> dict[str, Any]:
    return {
        "domain": {"shards": str(place / "domain"), "weight": 9},
        "general": {"shards": str(place / "general"), "weight": 1},
    }


def context(folder: Path) -> StageContext:
    folder.mkdir(parents=True, exist_ok=True)
    return StageContext("dapt", folder, 1, "key", {})


def go(asked: PretrainStage, folder: Path, fault: str = "") -> int:
    faults.load(fault)
    return train_from_newest(assemble(asked, context(folder)))


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMING} for line in found]


def state(folder: Path, step: int) -> dict[str, torch.Tensor]:
    store = open_checkpoint(folder / "checkpoints" / f"step-{step}").store()
    keys = ("fp32", *store.state_keys)
    return {f"{name}|{key}": store.whole(name, key) for name in store.names for key in keys}


def require_same(one: Path, other: Path, step: int) -> None:
    mine, theirs = state(one, step), state(other, step)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name
    for name in ("metrics", "validation", "forgetting"):
        if (one / f"{name}.jsonl").exists():
            assert lines(one, name) == lines(other, name)


def steps_kept(folder: Path) -> set[int]:
    return {int(each.name.removeprefix("step-")) for each in folder.glob("checkpoints/step-*")}


CHOOSE = {"by": "validation/kept/loss", "patience": 2}
GENTLE = {"name": "adamw", "lr": 1e-3}


def watched(place: Path, *above: dict[str, Any], **changes: Any) -> PretrainStage:
    return stage(place, forgetting={"set": "kept", "above": list(above)}, **changes)


@pytest.fixture(scope="module")
def ended(place: Path) -> Path:
    """A stage that ended early, and exported what it chose."""
    folder = place / "runs" / "ended"
    stage(place, choose=CHOOSE).run(context(folder))
    return folder


def test_a_stage_that_ends_early_has_ended_on_the_board(ended: Path) -> None:
    from tensorboard.plugins.hparams import metadata

    ends = [
        value
        for events in (ended / "tensorboard").glob("events*")
        for value in values_in(events)
        if value.tag == metadata.SESSION_END_INFO_TAG
    ]
    assert len(ends) == 1


def values_in(events: Path) -> list[Any]:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    return [value for event in EventFileLoader(str(events)).Load() for value in event.summary.value]


def test_a_stage_ends_early_and_exports_its_best_step(place: Path, ended: Path) -> None:
    measured = {line["step"]: line["sets"]["kept"]["loss"] for line in lines(ended, "validation")}
    best = min(list(measured)[1:], key=measured.__getitem__)
    assert list(measured) == list(range(0, best + 5, 2))
    assert max(measured) < STEPS
    assert steps_kept(ended) == {best, best + 4}
    told = json.loads((ended / "choice.json").read_text())
    assert (told["step"], told["last_step"], told["value"]) == (best, best + 4, measured[best])
    assert told["before"] == measured[0]
    assert "not lower in 2 measurements" in told["ended_early"]
    exported = load_file(ended / "export" / "model.safetensors")
    kept = state(ended, best)
    assert all(torch.equal(v, kept[f"backbone.{n}|fp32"]) for n, v in exported.items())
    lineage = json.loads((ended / "export" / "onward.json").read_text())["lineage"]
    assert (lineage["step"], lineage["choice"]) == (best, told)


@pytest.mark.grid
@pytest.mark.parametrize("point", ["optimizer:step=1", "optimizer:step=3", "checkpoint.prune"])
def test_a_killed_run_chooses_and_ends_alike(
    place: Path, ended: Path, tmp_path: Path, point: str
) -> None:
    asked = stage(place, choose=CHOOSE)
    with pytest.raises(Exception, match="injected at"):
        go(asked, tmp_path, f"error@{point}")
    best = go(asked, tmp_path)
    require_same(ended, tmp_path, best)
    assert (tmp_path / "choice.json").read_text() == (ended / "choice.json").read_text()
    # As if it had been killed between the decision and the export.
    (tmp_path / "choice.json").unlink()
    before = (tmp_path / "metrics.jsonl").read_text()
    assert go(asked, tmp_path) == best
    assert (tmp_path / "metrics.jsonl").read_text() == before
    assert (tmp_path / "choice.json").read_text() == (ended / "choice.json").read_text()


def test_a_choice_is_there_whatever_the_mode(place: Path, ended: Path, tmp_path: Path) -> None:
    policy = {"every": 1, "keep": 1, "mode": "async"}
    asked = stage(place, choose=CHOOSE, checkpoint=policy)
    best = go(asked, tmp_path, "sleep@checkpoint.rename:step=1,seconds=0.5")
    require_same(ended, tmp_path, best)
    assert steps_kept(tmp_path) == {best, best + 4}


def test_to_stop_at_a_forgetting_finishes_the_stage(place: Path, tmp_path: Path) -> None:
    asked = watched(place, {"floors": 1, "do": "warn"}, {"floors": 2, "do": "stop"})
    assert go(asked, tmp_path) == 2
    (first, last) = lines(tmp_path, "forgetting")
    assert (first["change"], first["multiple"], first["actions"]) == (0, 0, [])
    assert last["actions"] == [{"floors": 2, "do": "stop"}]
    assert last["done"] == {"warn": 0, "stop": 1}
    assert (last["low"], last["high"]) == pytest.approx(
        (last["change"] - last["floor"], last["change"] + last["floor"])
    )
    told = json.loads((tmp_path / "choice.json").read_text())
    assert told["step"] == told["last_step"] == 2
    assert "noise floors above the base's, more than 2" in told["ended_early"]
    assert go(asked, tmp_path) == 2
    chosen = stage(place, forgetting=asked.forgetting, choose={"by": "validation/kept/loss"})
    assert go(chosen, tmp_path / "chosen") == 2


def test_a_lower_rate_holds_from_the_next_step_on_and_over_a_resume(
    place: Path, tmp_path: Path
) -> None:
    asked = watched(place, {"floors": 1, "do": "lower_rate", "factor": 0.25}, steps=6)
    go(asked, tmp_path / "whole")
    rates = [line["lr"] for line in lines(tmp_path / "whole", "metrics")]
    watch = lines(tmp_path / "whole", "forgetting")
    assert watch[1]["multiple"] > 1
    assert rates[:3] == [1e-2, 1e-2, 2.5e-3]
    # The rate told after a measurement is that of the step after it.
    assert [1e-2 * line["rate"] for line in watch[:-1]] == pytest.approx(rates[0::2])
    with pytest.raises(RuntimeError, match="injected at"):
        go(asked, tmp_path / "killed", "error@optimizer:step=5")
    go(asked, tmp_path / "killed")
    require_same(tmp_path / "whole", tmp_path / "killed", 6)


BACK = {"floors": 2, "do": "roll_back", "factor": 0.1, "most": 1}


def gentle(place: Path, **back: Any) -> PretrainStage:
    """The base's level is left after a few steps."""
    policy = {"every": 2, "keep": 1}
    return watched(place, BACK | back, optimizer=GENTLE, checkpoint=policy)


@pytest.fixture(scope="module")
def rolled_back(place: Path) -> Path:
    """A run that went back once."""
    folder = place / "runs" / "back"
    assert go(gentle(place), folder) == STEPS
    return folder


def test_it_goes_back_to_where_nothing_was_forgotten(rolled_back: Path) -> None:
    watch = lines(rolled_back, "forgetting")
    ((told, action),) = [(line, a) for line in watch for a in line["actions"]]
    assert action["do"] == "roll_back"
    to, at = action["to"], action["at"]
    assert 0 < to < at
    assert action["multiple"] > 2
    assert told["step"] == to + 2
    assert watch[to // 2]["multiple"] <= 1
    assert [line["done"]["roll_back"] for line in watch] == [int(2 * n > to) for n in range(7)]
    metrics = lines(rolled_back, "metrics")
    assert [line["step"] for line in metrics] == list(range(1, STEPS + 1))
    assert [line["lr"] for line in metrics] == pytest.approx([1e-3] * to + [1e-4] * (STEPS - to))


@pytest.mark.grid
@pytest.mark.parametrize("point", ["rollback", "rolled_back", "data:step=11,nth=1"])
def test_a_run_that_dies_around_a_rollback_ends_alike(
    place: Path, rolled_back: Path, tmp_path: Path, point: str
) -> None:
    with pytest.raises(RuntimeError, match="injected at"):
        go(gentle(place), tmp_path, f"error@{point}")
    go(gentle(place), tmp_path)
    require_same(rolled_back, tmp_path, STEPS)


def test_a_rollback_of_the_guard_takes_the_lower_rate_not_back(
    place: Path, rolled_back: Path, tmp_path: Path
) -> None:
    (back,) = [a for line in lines(rolled_back, "forgetting") for a in line["actions"]]
    to = back["to"]
    asked = PretrainStage.model_validate(
        gentle(place).model_dump(mode="json") | {"guard": {"patience": 2}}
    )
    # The steps behind the checkpoint that the run has gone back to, when it comes to them again.
    go(asked, tmp_path, f"nan@loss:step={to},nth=2;nan@loss:step={to + 1},nth=2")
    skipped = lines(tmp_path, "skipped")
    assert [(line["step"], line["avoided"]) for line in skipped] == [
        (to + 1, True),
        (to + 2, True),
    ]
    rates = [line["lr"] for line in lines(tmp_path, "metrics")]
    assert rates == pytest.approx([1e-3] * to + [1e-4] * (STEPS - to))
    told = [line["done"]["roll_back"] for line in lines(tmp_path, "forgetting")]
    assert told == [int(2 * n > to) for n in range(7)]


def test_rollbacks_have_a_limit_and_need_a_checkpoint(place: Path, tmp_path: Path) -> None:
    with pytest.raises(NumericalError, match="there have been 1 rollbacks of 1"):
        go(gentle(place, factor=0.99), tmp_path / "again")
    with pytest.raises(NumericalError, match="there is no checkpoint from before step 1 to go"):
        go(watched(place, BACK), tmp_path / "none")


LARGE = {"train_batch_size": 512, "train_micro_batch_size_per_gpu": 512}
MORE = {"floors": 1, "do": "more_replay", "source": "general", "factor": 4.0}


def large(place: Path, *above: dict[str, Any], steps: int = 4, **data: Any) -> PretrainStage:
    return watched(
        place,
        *above,
        data={"length": 12, "sources": sources(place), **data},
        backend={"name": "plain", "config": LARGE},
        validation={"every": 1, "rows": 16, "sets": {"kept": str(place / "held_out")}},
        checkpoint={"every": 2, "keep": 5},
        steps=steps,
    )


def test_more_replay_is_as_if_the_recipe_had_named_the_change(place: Path, tmp_path: Path) -> None:
    asked = large(place, MORE)
    later = {"after": 512, "weights": {"domain": 9, "general": 4}}
    go(asked, tmp_path / "decided")
    go(large(place, changes=[later]), tmp_path / "named")
    watch = lines(tmp_path / "decided", "forgetting")
    taken = [(line["step"], a.get("refused")) for line in watch for a in line["actions"]]
    assert taken[0] == (1, None)
    # Nothing has been read under the first one yet.
    assert taken[1][0] == 2
    assert "was raised before, which holds from row 1024 on" in taken[1][1]
    assert [line["done"]["more_replay"] for line in watch] == [0, 1, 1, 1, 1]
    mine, theirs = state(tmp_path / "decided", 4), state(tmp_path / "named", 4)
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    saved = open_checkpoint(tmp_path / "decided" / "checkpoints" / "step-4").state["cursor"]
    stream = asked.open_stream(context(tmp_path / "decided")).following(Cursor.from_json(saved))
    named = large(place, changes=[later]).open_stream(context(tmp_path / "named"))
    index = np.arange(2048)
    for field in ("source", "epoch", "sample"):
        assert np.array_equal(
            getattr(stream.order(index), field), getattr(named.order(index), field)
        )
    assert stream.fingerprint == named.fingerprint


def test_the_order_that_is_shown_is_the_one_that_was_read(place: Path, tmp_path: Path) -> None:
    later = {"after": 512, "weights": {"domain": 9, "general": 4}}
    shown = []
    for name, asked in (
        ("decided", large(place, MORE, steps=3)),
        ("named", large(place, changes=[later], steps=3)),
    ):
        stages = {"dapt": asked.model_dump(mode="json")}
        recipe = Recipe.model_validate(
            {"name": name, "output": str(tmp_path / name), "stages": stages}
        )
        entered = enter(recipe, RunFolder(tmp_path / name), "dapt")
        assert entered is not None
        if name == "decided":
            train_from_newest(assemble(recipe.stages["dapt"], entered))
        shown.append(order_table(recipe, "dapt", range(3), 1))
    assert shown[0] == shown[1]


@pytest.mark.grid
@pytest.mark.parametrize("point", ["optimizer:step=1", "optimizer:step=3"])
def test_more_replay_goes_on_over_a_resume(place: Path, tmp_path: Path, point: str) -> None:
    asked = large(place, MORE)
    go(asked, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="injected at"):
        go(asked, tmp_path / "killed", f"error@{point}")
    asked.check(context(tmp_path / "killed"))
    go(asked, tmp_path / "killed")
    require_same(tmp_path / "whole", tmp_path / "killed", 4)


def test_replay_that_comes_too_late_is_told_and_not_counted(place: Path, tmp_path: Path) -> None:
    go(watched(place, MORE, steps=4), tmp_path)
    told = lines(tmp_path, "forgetting")[1]
    assert "but the run ends at row 32" in told["actions"][0]["refused"]
    assert told["done"] == {"more_replay": 0}


OF_THE_AVERAGE = {"by": "validation/kept/average/loss"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"forgetting": {"set": "other"}}, "set 'other' is none of validation.sets"),
        ({"choose": {"by": "validation/other/loss"}}, "'validation/other/loss' is not measured"),
        ({"choose": {"by": "probe/task/macro_f1"}}, "'probe/task/macro_f1' is not measured"),
        ({"choose": OF_THE_AVERAGE}, "the stage keeps no average; give averaging, or choose by"),
        (
            {
                "choose": OF_THE_AVERAGE,
                "averaging": {"name": "ema"},
                "validation": {"every": 2, "average": False, "sets": {"kept": "x"}},
            },
            "is not measured: validation.average is false",
        ),
        ({"choose": {"by": "validation/kept/x"}}, "give better: lower or better: higher"),
        (
            {"forgetting": {"set": "kept", "above": [MORE | {"source": "x"}]}},
            "source 'x' is none of data.sources",
        ),
    ],
)
def test_what_is_not_measured_is_refused(place: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        stage(place, **changes)
