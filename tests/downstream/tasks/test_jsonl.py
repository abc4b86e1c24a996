"""Rows from files: mistakes are named by line, and nothing of dev or test is trained on."""

import json
from pathlib import Path

import pytest

from configs.errors import DataError
from downstream.tasks import JsonlTask


@pytest.fixture
def write(tmp_path):
    def make(**sides):
        for side in ("train", "dev", "test"):
            lines = sides.get(side, [{"text": f"{side} {n}", "label": n % 2} for n in range(4)])
            (tmp_path / f"{side}.jsonl").write_text("".join(json.dumps(o) + "\n" for o in lines))
        return {side: str(tmp_path / f"{side}.jsonl") for side in ("train", "dev", "test")}

    return make


def test_rows_have_ids_groups_and_labels_by_name(write):
    data = JsonlTask(**write()).load(Path, seed=0)
    assert data.labels == ["0", "1"]
    first = data.sides["dev"][0]
    assert (first.id, first.group, first.text, first.label) == ("dev:1", "dev:1", "dev 0", "0")
    assert data.label_ids("dev") == [0, 1, 0, 1]
    assert set(data.held_out) == {f"{side}:{n}" for side in ("dev", "test") for n in range(1, 5)}


def test_train_loses_what_dev_and_test_hold(write):
    rows = [{"text": text, "label": label} for text, label in (("x", 0), ("dev 1", 1), ("y", 1))]
    data = JsonlTask(**write(train=rows)).load(Path, seed=0)
    assert [row.text for row in data.sides["train"]] == ["x", "y"]
    assert list(data.notes.values()) == [1, 0]


def test_dev_and_train_lose_what_test_holds_but_not_another_number_or_mark(write):
    texts = {
        "train": ("one", "two", "FOUR"),
        "dev": ("three", "Test  held", "12", "test <<held>>"),
        "test": ("four", "test held", "13"),
    }
    sides = {
        side: [{"text": text, "label": n % 2} for n, text in enumerate(found)]
        for side, found in texts.items()
    }
    data = JsonlTask(**write(**sides)).load(Path, seed=0)
    assert [row.text for row in data.sides["dev"]] == ["three", "12", "test <<held>>"]
    assert [row.text for row in data.sides["train"]] == ["one", "two"]
    assert list(data.notes.values()) == [1, 1]
    assert "dev:2" in data.held_out


def test_limits_are_kept(write):
    data = JsonlTask(**write(), limits={"test": 2}).load(Path, seed=0)
    assert [len(data.sides[side]) for side in ("train", "dev", "test")] == [4, 4, 2]
    assert len(data.held_out) == 8


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": "a"}, r"dev\.jsonl:1: field 'text' should be str, found None"),
        ({"text": 3, "label": "a"}, r"dev\.jsonl:1: field 'text' should be str, found 3"),
        ({"text": "t", "label": True}, r"field 'label' should be str or int, found True"),
        ([1], r"dev\.jsonl:1: expected a JSON object, found list"),
    ],
)
def test_wrong_rows_are_named(write, row, message):
    with pytest.raises(DataError, match=message):
        JsonlTask(**write(dev=[row])).load(Path, seed=0)


def test_a_group_on_two_sides_is_refused(write):
    rows = [{"text": f"t{n}", "label": n % 2, "doc": "same"} for n in range(4)]
    others = [{"text": f"u{n}", "label": n % 2, "doc": "other"} for n in range(4)]
    task = JsonlTask(**write(train=rows, dev=others, test=rows), group="doc")
    with pytest.raises(DataError, match="train and test share 1 groups, such as 'same'"):
        task.load(Path, seed=0)


def test_files_are_checked_before_the_run(tmp_path):
    from downstream.tasks import TaskStage
    from tests.downstream.tiny import context

    task = {"name": "jsonl", "train": "stage:x/t", "dev": "nowhere", "test": "nowhere"}
    stage = TaskStage.model_validate({"kind": "task", "task": task})
    stage.check(context("rows", tmp_path))
    task["train"] = "nowhere"
    with pytest.raises(DataError, match="nothing at nowhere"):
        TaskStage.model_validate({"kind": "task", "task": task}).check(context("rows", tmp_path))
