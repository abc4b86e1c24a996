"""The pieces that prepare is made of: records, parts in them, borders, progress."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import DataError, RecipeError
from configs.stage import Share
from data_pipeline import meter
from data_pipeline.parallel import Workers
from data_pipeline.preparing import board as board_module
from data_pipeline.preparing import crew
from data_pipeline.preparing.board import Board, Outcome, Phase
from data_pipeline.preparing.chunks import borders, chunk_files, pieces
from data_pipeline.preparing.duplicates import first_equals
from data_pipeline.preparing.values import from_json, to_json
from data_pipeline.shards import ShardedDataset, ShardWriter, TokenizerRecord
from data_pipeline.shards.write import prepare_folder, write_manifest, write_shard
from data_pipeline.sources import InstalledDocumentation, JsonlSource, TextSource
from data_pipeline.sources.files import SourceFile


@pytest.fixture
def noted(tmp_path):
    """A board with one finished task, which has written a file."""
    file = tmp_path / "made" / "file"
    file.parent.mkdir()
    file.write_bytes(b"12345")
    board = Board(tmp_path / "board", tmp_path)
    board.note("phase", "a.b", Outcome({"n": 1}, (file,)))
    return board, file


def test_a_record_says_that_a_task_is_done(noted):
    board, _ = noted
    assert board.is_done("phase", "a.b")
    assert board.done("phase") == {"a.b"}
    assert board.facts("phase", "a.b") == {"n": 1}
    assert not board.is_done("phase", "other")
    assert board.done("other") == set()
    with pytest.raises(DataError, match="task other of phase phase is not finished"):
        board.facts("phase", "other")


@pytest.mark.parametrize("damage", ["gone", "short", "cut record", "restarted"])
def test_a_record_is_not_believed_blindly(noted, monkeypatch, damage):
    board, file = noted
    record = board.folder / "phase" / "a.b.json"
    if damage == "gone":
        file.unlink()
    elif damage == "short":
        file.write_bytes(b"1234")
    elif damage == "cut record":
        record.write_bytes(record.read_bytes()[:-5])
    else:
        machine = board_module._machine() | {"start": "another"}
        monkeypatch.setattr(board_module, "_machine", lambda: machine)
    assert not board.is_done("phase", "a.b")
    if damage != "cut record":
        assert not record.exists()


def test_what_another_machine_wrote_is_believed(noted, monkeypatch):
    board, _ = noted
    other = {"host": "other", "start": "another"}
    monkeypatch.setattr(board_module, "_machine", lambda: other)
    assert board.is_done("phase", "a.b")


def test_parts_go_through_json(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "three"}\n')
    (tmp_path / "a.txt").write_text("text")
    sources = [
        JsonlSource(path=str(tmp_path)),
        TextSource(path=str(tmp_path)),
        InstalledDocumentation(packages=["yaml"]),
    ]
    for source in sources:
        parts = source.parts(Path)
        assert parts
        again = [from_json(json.loads(json.dumps(to_json(part)))) for part in parts]
        assert again == parts
    remote = SourceFile("https://host/a.jsonl", "a.jsonl", 7)
    assert from_json(to_json(remote)) == remote


@pytest.mark.parametrize("kind", ["os:system", "pathlib:Path", "data_pipeline.sources:no", "x"])
def test_a_record_names_nothing_but_parts(kind):
    with pytest.raises(DataError, match="not a part of a source"):
        from_json({"kind of value": kind, "fields": {}})


def test_what_has_no_place_in_a_record_is_refused():
    with pytest.raises(TypeError, match="a part of a source holds a set"):
        to_json({"a": {1}})


RECORD = TokenizerRecord(
    name="t", sha256="0" * 64, vocabulary_size=70_000, special={}, prefix=[], suffix=[]
)


@pytest.fixture(scope="module")
def no_fsync():
    """It takes most of the time of small files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 9), max_size=12), max_size=6).filter(any),
    st.integers(3, 30),
)
def test_shards_from_chunks_are_those_of_the_writer(
    tmp_path_factory, no_fsync, chunks, shard_tokens
):
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(len(chunks))
    with ShardWriter(folder / "one", RECORD, shard_tokens) as writer:
        stems = []
        for number, lengths in enumerate(chunks):
            sizes = np.array(lengths, np.int32)
            tokens = rng.integers(0, 70_000, sizes.sum(), np.int32)
            bits = rng.integers(0, 4, sizes.sum(), np.uint8)
            stems.append(folder / f"chunk-{number}")
            for path, array in zip(chunk_files(stems[-1]), (tokens, bits, sizes), strict=True):
                path.write_bytes(array.tobytes())
            writer.write(tokens, sizes, bits)
        writer.finish({})
    found = borders((np.array(lengths, np.int32) for lengths in chunks), shard_tokens)
    prepare_folder(folder / "two")
    shards = [
        write_shard(folder / "two", n, 70_000, pieces(stems, begin, end, np.dtype("<i4")))
        for n, (begin, end) in enumerate(pairwise(found))
    ]
    write_manifest(folder / "two", RECORD, shards, {})
    one, two = (
        {p.name: p.read_bytes() for p in (folder / name).iterdir()} for name in ("one", "two")
    )
    assert one == two
    assert len(ShardedDataset.open(folder / "two", verify="digests")) == sum(map(len, chunks))


