"""Ranks that do not come, or cannot be reached, are named within the time that was set."""

import socket
import threading
from typing import Any

import pytest

from configs.errors import LaunchError, RecipeError
from engine import rendezvous
from engine.rendezvous import Meeting


class Store:
    """torch's, as far as it is used, in memory."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def set(self, key: str, value: str) -> None:
        self.values[key] = value.encode()

    def get(self, key: str) -> bytes:
        return self.values[key]

    def check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys)


class Gone(Store):
    """Of a rank 0 that has ended."""

    def check(self, keys: list[str]) -> bool:
        del keys
        msg = "Connection reset by peer"
        raise RuntimeError(msg)


@pytest.fixture(autouse=True)
def called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    # So that it is put back.
    monkeypatch.setenv(rendezvous.INTERFACE, "lo")


def meet(store: Store, *meetings: Meeting) -> list[Any]:
    """Each rank's cards, or its error."""
    found: list[Any] = [None] * len(meetings)

    def come(rank: int) -> None:
        try:
            found[rank] = rendezvous.gather(store, rank, len(meetings), meetings[rank], 20)
        except LaunchError as error:
            found[rank] = error

    threads = [threading.Thread(target=come, args=(rank,)) for rank in range(len(meetings))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_everybody_reads_everybodys_card():
    first, second = meet(Store(), Meeting({"torch": "1"}), Meeting({"torch": "2"}))
    assert first == second
    assert [card["torch"] for card in first] == ["1", "2"]
    assert {card["host"] for card in first} == {socket.gethostname()}
    assert {(card["interface"], card["address"]) for card in first} == {("lo", "127.0.0.1")}


def test_what_does_not_fit_is_everybodys_error():
    def refuse(cards: Any) -> None:
        msg = f"{cards[0]['torch']} is not {cards[1]['torch']}"
        raise LaunchError(msg)

    found = meet(Store(), *(Meeting({"torch": str(rank)}, refuse) for rank in (1, 2)))
    assert [str(error) for error in found] == ["1 is not 2"] * 2


def test_who_has_not_come_is_named():
    meeting = Meeting(absent=lambda missing: f"those numbered {missing}")
    with pytest.raises(LaunchError, match=r"1 of 3 .* at 127.0.0.1:29500 within 0.1 s") as error:
        rendezvous.gather(Store(), 1, 3, meeting, 0.1)
    assert "missing: those numbered [0, 2]." in str(error.value)


def test_that_rank_0_has_gone_is_told():
    with pytest.raises(LaunchError, match=r"rank 1 on .*: rank 0 is gone: Connection reset"):
        rendezvous.gather(Gone(), 1, 2, Meeting(), 1)


@pytest.mark.parametrize("given", ["soon", "0", "-3", "inf", "nan"])
def test_a_time_that_is_none_is_refused(given: str):
    with pytest.raises(RecipeError, match=f"ONWARD_JOIN_SECONDS={given}: expected seconds"):
        rendezvous.join_seconds({rendezvous.VARIABLE: given})
    assert rendezvous.join_seconds({}) == rendezvous.SECONDS
    assert rendezvous.join_seconds({rendezvous.VARIABLE: "7"}) == 7


def test_an_interface_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv(rendezvous.INTERFACE, "none0,lo")
    with pytest.raises(LaunchError, match=f"{socket.gethostname()} has no network interface none0"):
        rendezvous.own_network()


def test_the_interface_that_leads_to_rank_0_is_taken(monkeypatch):
    monkeypatch.delenv(rendezvous.INTERFACE)
    assert rendezvous.own_network() == {"interface": "lo", "address": "127.0.0.1"}
    # What is set now is what gloo reads.
    assert rendezvous.own_network() == {"interface": "lo", "address": "127.0.0.1"}


def test_a_host_that_others_cannot_reach_is_named():
    cards = [
        {"host": "node-1", "interface": "eth0", "address": "10.0.0.1"},
        {"host": "node-2", "interface": "lo", "address": "127.0.0.1"},
    ]
    with pytest.raises(LaunchError, match=r"reach node-2 over lo \(127.0.0.1\); set GLOO"):
        rendezvous.require_one_network(cards)
    rendezvous.require_one_network([cards[1], cards[1]])
    told = rendezvous.apart(0, cards, RuntimeError("no way"))
    assert "rank 0 on node-1 met" in told
    assert "no way" in told
    assert "node-1 (eth0 10.0.0.1), node-2 (lo 127.0.0.1)" in told
