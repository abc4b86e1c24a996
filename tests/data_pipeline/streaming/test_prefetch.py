"""Shards at a URL: what comes next is on its way, and no more of it than the cache holds."""

import logging
from pathlib import Path

import numpy as np
import pytest

from configs.errors import DataError, RecipeError
from data_pipeline.persistence import Patience
from data_pipeline.shards import ShardedDataset
from data_pipeline.shards.opened import OPENED
from data_pipeline.streaming import DataConfig, TokenStream
from tests.data_pipeline.web import serving

LENGTHS = [9, 14, 5, 22, 3, 17] * 24


@pytest.fixture
def web(tmp_path, make_shards, monkeypatch):
    """A folder of shards on a web server, beside the same folder on this machine."""
    monkeypatch.setattr(Patience, "wait", lambda self, attempt: 0.001)
    monkeypatch.setattr("data_pipeline.shards.cache.SPARE", 0)
    make_shards("corpus", LENGTHS)
    with serving(tmp_path) as web:
        yield web
    OPENED.close_all_of(-1)


def open_stream(web, tmp_path, shuffle, room="1GiB", location=None):
    config = {
        "length": 24,
        "sources": {"only": {"shards": location or f"{web.url}/corpus"}},
        "shuffle": shuffle,
        "cache": {"folder": tmp_path / "cache", "bytes": room},
    }
    return TokenStream.open(DataConfig.model_validate(config), Path, 5)


def fetched(web):
    """Names of shards whose tokens were asked for."""
    return {Path(path).stem for path in web.requests if path.endswith(".bin")}


def test_what_is_fetched_are_the_shards_of_two_windows(web, tmp_path):
    stream = open_stream(web, tmp_path, {"name": "window", "shards": 2})
    shards = stream.reader.sources[0].data.shards
    assert len(shards) > 9
    assert not fetched(web)
    stream.examples(0, 2)
    stream.prefetch.wait()
    assert fetched(web) == {shards[number].record.name for number in stream.order.shards_from(0)[0]}
    assert len(fetched(web)) == 4
    before = dict(web.requests)
    middle = stream.rows[0] // 2
    stream.examples(middle, middle + 2)
    stream.prefetch.wait()
    assert len(fetched(web)) <= 8
    assert all(count == 1 for path, count in web.requests.items() if path not in before)


@pytest.mark.parametrize("shuffle", [{"name": "window", "shards": 3}, {"name": "full"}])
def test_an_epoch_from_afar_is_what_it_is_from_here(web, tmp_path, shuffle):
    far = open_stream(web, tmp_path, shuffle)
    near = open_stream(web, tmp_path, shuffle, location=str(tmp_path / "corpus"))
    assert near.prefetch is None
    for start in range(0, far.rows[0], 20):
        here, there = (stream.examples(start, start + 20) for stream in (near, far))
        assert np.array_equal(here.tokens, there.tokens)
    far.prefetch.wait()
    assert max(count for path, count in web.requests.items() if path.endswith(".bin")) == 1
    assert far.fingerprint == near.fingerprint


def test_a_cache_that_is_too_small_is_told_before_anything_is_read(web, tmp_path):
    whole = sum(ShardedDataset.open(tmp_path / "corpus").lengths) * 3
    with pytest.raises(
        RecipeError, match=r"shuffle full mixes .* give more, or shuffle: \{name: w"
    ):
        open_stream(web, tmp_path, {"name": "full"}, room=whole // 2)
    stream = open_stream(web, tmp_path, {"name": "window", "shards": 2}, room=whole // 4)
    stream.examples(0, 2)
    stream.prefetch.wait()
    assert 2 <= len(fetched(web)) <= 4
    local = open_stream(web, tmp_path, {"name": "full"}, room=1, location=str(tmp_path / "corpus"))
    assert len(local.examples(0, 3)) == 3


def test_no_more_is_fetched_ahead_than_there_is_room_for(web, tmp_path):
    largest = 3 * 150 + 3 * 22
    stream = open_stream(web, tmp_path, {"name": "window", "shards": 2}, room=2 * largest)
    assert len(stream.prefetch._fitting([(0, n) for n in range(9)])) in {2, 3}


def test_what_cannot_be_fetched_is_told_and_is_an_error_for_its_reader(
    web, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("ONWARD_REMOTE_DEADLINE", "1")
    stream = open_stream(web, tmp_path, {"name": "window", "shards": 1})
    (later,) = stream.order.shards_from(0)
    name = stream.reader.sources[0].data.shards[later[1]].record.name
    web.always[f"/corpus/{name}.bin"] = 404
    with caplog.at_level(logging.WARNING):
        stream.examples(0, 2)
        stream.prefetch.wait()
    assert f"{name}.bin" in caplog.text
    with pytest.raises(DataError, match=name):
        stream.examples(0, stream.rows[0])
    stream.prefetch.wait()


def test_a_source_that_is_read_no_more_is_not_fetched(web, tmp_path, make_shards):
    make_shards("other", LENGTHS, first=9000)
    config = {
        "length": 24,
        "sources": {
            "only": {"shards": f"{web.url}/corpus", "most_epochs": 1},
            "other": {"shards": str(tmp_path / "other")},
        },
        "shuffle": {"name": "window", "shards": 2},
        "cache": {"folder": tmp_path / "cache"},
    }
    stream = TokenStream.open(DataConfig.model_validate(config), Path, 5)
    stream.examples(5000, 5002)
    stream.prefetch.wait()
    assert not fetched(web)
