"""--include and --exclude are read as DeepSpeed reads them, and mistakes are told with what is."""

import pytest

from configs.errors import RecipeError
from launcher.filters import chosen, format_filter
from launcher.hosts import Host, format_hostfile, one_a_host
from launcher.placement import Placement

HOSTS = (Host("node-1", 4), Host("node-2", 4), Host("node-3", 2))


@pytest.mark.parametrize(
    ("include", "exclude", "left"),
    [
        ("", "", HOSTS),
        ("node-2", "", (Host("node-2", 4),)),
        ("node-2:1,3@node-1", "", (Host("node-1", 4), Host("node-2", 2, (1, 3)))),
        ("node-2:3@node-2:1", "", (Host("node-2", 2, (1, 3)),)),
        ("", "node-1@node-2:0", (Host("node-2", 3, (1, 2, 3)), Host("node-3", 2))),
        ("", "node-3:1", (*HOSTS[:2], Host("node-3", 1))),
    ],
)
def test_what_is_left(include: str, exclude: str, left: tuple[Host, ...]) -> None:
    from deepspeed.launcher.runner import parse_inclusion_exclusion

    assert chosen(HOSTS, include, exclude) == left
    theirs = parse_inclusion_exclusion({host.name: host.slots for host in HOSTS}, include, exclude)
    assert {host.name: list(host.ids) for host in left} == dict(theirs)


@pytest.mark.parametrize(
    ("include", "exclude", "said"),
    [
        ("a", "b", "--include and --exclude: give one"),
        ("nod-1", "", "--include nod-1: no host 'nod-1' in the hostfile; did you mean 'node-1'?"),
        ("node-3:2", "", "host node-3 has no slot 2; the hostfile gives it 2, counted from 0"),
        ("node-3:x", "", "'x' is no slot"),
        ("node-3:", "", "'' is no slot"),
        ("", "node-1@node-2@node-3", "leaves no slot of any host"),
    ],
)
def test_mistakes(include: str, exclude: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        chosen(HOSTS, include, exclude)
    assert said in str(caught.value)


def test_slots_that_are_not_the_first_are_named_to_deepspeed() -> None:
    left = chosen(HOSTS, "node-1:1,3@node-3")
    assert format_hostfile(left) == "node-1 slots=4\nnode-3 slots=2\n"
    assert format_filter(left) == "node-1:1,3@node-3:0,1"
    assert format_filter(HOSTS) == ""
    assert [host.ids for host in one_a_host(left)] == [(0,), (0,)]


@pytest.mark.parametrize(
    ("placed", "said"),
    [
        ({"include": "localhost:0"}, "--include localhost:0: needs --hostfile"),
        ({"launcher": "openmpi"}, "--launcher openmpi: needs --hostfile"),
        ({"launcher": "pdhs"}, "did you mean 'pdsh'?"),
        ({"master_addr": "10.0.0.1"}, "--master-addr 10.0.0.1: needs --hostfile"),
    ],
)
def test_options_that_would_do_nothing_are_errors(placed: dict[str, str], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Placement(**placed).hosts()  # type: ignore[arg-type]
    assert said in str(caught.value)


def test_words_for_a_launcher_that_is_not_needed_are_an_error() -> None:
    with pytest.raises(RecipeError, match="no launcher is needed on this machine alone"):
        Placement(launcher_args="-t 3").require()
    with pytest.raises(RecipeError, match="--env NOT_THERE: not set here"):
        Placement(passed=("NOT_THERE",), environment={}).require()
