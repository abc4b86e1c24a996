"""Every token once, rows never too full, little padding, the same plan every time."""

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import TypeAdapter

from configs.errors import RecipeError
from data_pipeline.packing import (
    BestFitPacking,
    ConcatenatePacking,
    Packing,
    PackingPlan,
    RowShape,
    ShardText,
    SinglePacking,
    cached_plan,
)
from data_pipeline.packing.cache import cached_row_starts, keep_row_starts, read_arrays

MEMBERS = [BestFitPacking(), ConcatenatePacking(), SinglePacking()]
LENGTHS = st.lists(st.integers(1, 70), max_size=60).map(lambda ints: np.array(ints, np.int32))
SHAPES = st.builds(
    lambda room, overhead: RowShape(room + overhead, overhead),
    st.integers(1, 32),
    st.integers(0, 3),
)


def text_of(lengths: NDArray[np.int32]) -> ShardText:
    """A shard whose annotations nobody may ask for."""

    def refuse() -> NDArray[np.uint8]:
        raise AssertionError

    return ShardText(lengths, refuse)


def covered(plan: PackingPlan, lengths: NDArray[np.int32]) -> list[int]:
    """How often each token of the shard stands in the plan."""
    begins = np.cumsum(lengths) - lengths
    seen = np.zeros(int(lengths.sum()), int)
    for sequence, start, length in plan.pieces.tolist():
        assert start + length <= lengths[sequence]
        seen[begins[sequence] + start : begins[sequence] + start + length] += 1
    return seen.tolist()


def fills(plan: PackingPlan, shape: RowShape) -> NDArray[np.int64]:
    costs = plan.pieces[:, 2].astype(np.int64) + shape.overhead
    return np.add.reduceat(costs, plan.offsets[:-1]) if len(plan) else np.zeros(0, np.int64)


@pytest.mark.parametrize("packing", MEMBERS, ids=lambda packing: packing.name)
@given(lengths=LENGTHS, shape=SHAPES)
@settings(max_examples=60, deadline=None)
def test_every_token_stands_in_exactly_one_row(packing, lengths, shape):
    plan = packing.plan(text_of(lengths), shape)
    assert covered(plan, lengths) == [1] * int(lengths.sum())
    assert plan.offsets[0] == 0
    assert plan.offsets[-1] == len(plan.pieces)
    assert (np.diff(plan.offsets) > 0).all()
    assert (plan.pieces[:, 2] > 0).all()
    assert (fills(plan, shape) <= shape.length).all()


