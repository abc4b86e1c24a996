"""What the processes of a run listen on."""

import json
import socket

import pytest

from configs.errors import LaunchError
from engine.listening import is_loopback, keep_to_loopback, meeting_socket
from launcher.ports import free_port
from tests.warm import WarmWorkers


@pytest.mark.processes
def test_two_ranks_of_one_host_listen_on_its_loopback_alone(warm: WarmWorkers, tmp_path) -> None:
    answer = tmp_path / "answer"
    ended = warm.run("tests.engine.listening_worker:listen", {"answer": str(answer)}, world=2)
    assert [each.code for each in ended] == [0, 0], ended[0].text + ended[1].text
    found = [json.loads((tmp_path / f"answer.{rank}").read_text()) for rank in (0, 1)]
    # The store, and gloo of the group, of the one on the CPU and of those made after it.
    assert len(found[0]) >= 3
    assert len(found[1]) >= 2
    assert [each for each in found[0] + found[1] if not each[1]] == []


def environment(**more: str) -> dict[str, str]:
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "WORLD_SIZE": "2"} | more


@pytest.mark.parametrize(
    ("more", "address"),
    [
        ({}, "127.0.0.1"),
        ({"MASTER_ADDR": "localhost", "LOCAL_SIZE": "2"}, "127.0.0.1"),
        ({"MASTER_ADDR": "192.0.2.1", "ONWARD_LISTEN": "127.0.0.2"}, "127.0.0.2"),
        ({"ONWARD_LISTEN": "0.0.0.0", "LOCAL_SIZE": "1"}, "0.0.0.0"),
    ],
)
def test_rank_0_listens_on_the_address_asked_for(more: dict[str, str], address: str) -> None:
    with meeting_socket(environment(**more)) as opened:
        assert opened.getsockname()[0] == address


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"MASTER_ADDR": "192.0.2.1"}, "192.0.2.1:0.*set ONWARD_LISTEN"),
        ({"MASTER_ADDR": "no.such.host.invalid"}, "no.such.host.invalid"),
        ({"MASTER_ADDR": "a\0b"}, "rank 0 cannot listen"),
        ({"MASTER_ADDR": "x" * 300}, "rank 0 cannot listen"),
        ({"LOCAL_SIZE": "1"}, "127.0.0.1 on its own host alone"),
    ],
)
def test_an_address_that_cannot_be_is_named(more: dict[str, str], said: str) -> None:
    with pytest.raises(LaunchError, match=said):
        meeting_socket(environment(**more))


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        with pytest.raises(LaunchError, match=f"127.0.0.1:{port}: another process"):
            meeting_socket(environment(MASTER_PORT=port))


def test_the_same_port_on_another_address_is_no_hindrance() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.2", free_port("127.0.0.2")))
        other.listen()
        meeting_socket(environment(MASTER_PORT=str(other.getsockname()[1]))).close()


def test_only_where_all_ranks_are_here_and_nobody_said_otherwise() -> None:
    made = environment(GLOO_SOCKET_IFNAME="eth0")
    keep_to_loopback(made)
    assert (made["GLOO_SOCKET_IFNAME"], made["NCCL_SOCKET_IFNAME"]) == ("eth0", "lo")
    for address in ("192.0.2.1", "node-1", ""):
        made = environment(MASTER_ADDR=address)
        keep_to_loopback(made)
        assert "GLOO_SOCKET_IFNAME" not in made


@pytest.mark.parametrize(
    ("address", "said"),
    [("::1", True), ("127.9.9.9", True), ("localhost", True), ("10.0.0.1", False), ("::", False)],
)
def test_loopback(address: str, said: bool) -> None:
    assert is_loopback(address) is said
