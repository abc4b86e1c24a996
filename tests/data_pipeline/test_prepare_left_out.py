"""What prepare tells of the documents that it left out: their beginnings, and counts by step."""

import gzip
import json
import re

import pytest

from configs.errors import DataError
from data_pipeline import spool as spool_module
from data_pipeline.preparing import decide, shards, state
from data_pipeline.spool import Spool
from tests.data_pipeline.test_prepare import context, files, recipe, write_rows

__all__ = ["files"]


def left_out(folder):
    with gzip.open(folder / state.REMOVED, "rt") as stream:
        return [json.loads(line) for line in stream]


def with_task(files, rows, **values):
    """The recipe with other rows in its corpus ``task``, and other settings of it."""
    write_rows(files / "task.jsonl", rows)
    corpora = recipe(files).model_dump()["corpora"]
    corpora["task"] |= values
    return recipe(files, corpora=corpora)


def test_duplicates_are_listed_with_how_they_begin(files, tmp_path, monkeypatch):
    monkeypatch.setattr(spool_module, "BLOCK_BYTES", 700)
    long = [" ".join(f"{letter}{n}" for n in range(60)) for letter in "abcdefgh"]
    umlauts = "ä" * 150
    texts = [*long, umlauts, *(f"{t} end" for t in long[::3]), long[5], "one", umlauts]
    near = {"threshold": 0.7}
    stage = with_task(files, [{"text": t} for t in texts], near_duplicates=near)
    stage.run(context(tmp_path / "run"))
    found = [(r["id"], r["step"], r["head"]) for r in left_out(tmp_path / "run")]
    near_ones = {f"task.jsonl:{10 + n}": f"{t} end" for n, t in enumerate(long[::3])}
    exact = {"task.jsonl:13": long[5], "task.jsonl:15": umlauts}
    own = [one for one in found if one[0].startswith("task")]
    assert own == [
        *((name, "exact_duplicates", text[:120]) for name, text in exact.items()),
        *((name, "near_duplicates", text[:120]) for name, text in near_ones.items()),
    ]
    assert all(head for _, _, head in found)


def test_the_beginning_of_a_spooled_text_may_end_within_a_character(tmp_path):
    texts = ["", "aä" * 9, "中文" * 9, "x"]
    with Spool(tmp_path / "spool") as spool:
        for text in texts:
            spool.append(text)
        (block,) = spool.close()
    assert list(block.heads([0, 1, 2, 3], 5)) == ["", "aäaäa", "中文中文中", "x"]
    assert list(block.heads([1, 3], 1)) == ["a", "x"]
    assert list(block.heads([], 1)) == []


def test_filters_that_take_out_everything_are_named_with_counts(files, tmp_path):
    rows = [{"text": f"text {n}"} for n in range(40)] + [{"text": "a b c d e"}, {"text": " "}]
    short = {"name": "length", "min_words": 5}
    split = {"held_out": 0.3}
    stage = with_task(files, [*rows, rows[-2]], filters=[short], split=split)
    folder = tmp_path / "run"
    with pytest.raises(DataError) as caught:
        stage.run(context(folder))
    said = str(caught.value)
    assert "corpus task: nothing is left for held_out: all documents of this side were" in said
    assert "documents read: 43, empty ones among them: 1" in said
    held_out = re.search(r"held_out: (\d+); left out: length (\d+); left: 0", said)
    train = re.search(r"train: (\d+); left out: exact_duplicates 1, length (\d+); left: 1", said)
    assert held_out, said
    assert train, said
    assert int(held_out[1]) == int(held_out[2]) > 0
    assert int(held_out[1]) + int(train[1]) == 42
    assert int(held_out[2]) + int(train[2]) == 40
    assert said.endswith(f"{folder / state.REMOVED} names each that was left out, with the reason.")
    steps = [line["step"] for line in left_out(folder) if line["corpus"] == "task"]
    assert steps == ["length"] * 40 + ["exact_duplicates"]


def test_what_a_killed_run_left_half_written_goes(files, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    stage = with_task(files, [{"text": "one two"}, {"text": "one two"}, {"text": "three"}])
    with monkeypatch.context() as killed:
        killed.setattr(decide, "write_plan", None)
        with pytest.raises(TypeError):
            stage.run(context(folder))
    left = [f".{state.REMOVED}.17.tmp", f".{state.REJECTED}.17.tmp", ".prepared.json.17.tmp"]
    for name in left:
        (folder / name).write_text("half")
    (folder / ".prepare.17.removed/spool").mkdir(parents=True)
    train = folder / "corpora/task/train"

    def write_shards(*given):
        (train / ".manifest.json.17.tmp").write_text("half")
        return write_manifest(*given)

    write_manifest = shards.write_manifest
    monkeypatch.setattr(shards, "write_manifest", write_shards)
    stage.run(context(folder))
    assert not list(folder.rglob(".*"))
    assert (train / "manifest.json").exists()
