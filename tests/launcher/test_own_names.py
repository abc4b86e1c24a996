"""This machine is known by its names and addresses, without asking a name server."""

import socket
from pathlib import Path

import pytest

from launcher import own_names
from launcher.own_names import is_this_machine


@pytest.fixture(autouse=True)
def _afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_names._is_own.cache_clear()
    listed = tmp_path / "hosts"
    listed.write_text("127.0.1.1 me me.example.org # 203.0.113.9 other\n203.0.113.9 other\n")
    monkeypatch.setattr(own_names, "_HOSTS", listed)
    monkeypatch.setattr(socket, "gethostname", lambda: "here-1")

    def refuse(name: str) -> list[str]:
        raise AssertionError(name)

    monkeypatch.setattr(own_names, "_resolve", refuse)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "here-1", "me", "me.example.org"])
def test_here(name: str) -> None:
    assert is_this_machine(name)


@pytest.mark.parametrize("name", ["203.0.113.9", "other", "here-2", "here-10", "elsewhere"])
def test_not_here(name: str) -> None:
    assert not is_this_machine(name)


def test_the_longer_form_of_the_name_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"here-1.example.org": ["127.0.0.1"], "here-1.elsewhere.org": ["203.0.113.9"]}
    monkeypatch.setattr(own_names, "_resolve", answers.__getitem__)
    assert is_this_machine("here-1.example.org")
    assert not is_this_machine("here-1.elsewhere.org")


def test_a_silent_name_server_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    silent = threading.Event()
    monkeypatch.setattr(own_names, "_resolve", lambda name: [str(silent.wait(60))])
    assert own_names.addresses("here-1.example.org", seconds=0.05) == []
    silent.set()
