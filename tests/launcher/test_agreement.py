"""Hosts with other software, or without a file, are named; paths are found in what stages say."""

import json
from pathlib import Path
from typing import Any

import pytest

from configs.errors import LaunchError
from launcher import agreement
from launcher.hosts import Host
from tests.launcher.toy import Write


def card(host: str, **changes: Any) -> dict[str, str]:
    return {**agreement.facts(), "host": host, **changes}


def test_hosts_that_are_alike_agree():
    agreement.compare([card("node-1"), card("node-2")])


@pytest.mark.parametrize(
    "name", ["Python", "torch", "deepspeed", "transformers", "tokenizers", "Onward's code"]
)
def test_whose_software_differs_is_named(name: str):
    cards = [card("node-1"), card("node-2", **{name: "other"}), card("node-3"), card("node-3")]
    with pytest.raises(LaunchError) as error:
        agreement.compare(cards)
    ours = card("")[name]
    assert f"{name}: {ours} on node-1, node-3; other on node-2. Install" in str(error.value)
    assert len(str(error.value).splitlines()) == 2


def test_who_does_not_see_a_path_is_named(tmp_path):
    nowhere, here = tmp_path / "nowhere", tmp_path / "here"
    here.touch()
    seen = json.loads(agreement.facts([nowhere, here])["missing"])
    assert seen == [str(nowhere)]
    both = json.dumps([str(nowhere), str(here)])
    cards = [card("node-1", missing=json.dumps(seen)), card("node-2", missing=both)]
    with pytest.raises(LaunchError) as error:
        agreement.compare(cards)
    # What is nowhere is no difference between hosts.
    assert str(error.value).splitlines()[1:] == [
        f"{here}: not there on node-2; it must be on a file system that all hosts share"
    ]


def test_hosts_that_share_a_stage_compare_what_is_there_so_far(tmp_path, monkeypatch):
    cards = agreement.Cards(tmp_path, "now")
    agreement.Cards(tmp_path, "before").leave(7)
    cards.leave(0)
    cards.compare()
    monkeypatch.setattr(agreement, "code_digest", lambda: "other")
    agreement.Cards(tmp_path, "before").leave(8)
    cards.compare()
    cards.leave(1)
    with pytest.raises(LaunchError, match=r"Onward's code: .*; other on "):
        cards.compare()
    agreement.Cards.forget(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_missing_ranks_are_named_by_their_hosts(tmp_path):
    agreement.write_places(tmp_path, [Host("node-1", 2), Host("node-2", 1)])
    (tmp_path / "rank-1.json").touch()
    name = agreement.absentees(tmp_path)
    assert name([1, 2]) == "rank 1 on node-1 (it began there), rank 2 on node-2"
    assert agreement.absentees(None)([1]) == "rank 1"


def test_a_folder_that_is_not_shared_is_told_of(tmp_path):
    with pytest.raises(LaunchError, match=r"the run folder must be on a file system that all"):
        agreement.require_seen(tmp_path, seconds=0.1)
    agreement.write_places(tmp_path, [])
    agreement.require_seen(tmp_path, seconds=0.1)


def test_what_may_be_a_path_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stages = [
        Write(text="no path", inputs=("/data/shards", "data/b", "stage:a/b", "s3://bucket/a")),
        Write(text="two\nlines/here", needs=tmp_path / "needs"),
    ]
    found = agreement.local_paths(stages)
    assert set(found) == {Path("/data/shards"), tmp_path / "data/b", tmp_path / "needs"}
    assert not agreement.is_there(Path("/" + "x" * 5000))
