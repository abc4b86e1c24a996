"""A bijection for every size and key, another one for another key, and evenly mixed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.randomness import keyed
from data_pipeline.streaming.permutation import LARGEST_SIZE, permutations, permute


@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
@settings(max_examples=80, deadline=None)
def test_every_index_is_hit_once(size, key):
    found = permute(np.arange(size), size, key)
    assert np.array_equal(np.sort(found), np.arange(size))


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    size=st.integers(2**40, LARGEST_SIZE),
)
@settings(max_examples=30, deadline=None)
def test_many_sizes_and_keys_at_once_give_what_each_gives_alone(sizes, size):
    every = [*sizes, size]
    index = np.array([size - 1 for size in every])
    keys = np.array([keyed(1, "test", size) for size in every], np.uint64)
    together = permute(index, every, keys)
    alone = [permute([i], n, k)[0] for i, n, k in zip(index, every, keys, strict=True)]
    assert together.tolist() == alone
    assert (together < every).all()


def test_it_does_not_depend_on_the_library_or_machine():
    assert permute(np.arange(10), 10, keyed(1, "frozen")).tolist() == [1, 6, 7, 3, 8, 4, 5, 0, 2, 9]


def test_another_key_gives_another_permutation():
    found = {tuple(permute(np.arange(50), 50, keyed(seed))) for seed in range(50)}
    assert len(found) == 50


@pytest.mark.parametrize("size", [5, 12, 1000])
def test_every_place_is_about_equally_likely(size):
    keys = np.array([keyed(key, "even") for key in range(6000)], np.uint64)
    for index in (0, size // 2, size - 1):
        places = permute(np.full(len(keys), index), size, keys) * 5 // size
        count = np.bincount(places, minlength=5)
        # 1200 expected in each fifth, standard deviation 31 (wider where 5 does not divide).
        share = np.bincount(np.arange(size) * 5 // size, minlength=5) / size * len(keys)
        assert np.abs(count - share).max() < 5 * np.sqrt(share.max())


def test_neighbours_do_not_stay_together():
    found = permute(np.arange(10_000), 10_000, keyed(3))
    assert (np.abs(np.diff(found)) <= 10).mean() < 0.01


def test_an_index_outside_is_refused():
    with pytest.raises(ValueError, match="outside"):
        permute([0, 5], 5, 1)


@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1), other=st.integers(0, 2**64 - 1))
@settings(max_examples=60, deadline=None)
def test_one_key_and_many_and_all_of_a_domain_give_the_same(size, key, other):
    indices = np.arange(size)
    sizes = np.full(size, size)
    expected = [permute(indices, sizes, np.full(size, k, np.uint64)) for k in (key, other)]
    assert np.array_equal(permute(indices, size, key), expected[0])
    assert np.array_equal(permutations(size, (key, other)), expected)


@pytest.mark.parametrize("size", [2**33 + 5, 2**34 - 1, 2**34, 2**45])
def test_large_domains_are_permuted_alike_by_tables_and_without(size):
    indices = np.arange(0, size, size // 50)
    expected = permute(indices, np.full(len(indices), size), np.full(len(indices), 9, np.uint64))
    assert np.array_equal(permute(indices, size, 9), expected)