@given(lengths=LENGTHS, shape=SHAPES)
@settings(max_examples=60, deadline=None)
def test_best_fit_cuts_only_what_is_longer_than_a_row(lengths, shape):
    plan = BestFitPacking().plan(text_of(lengths), shape)
    assert len(plan.pieces) == sum(-(-length // shape.room) for length in lengths.tolist())


@given(lengths=LENGTHS.filter(len), shape=SHAPES)
@settings(max_examples=60, deadline=None)
def test_best_fit_is_what_the_plain_algorithm_gives(lengths, shape):
    plan = BestFitPacking().plan(text_of(lengths), shape)
    costs = np.sort(plan.pieces[:, 2].astype(int) + shape.overhead)[::-1]
    room: list[int] = []
    for cost in costs.tolist():
        fitting = [left for left in room if left >= cost]
        if fitting:
            room[room.index(min(fitting))] -= cost
        else:
            room.append(shape.length - cost)
    assert sorted(shape.length - left for left in room) == sorted(fills(plan, shape).tolist())


@given(lengths=LENGTHS.filter(len), shape=SHAPES)
@settings(max_examples=60, deadline=None)
def test_concatenation_keeps_the_order_and_fills_all_rows_but_the_last(lengths, shape):
    plan = ConcatenatePacking().plan(text_of(lengths), shape)
    assert np.array_equal(
        plan.pieces, plan.pieces[np.lexsort((plan.pieces[:, 1], plan.pieces[:, 0]))]
    )
    assert (fills(plan, shape)[:-1] >= shape.length - 2 * shape.overhead).all()


def test_padding_is_small_on_lengths_as_real_text_has_them():
    lengths = np.random.default_rng(1).lognormal(5, 0.9, 20_000).astype(np.int32) + 1
    shape = RowShape(512, 2)
    plan = BestFitPacking().plan(text_of(lengths), shape)
    assert fills(plan, shape).sum() / (len(plan) * shape.length) > 0.998


@pytest.mark.parametrize("packing", MEMBERS, ids=lambda packing: packing.name)
def test_a_plan_is_deterministic_and_comes_back_from_the_cache(packing, tmp_path):
    lengths = np.random.default_rng(2).integers(1, 300, 500).astype(np.int32)
    shape = RowShape(64, 2)
    fresh = cached_plan(packing, text_of(lengths), shape, "digest", None)
    made = cached_plan(packing, text_of(lengths), shape, "digest", tmp_path)
    (file,) = tmp_path.iterdir()
    # Lengths that would give another plan: what comes back must be what was kept.
    kept = cached_plan(packing, text_of(lengths[:1]), shape, "digest", tmp_path)
    for plan in (made, kept):
        assert np.array_equal(plan.offsets, fresh.offsets)
        assert np.array_equal(plan.pieces, fresh.pieces)
    assert list(tmp_path.iterdir()) == [file]


def test_digest_shape_and_algorithm_each_have_their_own_plan(tmp_path: Path):
    lengths = np.arange(1, 9, dtype=np.int32)
    asked = [
        (MEMBERS[0], RowShape(16, 2), "a"),
        (MEMBERS[0], RowShape(16, 2), "b"),
        (MEMBERS[0], RowShape(16, 1), "a"),
        (MEMBERS[0], RowShape(17, 2), "a"),
        (MEMBERS[1], RowShape(16, 2), "a"),
    ]
    for packing, shape, digest in asked:
        cached_plan(packing, text_of(lengths), shape, digest, tmp_path)
    assert len(list(tmp_path.iterdir())) == len(asked)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_plan_is_reported_and_made_again(damage, tmp_path, caplog):
    lengths = np.arange(1, 60, dtype=np.int32)
    shape = RowShape(16, 2)
    made = cached_plan(MEMBERS[0], text_of(lengths), shape, "digest", tmp_path)
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    kept = {"cut": len(content) // 2, "flipped": len(content), "empty": 0}[damage]
    file.write_bytes(content[:kept])
    with caplog.at_level(logging.WARNING):
        again = cached_plan(MEMBERS[0], text_of(lengths), shape, "digest", tmp_path)
    assert np.array_equal(again.pieces, made.pieces)
    assert "made again" in caplog.text
    kept = read_arrays(file)
    assert kept is not None
    assert np.array_equal(kept["pieces"], made.pieces)


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, caplog):
    lengths, shape = np.arange(1, 60, dtype=np.int32), RowShape(16, 2)
    (tmp_path / "file").write_text("where a folder would have to be")
    with caplog.at_level(logging.WARNING):
        made = cached_plan(
            MEMBERS[0], text_of(lengths), shape, "digest", tmp_path / "file" / "cache"
        )
    assert np.array_equal(made.pieces, MEMBERS[0].plan(text_of(lengths), shape).pieces)
    assert "the packing plan is not kept" in caplog.text


def test_a_row_without_room_for_text_is_refused():
    with pytest.raises(RecipeError, match=r"data\.length 2: .* 2 special tokens"):
        RowShape(2, 2)


def test_the_family_is_chosen_by_name():
    packing = TypeAdapter(Packing).validate_python({"name": "concatenate"})
    assert packing == ConcatenatePacking()


BOUNDED = [BestFitPacking(longest=12), ConcatenatePacking(longest=12)]


@pytest.mark.parametrize("packing", BOUNDED, ids=lambda packing: packing.name)
@given(lengths=LENGTHS, length=st.integers(12, 90), overhead=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_rows_are_a_budget_that_bounded_documents_fill(packing, lengths, length, overhead):
    shape = RowShape(length, overhead)
    plan = packing.plan(text_of(lengths), shape)
    assert covered(plan, lengths) == [1] * int(lengths.sum())
    assert (plan.pieces[:, 2] + overhead <= 12).all()
    assert (fills(plan, shape) <= length).all()
    assert packing.longest_piece(length) == 12


def test_a_bound_is_part_of_the_identity_and_fits_its_row():
    assert len({BestFitPacking().identity, *(packing.identity for packing in BOUNDED)}) == 3
    assert BestFitPacking().identity == "best_fit 1"
    assert BestFitPacking(longest=99).longest_piece(24) == 24
    assert SinglePacking().longest_piece(24) == 24
    with pytest.raises(RecipeError, match=r"data\.packing\.longest 2: .* 2 special tokens"):
        BestFitPacking(longest=2).plan(text_of(np.array([5], np.int32)), RowShape(16, 2))


@given(lengths=LENGTHS, shape=SHAPES)
@settings(max_examples=40, deadline=None)
def test_single_gives_every_document_rows_of_its_own(lengths, shape):
    plan = SinglePacking().plan(text_of(lengths), shape)
    assert np.diff(plan.offsets).tolist() == [1] * len(plan.pieces)
    assert len(plan) == sum(-(-length // shape.room) for length in lengths.tolist())


def test_concatenation_wastes_next_to_nothing_on_lengths_as_real_text_has_them():
    lengths = np.random.default_rng(1).lognormal(5, 0.9, 20_000).astype(np.int32) + 1
    shape = RowShape(512, 2)
    plan = ConcatenatePacking().plan(text_of(lengths), shape)
    assert fills(plan, shape).sum() / (len(plan) * shape.length) > 0.999


def test_the_rows_of_a_data_set_are_known_without_its_plans(tmp_path):
    packing, shape = BestFitPacking(), RowShape(16, 2)
    starts = np.array([0, 7, 7, 19])
    assert cached_row_starts(packing, shape, "digest", tmp_path) is None
    keep_row_starts(starts, packing, shape, "digest", tmp_path)
    kept = cached_row_starts(packing, shape, "digest", tmp_path)
    assert kept is not None
    assert kept.tolist() == starts.tolist()
    assert cached_row_starts(packing, shape, "other", tmp_path) is None
    assert cached_row_starts(packing, RowShape(16, 2, 1), "digest", tmp_path) is None
    assert cached_row_starts(packing, shape, "digest", None) is None
