"""A hostfile is checked whole before anything starts; every bad line is listed."""

import socket
from pathlib import Path

import pytest

from configs.errors import LaunchError, RecipeError
from launcher.hosts import Host, format_hostfile, is_local, read_hostfile, require_reachable

EXAMPLE = Path(__file__).parents[2] / "hostfile.example"


def written(folder: Path, data: bytes) -> Path:
    path = folder / "hosts"
    path.write_bytes(data)
    return path


def test_the_example_is_a_hostfile() -> None:
    assert read_hostfile(EXAMPLE) == (Host("localhost", 1),)


@pytest.mark.parametrize(
    "data",
    [
        b"a slots=2\nb slots=4\n",
        b"\xef\xbb\xbfa slots=2\r\nb slots=4\r\n",
        b"# top\n\na   slots=2  # two\n\tb slots=4",
    ],
)
def test_what_deepspeed_reads_is_canonical(tmp_path: Path, data: bytes) -> None:
    hosts = read_hostfile(written(tmp_path, data))
    assert format_hostfile(hosts) == "a slots=2\nb slots=4\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a slots=0", "slots=0: expected a number from 1"),
        ("a slots=-1", "slots=-1: expected"),
        ("a slots=abc", "slots=abc: expected"),
        ("a slots=4x", "slots=4x: expected"),
        ("a slots=²", "slots=²: expected"),
        ("a slots=99999", "slots=99999: expected"),
        ("a", "expected 'NAME slots=N'"),
        ("a slots = 4", "expected 'NAME slots=N'"),
        ("a slots=4 more", "expected 'NAME slots=N'"),
        ("a:22 slots=4", "a host's name has"),
        ("-oProxyCommand=x slots=4", "a host's name has"),
        ("$(x) slots=1", "a host's name has"),
        ("good slots=1", "host 'good' is given twice, first on line 1"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = written(tmp_path, f"good slots=2\n\n{line}\nalso bad\n".encode())
    with pytest.raises(RecipeError) as caught:
        read_hostfile(path)
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{path}:3: ")
    assert said in first
    assert second.startswith(f"{path}:4: ")


@pytest.mark.parametrize("data", [b"", b"# nothing\n\n", b"\xff\xfe\x00"])
def test_a_file_without_hosts_is_named(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(RecipeError, match="expected lines such as"):
        read_hostfile(written(tmp_path, data))
    with pytest.raises(RecipeError, match="no such hostfile"):
        read_hostfile(tmp_path / "missing")


def test_this_machine_needs_no_ssh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    hosts = [Host("localhost", 1), Host(socket.gethostname(), 1)]
    assert is_local(hosts)
    require_reachable(hosts)


def test_hosts_that_cannot_be_reached_are_all_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/sh\ncase "$*" in *good*) exit 0;; esac\necho no route >&2\nexit 255\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(LaunchError) as caught:
        require_reachable([Host("bad-1", 1), Host("good", 1), Host("bad-2", 1)])
    assert str(caught.value).splitlines()[1:3] == ["bad-1: no route", "bad-2: no route"]