def test_no_chunk_has_no_shard():
    assert borders([], 5) == [(0, 0, 0)]
    assert borders([np.zeros(0, np.int32)], 5) == [(0, 0, 0)]


@given(st.lists(st.integers(0, 5), max_size=30))
def test_the_first_equal_is_found(numbers):
    digests = np.array([[n % 3, n] for n in numbers], np.uint64).reshape(-1, 2)
    assert first_equals(digests).tolist() == [numbers.index(n) for n in numbers]


def test_progress_has_rate_and_time_left(monkeypatch, capsys):
    said = meter.progress(1.2e9, 4.8e9, 60, "B")
    assert said == "1.2 GB of 4.8 GB (25%), 20 MB/s, 3 min left"
    assert meter.duration(30_000) == "8 h 20 min"
    assert meter.duration(8.4) == "8 s"
    assert meter.amount(999, "") == "999"
    now = iter(range(0, 1000, 40))
    monkeypatch.setattr(meter.time, "monotonic", lambda: next(now))
    list(meter.metered(range(3), [5, 10, 5], "cleaning", "B", lambda: "7 documents"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "cleaning: 5 B of 20 B (25%), 0.125 B/s, 2 min left; 7 documents"
    assert lines[-1].startswith("cleaning: 7 documents in ")
    list(meter.metered(range(3), [5, 10, 5], "looking", "B"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "looking: 5 B of 20 B (25%), 0.125 B/s, 2 min left"
    assert lines[-1] == "looking in 3 min (0.1 B/s)"


class Told:
    """A task that makes one shard."""

    weight = 1

    def __init__(self, name):
        self.name = name

    def run(self):
        return Outcome({"told": {"shards": 1, "tokens": 1000}})


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (Share(0, 1), "writing: 2 shards, 2,000 tokens"),
        (Share(1, 2), "writing (share 2 of 2): 1 shard, 1,000 tokens"),
    ],
)
def test_what_one_participant_did_is_told_as_its_share(tmp_path, capsys, share, said):
    phase = Phase("phase", "writing", [Told("a"), Told("b")])
    crew.perform(Board(tmp_path, tmp_path), phase, share, Workers(1))
    assert capsys.readouterr().err.splitlines() == [said]


def test_whoever_fails_leaves_word_that_an_old_failure_does_not(tmp_path):
    first, second = (crew.Crew(tmp_path / "crew", Share(index, 2)) for index in range(2))

    class Work:
        name, weight = "a", 1

    phase = Phase("phase", "", [Work()])
    board = Board(tmp_path / "board", tmp_path)
    with pytest.raises(RecipeError, match="no such thing"), second:
        raise RecipeError("no such thing")
    with first:
        # Word of a failure before this one came is an earlier run's.
        board.note("phase", "a", Outcome({}))
        first.wait_for(board, phase)
        with pytest.raises(RecipeError, match="else"), second:
            raise RecipeError("something else")
        (board.folder / "phase" / "a.json").unlink()
        with pytest.raises(RecipeError, match=r": something else$"):
            first.wait_for(board, phase)
