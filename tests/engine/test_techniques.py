"""The contract of every training technique: it learns, and is the same at every ZeRO stage."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from engine.backends import Plain
from engine.fisher import SquaredGradients
from tests.engine import techniques_worker as worker
from tests.engine import tiny
from tests.engine.backends.zero_cases import curve, load, mine, save
from tests.engine.techniques import TECHNIQUES
from tests.warm import WarmWorkers

FLOAT32 = {"rtol": 2e-4, "atol": 2e-5}
NAMES = list(TECHNIQUES)
CELLS = [f"{name} {stage}" for name in NAMES for stage in worker.STAGES]
PLAIN = Plain(config={"train_batch_size": 8})


@pytest.mark.parametrize("name", NAMES)
def test_it_learns_one_batch(name):
    backend = TECHNIQUES[name].build(PLAIN)
    goal = backend.learner.objective
    batch = tiny.step_batches(goal, 0, 0, 1, 1)[0]
    losses = []
    for _ in range(30):
        loss = backend.forward(batch)
        losses.append(float(loss.total.detach()) / batch.count)
        backend.backward(loss, torch.tensor(float(batch.count)))
        backend.step(TECHNIQUES[name].rate)
    assert losses[-1] < losses[0] - 0.3
    assert np.isfinite(losses).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_is_the_same_to_the_bit(name):
    backend = TECHNIQUES[name].build(PLAIN)
    curve(backend, 0, worker.SAVED_AT)
    saved = save(backend)
    assert {key for _, key in saved.values} == {"fp32", *backend.state_keys}
    on = curve(backend, worker.SAVED_AT)
    fresh = load(TECHNIQUES[name].build(PLAIN), saved)
    assert curve(fresh, worker.SAVED_AT) == on
    assert all(map(torch.equal, mine(backend), mine(fresh)))


@pytest.mark.parametrize("name", NAMES)
def test_it_does_something(name):
    if name == "adamw":
        return
    own, usual = TECHNIQUES[name].build(PLAIN), TECHNIQUES["adamw"].build(PLAIN)
    same = worker.watched(own, 0, 4) == worker.watched(usual, 0, 4)
    if TECHNIQUES[name].averaging and name != "all at once":
        # An average leaves training alone, to the bit.
        assert same
        assert own.average_key == name
        inside, *unchanged = worker.swapped(own)
        assert unchanged == [True, True]
        assert inside != worker.held_out(own)
    else:
        assert not same


def test_the_measured_update_is_the_difference_of_the_weights():
    backend = TECHNIQUES["all at once"].build(PLAIN)
    curve(backend, 0, 1)
    assert backend.update_norm() is None
    before = save(backend)
    backend.measure_update = True
    curve(backend, 1, 2)
    after = save(backend)
    squares = sum(
        float((after.values[key] - value).double().square().sum())
        for key, value in before.values.items()
        if key[1] == "fp32"
    )
    assert float(backend.update_norm()) == pytest.approx(squares**0.5, rel=1e-6)


@pytest.fixture(scope="module")
def answers(
    warm: WarmWorkers, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """Two ranks, all techniques at all stages."""
    target = tmp_path_factory.mktemp("techniques") / "answers"
    arguments = {"target": str(target), "names": NAMES}
    ended = warm.run(f"{worker.__name__}:grid", arguments, world=2, timeout=600)
    logs = "\n".join(rank.text[-3000:] for rank in ended)
    assert {rank.code for rank in ended} == {0}, logs
    found: dict[str, dict[str, Any]] = json.loads(target.read_text())
    return found


@pytest.mark.processes
@pytest.mark.grid
def test_importances_are_the_same_at_every_stage(answers, tmp_path):
    config = {"train_batch_size": 8, "gradient_clipping": 0.0}
    plain = Plain(config=config).build(worker.sampled(tmp_path, "bert_tiny"), SquaredGradients())
    worker.look(plain, 0)
    worker.look(plain, 1)
    values = save(plain).values
    expected = {f"{name}|{key}": float(v.double().norm()) for (name, key), v in values.items()}
    for stage in worker.STAGES:
        assert answers[f"importances {stage}"] == pytest.approx(expected, rel=1e-3, abs=1e-6)


@pytest.mark.processes
@pytest.mark.grid
@pytest.mark.parametrize("cell", CELLS)
def test_every_stage_gives_the_plain_backends_numbers(answers, cell):
    technique = TECHNIQUES[cell.rpartition(" ")[0]]
    backend = technique.build(PLAIN)
    answer = answers[cell]
    np.testing.assert_allclose(answer["curve"], worker.watched(backend, 0, 3), **FLOAT32)
    expected = save(backend)
    assert answer["gaps"] == [0, 0]
    assert answer["saved"].keys() == {f"{name}|{key}" for name, key in expected.values}
    for (name, key), value in expected.values.items():
        if name.endswith("key.bias"):
            # No loss depends on it: its gradient is what rounding leaves of zero.
            continue
        norm = float(value.double().norm())
        assert answer["saved"][f"{name}|{key}"] == pytest.approx(norm, rel=1e-3, abs=1e-6)
    if technique.averaging:
        inside, *unchanged = answer["swapped"]
        assert unchanged == [True, True]
        np.testing.assert_allclose(inside, worker.swapped(backend)[0], **FLOAT32)
    np.testing.assert_allclose(answer["on"], worker.watched(backend, 3), **FLOAT32)


@pytest.mark.processes
@pytest.mark.grid
@pytest.mark.parametrize("cell", CELLS)
def test_every_stage_resumes_to_the_bit_and_takes_over_anothers_state(answers, cell):
    answer = answers[cell]
    assert answer["resumed"] == answer["on"]
    assert answer["to the bit"]
    if "resharded" in answer:
        np.testing.assert_allclose(answer["resharded"], answer["on"], **FLOAT32)
