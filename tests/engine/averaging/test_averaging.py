"""Averages against direct computations over the weights along the way."""

import pytest
import torch
from pydantic import ValidationError

from configs.errors import RecipeError
from engine.averaging import MovingAverage, StochasticAverage
from engine.backends import Plain
from engine.optimization import AdamW
from tests.engine import tiny
from tests.engine.backends.zero_cases import curve, save

NAME = "backbone.cls.predictions.transform.dense.weight"
STEPS = 5


def along_the_way(folder, averaging) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The weights at first and after each step, and the average at the end."""
    learner = tiny.learner(folder)
    backend = Plain(config={"train_batch_size": 8}).build(
        learner, AdamW(lr=1e-2), (), 0, averaging.build(STEPS)
    )
    weights = [dict(learner.named_parameters())[NAME].detach().flatten().clone()]
    for step in range(STEPS):
        curve(backend, step, step + 1)
        weights.append(dict(learner.named_parameters())[NAME].detach().flatten().clone())
    return weights, save(backend).values[NAME, averaging.KEYS[0]]


def test_ema(tmp_path):
    weights, found = along_the_way(tmp_path, MovingAverage(decay=0.8))
    expected = weights[0]
    for value in weights[1:]:
        expected = 0.8 * expected + 0.2 * value
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("settings", "taken"),
    [
        ({"start": 0, "every": 1}, (1, 2, 3, 4, 5)),
        ({"start": 2, "every": 1}, (2, 3, 4, 5)),
        ({"start": 2, "every": 2}, (2, 4)),
        ({"start": 0.4, "every": 3}, (2, 5)),
        ({"start": 5, "every": 1}, (5,)),
        ({"start": 0.99, "every": 1}, (5,)),
    ],
)
def test_swa_is_the_mean_of_the_weights_it_takes(tmp_path, settings, taken):
    weights, found = along_the_way(tmp_path, StochasticAverage(**settings))
    torch.testing.assert_close(found, torch.stack([weights[step] for step in taken]).mean(0))


def test_before_its_start_it_is_the_weights(tmp_path):
    weights, found = along_the_way(tmp_path, StochasticAverage(start=5, every=1))
    assert torch.equal(found, weights[-1])


def test_a_start_behind_the_end_is_refused():
    with pytest.raises(RecipeError, match="start 9 in a run of 5 steps"):
        StochasticAverage(start=9).build(5)
    with pytest.raises(ValidationError, match="neither a share below 1"):
        StochasticAverage(start=1.5)
