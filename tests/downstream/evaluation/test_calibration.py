"""How often a true null is rejected: near the level, also with three seeds that differ a lot."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

from downstream.evaluation.significance import Resampling, TestSet, compare

TRIALS = 200
ROWS = 200


@dataclass(frozen=True)
class World:
    """Spread of the skill between seeds, of rows between arms, of single predictions."""

    seeds: int
    between_seeds: float
    between_arms: float
    noise: float


def trial(world: World, number: int, shift: float = 0.0):
    """One experiment; ``shift`` is what the arm is truly better by, in logits."""
    rng = np.random.default_rng([number, world.seeds])
    ease = rng.normal(0.6, 1.5, ROWS)

    def arm(better):
        skill = world.between_seeds * rng.normal(size=(world.seeds, 1)) + better
        rows = world.between_arms * rng.normal(size=ROWS)
        noise = world.noise * rng.normal(size=(world.seeds, ROWS))
        return (ease + skill + rows + noise > 0).astype(np.int64)

    test = TestSet(np.ones(ROWS, np.int64), np.arange(ROWS))
    how = Resampling(resamples=150, seed=number)
    return compare(test, {"base": arm(0.0), "arm": arm(shift)}, "base", how)["accuracy"]["arm"]


@cache
def experiments(world: World, shift: float = 0.0):
    return [trial(world, number, shift) for number in range(TRIALS)]


@pytest.mark.parametrize(
    "world",
    [World(3, 0.05, 0.8, 0.3), World(3, 0.5, 0.3, 0.3), World(5, 0.3, 0.5, 0.5)],
)
def test_a_true_null_is_rejected_at_about_the_level(world):
    found = experiments(world)
    rejected = np.mean([one.significant for one in found])
    covered = np.mean([one.low <= 0 <= one.high for one in found])
    assert 0.01 <= rejected <= 0.1
    assert covered == pytest.approx(1 - rejected, abs=0.01)


def test_the_percentile_interval_would_reject_far_too_often():
    found = [one.percentile for one in experiments(World(3, 0.5, 0.3, 0.3))]
    assert np.mean([low > 0 or high < 0 for low, high in found]) > 0.15


def test_the_detectable_difference_is_found_in_about_8_of_10():
    found = experiments(World(5, 0.1, 0.5, 0.3), shift=0.4)
    truth = np.mean([one.difference for one in found])
    detectable = np.mean([one.detectable for one in found])
    # The shift is chosen so that the true difference is about the detectable one.
    assert truth / detectable == pytest.approx(1.0, abs=0.15)
    assert np.mean([one.significant for one in found]) == pytest.approx(0.8, abs=0.12)
