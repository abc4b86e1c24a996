"""Pairs of runs of whole sentences: B really follows A, or is really from elsewhere."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import DataError, RecipeError
from data_pipeline.example import SENTENCE_START, WORD_START
from data_pipeline.packing import RowShape, SentencePairsPacking, ShardText
from data_pipeline.packing.sentence_pairs import (
    CONSECUTIVE,
    NO_PAIR,
    NOT_CONSECUTIVE,
    PackedShard,
    draws,
    pair_room,
)

NSP, SOP = SentencePairsPacking(), SentencePairsPacking(negatives="order")
DOCUMENTS = st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=12), min_size=2, max_size=12)
SHAPES = st.builds(lambda room: RowShape(room + 3, 2, 1), st.integers(2, 60))


def text_of(documents):
    """A shard of documents, given as the lengths of their sentences."""
    sentences = [length for document in documents for length in document]
    marks = np.full(sum(sentences), WORD_START, np.uint8)
    marks[np.cumsum([0, *sentences[:-1]])] |= SENTENCE_START
    lengths = np.array([sum(document) for document in documents], np.int32)
    return ShardText(lengths, lambda: marks, "shard-0")


def packed(packing, documents, shape):
    text = text_of(documents)
    plan = packing.plan(text, shape)
    starts = np.cumsum(text.lengths, dtype=np.int64) - text.lengths
    return PackedShard(plan, shape, starts, text.lengths)


def pairs_of(packing, shard, epoch=0, key=1):
    rows = np.arange(len(shard.plan))
    return packing.pairs(shard, rows, draws(key, rows, np.full_like(rows, epoch)))


def document_of(shard, starts):
    return np.searchsorted(shard.starts, starts, "right") - 1


@pytest.mark.parametrize("packing", [NSP, SOP], ids=lambda p: p.negatives)
@given(documents=DOCUMENTS, shape=SHAPES)
@settings(max_examples=60, deadline=None)
def test_a_plan_holds_every_token_once_in_runs_that_fit(packing, documents, shape):
    shard = packed(packing, documents, shape)
    plan, room = shard.plan, pair_room(shape)
    pieces = plan.pieces.astype(int)
    begins = shard.starts[pieces[:, 0]] + pieces[:, 1]
    stops = begins + pieces[:, 2]
    assert begins[0] == 0
    assert np.array_equal(stops[:-1], begins[1:])
    assert stops[-1] == sum(map(sum, documents))
    assert (pieces[:, 2] <= room).all()
    assert np.isin(begins, plan.sentences).all()
    assert (pieces[:, 1] + pieces[:, 2] <= shard.lengths[pieces[:, 0]]).all()


def sentence_by_sentence(documents, room):
    """Lengths of rows, filled as one would by hand."""
    for document in documents:
        units = [
            min(room // 2, length - cut)
            for length in document
            for cut in range(0, length, room // 2)
        ]
        while units:
            count = 0
            while count < len(units) and sum(units[: count + 1]) <= room:
                count += 1
            # A last sentence does not stay alone if the row before it can spare one.
            count -= len(units) - count == 1 and count >= 3
            yield sum(units[:count])
            units = units[count:]


@given(documents=DOCUMENTS, shape=SHAPES)
@settings(max_examples=60, deadline=None)
def test_rows_are_filled_with_as_many_sentences_as_fit(documents, shape):
    plan = packed(NSP, documents, shape).plan
    expected = list(sentence_by_sentence(documents, pair_room(shape)))
    assert plan.pieces[:, 2].tolist() == expected


@given(documents=DOCUMENTS, shape=SHAPES, epoch=st.integers(0, 5), key=st.integers(0, 2**64))
@settings(max_examples=80, deadline=None)
def test_a_random_second_part_is_from_another_document(documents, shape, epoch, key):
    shard = packed(NSP, documents, shape)
    found = pairs_of(NSP, shard, epoch, key)
    starts, lengths, labels = found.starts, found.lengths, found.labels
    room = pair_room(shape)
    assert (lengths.sum(1) <= room).all()
    assert (lengths[:, 0] > 0).all()
    own = document_of(shard, starts[:, 0])
    other = document_of(shard, starts[:, 1])
    ends = shard.starts + shard.lengths
    true, false, none = (labels == label for label in (CONSECUTIVE, NOT_CONSECUTIVE, NO_PAIR))
    assert (true | false | none).all()
    assert np.array_equal(starts[true, 1], starts[true].sum(1) - starts[true, 0])
    assert np.array_equal(starts[true, 0] + lengths[true, 0], starts[true, 1])
    assert np.array_equal(own[true], other[true])
    assert (own[false] != other[false]).all()
    assert (starts[false, 1] + lengths[false, 1] <= ends[other[false]]).all()
    assert (lengths[none, 1] == 0).all()
    assert (lengths[~none, 1] > 0).all()
    assert np.isin(starts[~none], shard.plan.sentences).all()


@given(documents=DOCUMENTS, shape=SHAPES, epoch=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_exchanged_parts_hold_every_token_once_in_every_epoch(documents, shape, epoch):
    shard = packed(SOP, documents, shape)
    found = pairs_of(SOP, shard, epoch)
    seen = np.zeros(sum(map(sum, documents)), int)
    for start, length in zip(found.starts.reshape(-1), found.lengths.reshape(-1), strict=True):
        seen[start : start + length] += 1
    assert (seen == 1).all()
    first, second = found.starts.T
    paired = found.labels != NO_PAIR
    assert ((first < second) == (found.labels == CONSECUTIVE))[paired].all()


@pytest.fixture(scope="module")
def large():
    """400 documents of some 40 sentences."""
    rng = np.random.default_rng(1)
    documents = [rng.integers(5, 40, rng.integers(20, 60)).tolist() for _ in range(400)]
    return packed(NSP, documents, RowShape(128, 2, 1))


def test_labels_are_even_and_new_in_every_epoch_and_for_every_seed(large):
    drawn = [pairs_of(NSP, large, epoch, key) for epoch, key in [(0, 1), (1, 1), (0, 2)]]
    for found in drawn:
        assert (found.labels == CONSECUTIVE).mean() == pytest.approx(0.5, abs=0.03)
    for other in drawn[1:]:
        assert (drawn[0].labels == other.labels).mean() == pytest.approx(0.5, abs=0.03)
        assert (drawn[0].lengths[:, 0] == other.lengths[:, 0]).mean() < 0.5
    again = pairs_of(NSP, large)
    assert np.array_equal(again.starts, drawn[0].starts)


def test_some_rows_alone_are_drawn_as_among_all(large):
    rows = np.array([7, 3, 500])
    some = NSP.pairs(large, rows, draws(1, rows, np.zeros_like(rows)))
    whole = pairs_of(NSP, large)
    assert np.array_equal(some.starts, whole.starts[rows])
    assert np.array_equal(some.labels, whole.labels[rows])


def test_every_other_document_is_as_likely(large):
    count = np.zeros(len(large.starts))
    for epoch in range(12):
        found = pairs_of(NSP, large, epoch)
        negative = found.labels == NOT_CONSECUTIVE
        np.add.at(count, document_of(large, found.starts[negative, 1]), 1)
    expected = count.sum() / len(count)
    # Poisson: the variance is the mean.
    assert count.var() == pytest.approx(expected, rel=0.35)
    assert np.abs(count - expected).max() < 6 * np.sqrt(expected)


def test_the_length_of_a_row_does_not_tell_its_label(large):
    total, second, kinds = np.zeros(0), np.zeros(0), np.zeros(0)
    for epoch in range(6):
        found = pairs_of(NSP, large, epoch)
        total = np.append(total, found.lengths.sum(1))
        second = np.append(second, found.lengths[:, 1])
        kinds = np.append(kinds, found.labels)
    means = [total[kinds == label].mean() for label in (CONSECUTIVE, NOT_CONSECUTIVE)]
    assert abs(means[0] - means[1]) < 3
    # No simple threshold on the length tells more than a few rows in a hundred.
    for values in (total, second):
        for border in np.quantile(values, [0.1, 0.3, 0.5, 0.7, 0.9]):
            said = values <= border
            right = (said == (kinds == NOT_CONSECUTIVE)).mean()
            assert abs(right - 0.5) < 0.08


def test_rows_are_nearly_full(large):
    room = pair_room(large.shape)
    assert large.plan.pieces[:, 2].sum() / (len(large.plan) * room) > 0.85


def test_long_sentences_and_short_documents():
    shard = packed(SOP, [[100], [1], [3, 4]], RowShape(23, 2, 1))
    assert shard.plan.pieces[:, 2].tolist() == [20, 20, 20, 20, 20, 1, 7]
    found = pairs_of(SOP, shard)
    assert found.labels[5] == NO_PAIR
    assert found.lengths[5].tolist() == [1, 0]
    assert (found.lengths[:5] == 10).all()


def test_documents_without_text_are_nobodys_second_part():
    documents = [[], [3, 4], [], [2, 2, 5], [], [6, 1], []]
    text = text_of([[3, 4], [2, 2, 5], [6, 1]])
    lengths = np.array([sum(each) for each in documents], np.int32)
    shape = RowShape(23, 2, 1)
    plan = NSP.plan(replace(text, lengths=lengths), shape)
    shard = PackedShard(plan, shape, np.cumsum(lengths, dtype=np.int64) - lengths, lengths)
    others = set()
    for epoch in range(20):
        found = pairs_of(NSP, shard, epoch)
        false = found.labels == NOT_CONSECUTIVE
        own, other = (np.searchsorted([0, 7, 16, 23], s, "right") for s in found.starts[false].T)
        assert (own != other).all()
        assert (found.lengths[false] > 0).all()
        others |= set(other.tolist())
    assert others == {1, 2, 3}


def test_what_cannot_be_paired_is_refused():
    with pytest.raises(DataError, match="shard-0: holds 1 document"):
        packed(NSP, [[3, 4, 5]], RowShape(16, 2, 1))
    assert len(packed(SOP, [[3, 4, 5]], RowShape(16, 2, 1)).plan) == 1
    bare = replace(text_of([[3], [4]]), annotations=lambda: np.full(7, WORD_START, np.uint8))
    with pytest.raises(DataError, match="no token is marked as the start of a sentence"):
        NSP.plan(bare, RowShape(16, 2, 1))
    with pytest.raises(RecipeError, match="0 special tokens before and 2 after"):
        NSP.plan(text_of([[3], [4]]), RowShape(16, 2, 0))
    with pytest.raises(RecipeError, match="1 special tokens before and 0 after"):
        NSP.plan(text_of([[3], [4]]), RowShape(16, 1, 1))
    with pytest.raises(RecipeError, match="no room for two texts"):
        NSP.plan(text_of([[3], [4]]), RowShape(4, 2, 1))
