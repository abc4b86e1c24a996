"""Alone, every collective is the identity; a half-set environment is refused."""

import pytest
import torch

from configs.errors import LaunchError
from engine import distributed

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    yield
    distributed.stop()


def exchange() -> None:
    assert (distributed.rank(), distributed.world(), distributed.local_rank()) == (0, 1, 0)
    assert torch.equal(distributed.all_reduce(torch.arange(3)), torch.arange(3))
    assert distributed.all_gather_object("x") == ["x"]
    assert distributed.broadcast_object({"a": 1}) == {"a": 1}
    distributed.barrier()
    distributed.wait_for_all()
    assert distributed.on_first(lambda: 1) == distributed.together(lambda: 1) == 1
    for share in (distributed.on_first, distributed.together):
        with pytest.raises(ZeroDivisionError):
            share(lambda: 1 / 0)


def test_without_a_group():
    assert not distributed.is_started()
    exchange()


def test_a_group_of_one_needs_no_port():
    with distributed.joined():
        assert distributed.is_started()
        distributed.start()
        exchange()
    assert not distributed.is_started()


def test_the_group_ends_when_the_work_fails():
    with pytest.raises(ZeroDivisionError), distributed.joined():
        _ = 1 / 0
    assert not distributed.is_started()


def test_a_half_set_environment_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(LaunchError, match="LOCAL_RANK, MASTER_ADDR, MASTER_PORT, WORLD_SIZE"):
        distributed.start()
