"""Which hosts a supervised run goes on with."""

import pytest

from configs.errors import RecipeError
from launcher.choosing_hosts import Rules, choose
from launcher.hosts import Host

NAMES = ("a", "b", "c", "d")
HOSTS = tuple(Host(name, 2) for name in NAMES)
WHY = "no answer within 10 s"


def divides_16(world: int) -> None:
    if 16 % world:
        msg = f"a batch of 16 over {world} ranks"
        raise RecipeError(msg)


def rules(least: int, first_stays: str = "") -> Rules:
    return Rules(least, divides_16, first_stays)


def names(hosts: tuple[Host, ...]) -> str:
    return "".join(host.name for host in hosts)


def test_all_of_them_while_nothing_is_wrong() -> None:
    found = choose(HOSTS, {}, {}, rules(4))
    assert (names(found.hosts), found.left_out, found.trouble) == ("abcd", {}, "")


def test_without_those_that_do_not_answer_where_so_few_will_do() -> None:
    found = choose(HOSTS, {"c": WHY, "a": WHY}, {}, rules(2))
    assert names(found.hosts) == "bd"
    assert found.left_out == {"c": WHY, "a": WHY}


def test_never_with_fewer_than_were_asked_for() -> None:
    found = choose(HOSTS, {"c": WHY}, {}, rules(4))
    assert found.hosts == ()
    assert "3 of 4 hosts are left" in found.trouble


def test_one_more_is_left_out_where_the_batch_needs_it() -> None:
    found = choose(HOSTS, {"b": WHY}, {}, rules(2))
    assert names(found.hosts) == "ac"
    assert found.left_out.keys() == {"b", "d"}
    refused = choose(HOSTS, {"b": WHY}, {}, rules(3))
    assert refused.hosts == ()
    assert "a batch of 16 over 6 ranks" in refused.trouble


def test_who_fails_stays_where_nobody_may_be_left_out() -> None:
    found = choose(HOSTS, {}, {"b": "failed 2 times"}, rules(4))
    assert names(found.hosts) == "abcd"
    assert found.kept.keys() == {"b"}
    assert "3 of 4" in found.kept["b"]


def test_the_first_stays_where_rank_0_cannot_move() -> None:
    assert choose(HOSTS, {"a": WHY}, {}, rules(1, "--master-addr is its address")).hosts == ()


def test_the_first_stays_among_fewer_than_are_left() -> None:
    # The command runs on the last one; a batch of 16 over 6 ranks is none.
    hosts = (*(Host(name, 2) for name in "abc"), Host("localhost", 2))
    pinned = rules(1, "--master-addr is its address")
    assert names(choose(hosts, {"b": WHY}, {}, pinned).hosts) == "alocalhost"
    alone = choose(hosts[::3], {}, {}, Rules(1, _one_host, "--master-addr is its address"))
    assert names(alone.hosts) == "a"


def _one_host(world: int) -> None:
    if world > 2:
        msg = "a batch of 2"
        raise RecipeError(msg)


def test_where_the_command_runs_stays() -> None:
    hosts = (Host("localhost", 2), Host("b", 2))
    found = choose(hosts, {}, {"localhost": "failed 2 times"}, rules(1))
    assert names(found.hosts) == "localhostb"
    assert "where this command runs" in found.kept["localhost"]


@pytest.mark.parametrize("count", [1, 2])
def test_a_host_that_is_gone_from_the_file_is_nobody(count: int) -> None:
    found = choose(HOSTS[:count], {}, {"z": "failed 2 times"}, rules(count))
    assert (len(found.hosts), found.left_out) == (count, {})
