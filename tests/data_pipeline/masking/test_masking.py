"""No special token or padding, words whole, keyed by the example alone, the rate that was asked."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from data_pipeline.example import SENTENCE_START, WORD_START, Example, ExampleKey
from data_pipeline.masking import DynamicMasking, Masking, WholeWordMasking
from data_pipeline.randomness import generator, generators
from data_pipeline.rows import Rows

MEMBERS = [DynamicMasking(), WholeWordMasking()]
by_name = pytest.mark.parametrize("masking", MEMBERS, ids=lambda masking: masking.name)


def row(documents, padding=0, *, specials=True, epoch=0):
    """A row of documents; a document is its words' numbers of tokens, negative = begun before."""
    segments, special, annotations = [], [], []
    around = [(True, 0)] if specials else []
    for number, words in enumerate(documents, 1):
        inner = [
            (False, WORD_START | SENTENCE_START if place == 0 and size > 0 else 0)
            for size in words
            for place in range(abs(size))
        ]
        tokens = [*around, *inner, *around]
        segments += [number] * len(tokens)
        special += [flag for flag, _ in tokens]
        annotations += [bits for _, bits in tokens]
    length = len(segments) + padding
    return Example(
        tokens=np.arange(length, dtype=np.int32),
        segments=np.array(segments + [0] * padding, np.int32),
        positions=np.zeros(length, np.int32),
        special=np.array(special + [True] * padding, np.bool_),
        annotations=np.array(annotations + [0] * padding, np.uint8),
        key=ExampleKey(0, 77, 5, epoch),
    )


def choose(masking, example, rng):
    """The targets of one row, bool [length]."""
    return masking.choose(Rows.of([example]), [rng])[0]


DOCUMENT = st.builds(
    lambda first, rest: [first, *rest],
    st.integers(-4, 5).filter(bool),
    st.lists(st.integers(1, 5), max_size=12),
)
ROWS = st.builds(row, st.lists(DOCUMENT, min_size=1, max_size=5), st.integers(0, 6))
RATES = st.floats(0.01, 1)


def words_of(example):
    """The tokens of each word, found token by token."""
    words: list[list[int]] = []
    for at in range(len(example.tokens)):
        if example.special[at]:
            continue
        after_special = at == 0 or example.special[at - 1]
        fresh = after_special or example.segments[at] != example.segments[at - 1]
        if fresh or example.annotations[at] & WORD_START:
            words.append([])
        words[-1].append(at)
    return words


@by_name
@given(example=ROWS, rate=RATES, seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_specials_and_padding_are_never_hit_and_something_is(masking, example, rate, seed):
    masking = masking.model_copy(update={"rate": rate})
    hidden = choose(masking, example, generator(seed, example.key))
    assert hidden.dtype == np.bool_
    assert hidden.shape == example.tokens.shape
    assert not (hidden & example.special).any()
    assert hidden.any()


@given(example=ROWS, rate=RATES, seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_words_are_hidden_whole(example, rate, seed):
    hidden = choose(WholeWordMasking(rate=rate), example, generator(seed, example.key))
    for word in words_of(example):
        assert len(set(hidden[word].tolist())) == 1


@given(documents=st.lists(DOCUMENT, min_size=2, max_size=5))
@settings(max_examples=40, deadline=None)
def test_words_do_not_run_on_into_the_next_document(documents):
    example = row(documents, specials=False)
    words = words_of(example)
    hidden = [
        choose(WholeWordMasking(rate=0.5), example, np.random.default_rng(seed))
        for seed in range(40)
    ]
    for first, second in pairwise(words):
        assert any(mask[first[-1]] != mask[second[0]] for mask in hidden)


@by_name
def test_the_same_key_gives_the_same_mask_and_any_other_another(masking):
    example = row([[1, 2, 3] * 20, [2] * 30], 4)

    def mask(key, seed=3):
        return tuple(choose(masking, example, generator(seed, key)).tolist())

    key = example.key
    assert mask(key) == mask(key)
    others = [
        mask(replace(key, epoch=1)),
        mask(replace(key, sample=6)),
        mask(replace(key, digest=78)),
        mask(key, seed=4),
    ]
    assert len({mask(key), *others}) == 5


@by_name
@given(
    examples=st.lists(st.lists(DOCUMENT, min_size=0, max_size=2), min_size=1, max_size=4),
    rate=RATES,
)
@settings(max_examples=40, deadline=None)
def test_a_rows_targets_do_not_depend_on_the_rows_beside_it(masking, examples, rate):
    masking = masking.model_copy(update={"rate": rate})
    longest = max(sum(sum(map(abs, d)) + 2 for d in documents) for documents in examples) + 1
    made = [row(documents) for documents in examples]
    made = [
        row(documents, longest - len(short.tokens), epoch=number)
        for number, (documents, short) in enumerate(zip(examples, made, strict=True))
    ]
    rows = Rows.of(made)
    together = masking.choose(rows, generators(7, rows.keys))
    for example, hidden in zip(made, together, strict=True):
        assert np.array_equal(hidden, choose(masking, example, generator(7, example.key)))


@by_name
@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_the_share_of_hidden_tokens_is_the_rate(masking, rate):
    example = row([[1, 1, 2, 3, 1] * 12, [1, 4] * 20], 10)
    text = np.count_nonzero(~example.special)
    masking = masking.model_copy(update={"rate": rate})
    hidden = [choose(masking, example, np.random.default_rng(seed)).sum() for seed in range(400)]
    assert abs(np.mean(hidden) / text - rate) < 0.01


@by_name
def test_a_row_without_any_text_has_no_target(masking):
    example = row([[]], 3)
    assert not choose(masking, example, np.random.default_rng(1)).any()


@by_name
def test_the_one_target_of_a_sparse_row_may_be_any_token(masking):
    example = row([[1] * 6])
    masking = masking.model_copy(update={"rate": 1e-9})
    hit = {
        choose(masking, example, np.random.default_rng(s)).nonzero()[0].item() for s in range(99)
    }
    assert hit == set(range(1, 7))


@pytest.mark.parametrize("name", ["dynamic", "whole_word"])
def test_the_family_is_chosen_by_name(name):
    assert TypeAdapter(Masking).validate_python({"name": name, "rate": 0.2}).name == name


@pytest.mark.parametrize("rate", [0, -0.1, 1.1])
def test_a_rate_that_is_no_share_is_refused(rate):
    with pytest.raises(ValueError, match="rate"):
        TypeAdapter(Masking).validate_python({"name": "dynamic", "rate": rate})
