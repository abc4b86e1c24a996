"""Every part of a key counts, down to its last bit."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.example import ExampleKey
from data_pipeline.randomness import generator, keyed

KEYS = st.builds(
    ExampleKey,
    source=st.integers(0, 9),
    digest=st.integers(0, 2**63 - 2),
    sample=st.integers(0, 2**60),
    epoch=st.integers(0, 2**40),
)


@given(key=KEYS, seed=st.integers(0, 2**63))
@settings(max_examples=60, deadline=None)
def test_the_next_seed_digest_sample_epoch_and_purpose_each_draw_afresh(key, seed):
    draws = [
        generator(seed, key).random(4),
        generator(seed + 1, key).random(4),
        generator(seed, replace(key, digest=key.digest + 1)).random(4),
        generator(seed, replace(key, sample=key.sample + 1)).random(4),
        generator(seed, replace(key, epoch=key.epoch + 1)).random(4),
        generator(seed, key, purpose=1).random(4),
    ]
    assert len({draw.tobytes() for draw in draws}) == len(draws)
    assert generator(seed, key).random(4).tobytes() == draws[0].tobytes()


def test_it_is_numpys_philox_under_this_key_and_counter():
    key = ExampleKey(0, 2**62 + 1, 5, 2)
    low = 7 ^ (key.digest * 0x9E3779B97F4A7C15) % 2**64
    words, counter = np.array([low, key.digest], np.uint64), np.array([0, 5, 2, 9], np.uint64)
    plain = np.random.Generator(np.random.Philox(key=words, counter=counter))
    assert generator(7, key, purpose=9).random(9).tolist() == plain.random(9).tolist()


def test_draws_do_not_run_into_those_of_the_next_sample():
    key = ExampleKey(0, 3, 5, 0)
    many = generator(1, key).random(1000).tolist()
    following = generator(1, replace(key, sample=6)).random(1000).tolist()
    assert not set(many) & set(following)


def test_a_key_is_the_same_everywhere():
    assert keyed(1, "block", 2) == 13355406703369630686
    assert keyed(1, "block", 2) != keyed(1, "bloc", "k2")
