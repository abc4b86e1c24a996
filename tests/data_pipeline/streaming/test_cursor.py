"""A cursor goes through JSON unchanged, and refuses data that is not what was read, by name."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from configs.errors import CheckpointError
from data_pipeline.packing import ConcatenatePacking
from data_pipeline.streaming import Cursor, DataConfig, TokenStream


@pytest.fixture
def values(make_shards):
    """A recipe's data section, as a mapping."""
    return {
        "length": 24,
        "sources": {
            "general": {"shards": make_shards("general", [30, 9, 12] * 9), "weight": 3},
            "domain": {"shards": make_shards("domain", [8] * 7), "weight": 1},
        },
        "changes": [{"after": 3000, "weights": {"general": 1, "domain": 1}}],
        "skip": [{"start": 100, "stop": 110}, {"start": 5000, "stop": 5001}],
    }


def stream_of(values, seed=1):
    return TokenStream.open(DataConfig.model_validate(values), Path, seed)


def test_it_survives_json(values):
    cursor = stream_of(values).cursor(1234)
    assert Cursor.from_json(json.loads(json.dumps(cursor.to_json()))) == cursor


@pytest.mark.parametrize("damage", [{"index": None}, {"extra": 1}, {"sources": [{"name": "a"}]}])
def test_what_is_no_cursor_is_refused(values, damage):
    saved = stream_of(values).cursor(5).to_json() | damage
    if damage == {"index": None}:
        del saved["index"]
    with pytest.raises(CheckpointError, match="data cursor"):
        Cursor.from_json(saved)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"length": 25}, "length: 24 was saved, 25 is given"),
        ({"packing": {"name": "concatenate"}}, "packing: 'best_fit 1' was saved"),
        ({"skip": []}, r"skip .* \[\[100, 110\]\] was saved, \[\] is given"),
        ({"skip": [{"start": 100, "stop": 110}, {"start": 900, "stop": 901}]}, "skip"),
        (
            {"changes": [{"after": 1, "weights": {"general": 1, "domain": 1}}]},
            r"mixture .* is given; changes may begin after row 2048, or later",
        ),
        ({"skip": [{"start": 100, "stop": 112}]}, r"skip .*; skips at row 2010, or later"),
        ({"shuffle": {"name": "window"}}, "shuffle: 'full' was saved, 'window 8' is given"),
    ],
)
def test_another_recipe_is_refused_by_name(values, change, named):
    cursor = stream_of(values).cursor(2000)
    with pytest.raises(CheckpointError, match=named):
        stream_of(values | change).resume(cursor)


def test_another_seed_is_refused(values):
    with pytest.raises(CheckpointError, match="seed: 1 was saved, 2 is given"):
        stream_of(values, seed=2).resume(stream_of(values).cursor(8))


def test_other_data_is_refused_by_the_name_of_its_source(values, make_shards):
    cursor = stream_of(values).cursor(8)
    values["sources"]["domain"]["shards"] = make_shards("other", [8] * 7, first=500)
    with pytest.raises(CheckpointError, match="digest of source domain"):
        stream_of(values).resume(cursor)


def test_sources_in_another_order_or_number_are_refused(values):
    cursor = stream_of(values).cursor(8)
    turned = dict(reversed(values["sources"].items()))
    with pytest.raises(CheckpointError, match="digest of source general"):
        stream_of(values | {"sources": turned}).resume(cursor)
    alone = {"sources": {"general": values["sources"]["general"]}, "changes": []}
    with pytest.raises(CheckpointError, match="sources: general, domain were saved, general"):
        stream_of(values | alone).resume(cursor)


def test_another_version_of_the_order_is_refused(values):
    stream = stream_of(values)
    with pytest.raises(CheckpointError, match="order_version"):
        stream.resume(replace(stream.cursor(8), order_version=0))


def test_all_differences_are_told_at_once(values):
    with pytest.raises(CheckpointError) as caught:
        stream_of(values | {"length": 25}, seed=2).resume(stream_of(values).cursor(8))
    assert "length" in str(caught.value)
    assert "seed" in str(caught.value)


def test_a_schedule_may_grow_behind_what_was_read(values):
    saved = stream_of(values)
    cursor = saved.cursor(2000)
    later = values | {
        "changes": [{"after": 2048, "weights": {"general": 1, "domain": 9}}],
        "skip": [{"start": 100, "stop": 110}, {"start": 2010, "stop": 2050}],
    }
    grown = stream_of(later)
    assert grown.resume(cursor) == 2000
    before, after = saved.order(range(2000)), grown.order(range(2000))
    assert before.sample.tolist() == after.sample.tolist()
    assert saved.order([2000]).sample != grown.order([2000]).sample


def test_what_begins_with_the_first_row_that_was_not_read_may_differ(values):
    values["skip"] = []
    weights = {"general": 1, "domain": 9}
    for change in (
        {"changes": [{"after": 2048, "weights": weights}]},
        {"skip": [{"start": 2048, "stop": 2050}]},
    ):
        one, other = stream_of(values), stream_of(values | change)
        assert other.resume(one.cursor(2048)) == 2048
        assert one.resume(other.cursor(2048)) == 2048
        for saved, present in ((one, other), (other, one)):
            with pytest.raises(CheckpointError, match="of the rows that were read"):
                present.resume(saved.cursor(2049))


def test_another_block_is_refused(values):
    stream = stream_of(values)
    with pytest.raises(CheckpointError, match="block: 64 was saved, 1024 is given"):
        stream.resume(replace(stream.cursor(0), block=64))


def test_the_same_data_in_other_rows_is_refused(values):
    stream = stream_of(values)
    saved = stream.cursor(0)
    fewer = replace(saved, sources=tuple(replace(each, rows=1) for each in saved.sources))
    with pytest.raises(CheckpointError, match=r"source general: .* with 1 rows was saved"):
        stream.resume(fewer)


def test_a_source_may_get_another_name(values):
    cursor = stream_of(values).cursor(8)
    names = {"general": "old", "domain": "new"}
    renamed = {names[name]: source for name, source in values["sources"].items()}
    weights = {"old": 1, "new": 1}
    other = values | {"sources": renamed, "changes": [{"after": 3000, "weights": weights}]}
    assert stream_of(other).resume(cursor) == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"changes": [{"after": 9, "weights": {"general": 1}}]}, "expected one for each of"),
        ({"changes": [{"after": 9, "weights": {"general": 0, "domain": 0}}]}, "one above 0"),
        ({"skip": [{"start": 10, "stop": 10}]}, "ascending"),
        ({"sources": {}}, "at least 1"),
        ({"length": 0}, "length"),
        ({"sources": {"a": {"shards": "a", "most_epochs": math.inf}}}, "most_epochs"),
        ({"packng": {}}, "packng"),
    ],
)
def test_a_schedule_that_cannot_be_honoured_is_a_recipe_error(values, change, message):
    with pytest.raises(ValidationError, match=message):
        DataConfig.model_validate(values | change)


def test_packings_have_identities_of_their_own():
    assert ConcatenatePacking().identity != DataConfig.model_fields["packing"].default.identity
