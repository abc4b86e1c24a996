"""Rows of sentence pairs as a model gets them: one document in two parts, with a label."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from configs.errors import DataError
from data_pipeline.example import SENTENCE_START, WORD_START
from data_pipeline.packing import SentencePairsPacking
from data_pipeline.shards import ShardedDataset, ShardWriter
from data_pipeline.shards.layout import index_bytes, parse_index
from data_pipeline.shards.manifest import FileRecord, read_manifest
from data_pipeline.streaming import (
    DataConfig,
    FixedRows,
    SourceConfig,
    TokenStream,
    WindowShuffle,
    describe_steps,
)
from tests.data_pipeline.streaming.conftest import TOKENIZER

LENGTH = 32


@pytest.fixture
def location(tmp_path):
    """Three shards of 30 documents of sentences; ids count up through the data set."""
    rng = np.random.default_rng(4)
    documents = [rng.integers(2, 9, rng.integers(1, 12)) for _ in range(30)]
    marks = [np.full(length, WORD_START, np.uint8) for each in documents for length in each]
    for sentence in marks:
        sentence[0] |= SENTENCE_START
    lengths = np.array([each.sum() for each in documents], np.int32)
    with ShardWriter(tmp_path / "shards", TOKENIZER, 400) as writer:
        writer.write(np.arange(lengths.sum()) + 100, lengths, np.concatenate(marks))
        writer.finish({})
    return str(tmp_path / "shards")


def stream_of(location, negatives, **more):
    packing = SentencePairsPacking(negatives=negatives)
    sources = {"only": SourceConfig(shards=location)}
    config = DataConfig(length=LENGTH, packing=packing, sources=sources, **more)
    return TokenStream.open(config, Path, 3)


@pytest.mark.parametrize("negatives", ["random_document", "order"])
def test_a_row_is_two_parts_that_see_one_another(location, negatives):
    stream = stream_of(location, negatives)
    rows = stream.examples(0, 3 * stream.rows[0])
    table = describe_steps(stream, range(3), stream.rows[0], 1)
    data = ShardedDataset.open(Path(location))
    for example, row in zip(rows, table, strict=True):
        texts = [
            data.tokens(piece.sequence)[piece.start : piece.start + piece.length].tolist()
            for piece in row.documents
        ]
        expected, parts = [1], [0]
        for number, text in enumerate(texts):
            expected += [*text, 2]
            parts += [number] * (len(text) + 1)
        filled, padding = len(expected), LENGTH - len(expected)
        assert example.tokens.tolist() == expected + [0] * padding
        assert example.parts.tolist() == parts + [0] * padding
        assert example.segments.tolist() == [1] * filled + [0] * padding
        assert example.positions.tolist() == [*range(filled), *[0] * padding]
        assert example.special.tolist() == [token < 100 for token in example.tokens]
        assert example.label == row.label
        assert (example.label == -1) == (len(texts) == 1)
        if len(texts) == 2:
            follows = texts[0][-1] + 1 == texts[1][0]
            same = row.documents[0].sequence == row.documents[1].sequence
            assert (example.label == 1) == (follows and same)
            assert same or negatives == "random_document"
    labels = {row.label for row in table}
    assert labels >= {0, 1}


def cut_into_sentences(location):
    """The same shards with sequences of three tokens, and the documents that they make up."""
    folder = Path(location)
    manifest, records = read_manifest(folder), []
    for record in manifest.shards:
        path = folder / f"{record.name}.idx"
        index = parse_index(path.read_bytes(), "x")
        lengths = [[3] * (n // 3) + [n % 3] * (n % 3 > 0) for n in index.lengths.tolist()]
        marks = np.cumsum([0, *map(len, lengths)])
        content = index_bytes(index.dtype, np.concatenate(lengths).astype(np.int32), marks)
        path.write_bytes(content)
        file = FileRecord(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        changes = {"sequences": int(marks[-1]), "files": {**record.files, ".idx": file}}
        records.append(record.model_copy(update=changes))
    made = manifest.model_copy(update={"shards": records, "level": "sentence"}).signed()
    (folder / "manifest.json").write_text(made.model_dump_json())


def test_pairs_are_of_documents_though_they_lie_in_sentences(location):
    documents = ShardedDataset.open(Path(location))
    begins = 100 + np.cumsum(documents.lengths) - documents.lengths
    rows = stream_of(location, "random_document").rows
    cut_into_sentences(location)
    stream = stream_of(location, "random_document")
    assert len(ShardedDataset.open(Path(location))) > 2 * len(documents)
    assert stream.rows == rows
    labels = []
    for row in stream.examples(0, 3 * rows[0]):
        text = row.tokens[~row.special]
        first, second = (row.tokens[~row.special & (row.parts == part)] for part in (0, 1))
        owner = np.searchsorted(begins, text, "right") - 1
        labels.append(row.label)
        assert row.label >= 0 or not len(second)
        assert row.label != 1 or (np.diff(text) == 1).all()
        assert row.label != 0 or owner[0] != owner[-1]
        assert len({*owner[: len(first)]}) == 1
    assert {0, 1} <= set(labels)


def test_labels_are_new_in_the_next_epoch_and_the_same_when_read_again(location):
    stream = stream_of(location, "random_document", shuffle=WindowShuffle(shards=1))
    count = stream.rows[0]
    epochs = [stream.examples(at * count, (at + 1) * count) for at in range(2)]
    by_row = [dict(zip(e.keys.sample.tolist(), e.labels.tolist(), strict=True)) for e in epochs]
    assert by_row[0] != by_row[1]
    for at in (0, 7, count + 5):
        (again,) = stream.examples(at, at + 1)
        whole = epochs[at // count][at % count]
        assert np.array_equal(again.tokens, whole.tokens)
        assert again.label == whole.label


def test_exchanged_parts_leave_no_token_unread(location):
    stream = stream_of(location, "order")
    rows = stream.examples(0, stream.rows[0])
    read = np.concatenate([row.tokens[~row.special] for row in rows])
    assert sorted(read.tolist()) == list(range(100, 100 + len(read)))


def test_a_fixed_sample_of_pairs_is_always_the_same(location):
    packing = SentencePairsPacking()
    first, second = (FixedRows.open(Path(location), LENGTH, 9, packing) for _ in range(2))
    assert np.array_equal(first.examples(0, 9).tokens, second.examples(0, 9).tokens)


def test_shards_without_sentences_are_refused(make_shards):
    with pytest.raises(DataError, match="no token is marked as the start of a sentence"):
        stream_of(make_shards("plain", [5, 9, 20]), "order")
