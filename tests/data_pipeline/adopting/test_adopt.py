"""Files of other projects are read as they are, or refused with what is wrong with them."""

import json
from pathlib import Path

import numpy as np
import pytest

from configs.errors import DataError, RecipeError
from data_pipeline.adopting import Adoption, adopt
from data_pipeline.adopting import annotate as annotating
from data_pipeline.example import SENTENCE_START, WORD_START
from data_pipeline.shards import ShardedDataset, describe
from data_pipeline.shards.export import export_shards
from data_pipeline.tokenization import Encoder, tokenizer_record, tokenizer_sha256
from launcher import cli
from tests.data_pipeline.adopting.conftest import encoded, texts, write_pair


def snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "m"}


@pytest.mark.parametrize(("dtype", "code", "name"), [("<u2", 8, "uint16"), ("<i4", 4, "int32")])
@pytest.mark.parametrize("apart", [False, True])
def test_a_folder_is_read_as_it_is(tmp_path, causal, dtype, code, name, apart):
    documents = encoded(causal)
    folder = tmp_path / "tokens"
    write_pair(folder / "My.data_text_document", documents[:20], dtype=dtype, code=code)
    write_pair(folder / "b_text_document", documents[20:], dtype=dtype, code=code)
    before = snapshot(folder)
    out = tmp_path / "out" if apart else None
    manifest = adopt(Adoption(folder, causal, out))
    assert snapshot(folder) == before
    data = ShardedDataset.open(out or folder, verify="digests")
    assert (folder / "manifest.json").exists() is not apart
    assert [shard.name for shard in manifest.shards] == ["My.data_text_document", "b_text_document"]
    assert (manifest.dtype, manifest.level, manifest.annotations) == (name, "document", {})
    for i, document in enumerate(documents):
        np.testing.assert_array_equal(data.tokens(i), document)
    data.require_tokenizer(tokenizer_sha256(causal), "the tokenizer")
    assert not data.annotated
    with pytest.raises(DataError, match="no annotations"):
        data.annotations(0)
    assert describe(out or folder)["tokens"] == sum(map(len, documents))


@pytest.mark.parametrize("suffix", ["", ".bin", ".idx"])
def test_one_pair_of_a_folder(tmp_path, causal, suffix):
    write_pair(tmp_path / "a_document", encoded(causal, seed=1))
    write_pair(tmp_path / "b_document", encoded(causal, seed=2))
    manifest = adopt(Adoption(tmp_path / f"b_document{suffix}", causal, tmp_path / "out"))
    assert [shard.name for shard in manifest.shards] == ["b_document"]
    data = ShardedDataset.open(tmp_path / "out", verify="digests")
    np.testing.assert_array_equal(data.tokens(0), encoded(causal, seed=2)[0])


@pytest.mark.parametrize(
    ("eos", "contains", "added"),
    [(True, "auto", []), (False, "auto", [0]), (True, "suffix", []), (True, "none", [0])],
)
def test_packing_adds_no_token_that_is_there_already(tmp_path, causal, eos, contains, added):
    assert tokenizer_record(causal).suffix == [0]
    write_pair(tmp_path / "a", encoded(causal, eos=eos))
    manifest = adopt(Adoption(tmp_path, causal, contains=contains))
    assert (manifest.tokenizer.prefix, manifest.tokenizer.suffix) == ([], added)
    assert manifest.provenance["adopted"]["contains"] == ([] if added else ["suffix"])


def test_files_that_show_both_have_to_be_told_apart(tmp_path, causal):
    documents = encoded(causal)
    write_pair(tmp_path / "a", [documents[0][:-1], *documents[1:]])
    with pytest.raises(DataError, match=r"29 of 30 documents have the suffix \[0\]"):
        adopt(Adoption(tmp_path, causal))
    assert adopt(Adoption(tmp_path, causal, contains="suffix")).tokenizer.suffix == []


def test_what_they_are_said_to_contain_must_be_there(tmp_path, causal):
    write_pair(tmp_path / "a", encoded(causal, eos=False))
    with pytest.raises(DataError, match=r"no document has the suffix \[0\]"):
        adopt(Adoption(tmp_path, causal, contains="both"))


def test_sentences_and_empty_sequences(tmp_path, causal):
    documents = encoded(causal, count=6)
    nothing = np.zeros(0, int)
    pieces = [documents[0][:3], documents[0][3:], nothing, documents[1], nothing, documents[2]]
    # Documents: two sentences and an empty one; one; an empty one; one.
    write_pair(tmp_path / "a", [*pieces, nothing], marks=[0, 3, 4, 5, 6, 7])
    manifest = adopt(Adoption(tmp_path, causal))
    data = ShardedDataset.open(tmp_path, verify="digests")
    assert manifest.level == "sentence"
    assert (manifest.shards[0].sequences, manifest.shards[0].documents) == (4, 3)
    assert data.lengths.tolist() == [3, len(documents[0]) - 3, len(documents[1]), len(documents[2])]
    assert data.shards[0].index.documents.tolist() == [0, 2, 3, 4]
    for i, kept in enumerate((documents[0][:3], documents[0][3:], *documents[1:3])):
        np.testing.assert_array_equal(data.tokens(i), kept)


def test_annotations_are_those_of_preparing_the_texts(tmp_path, causal, monkeypatch):
    monkeypatch.setattr(annotating, "BATCH_TOKENS", 50)
    write_pair(tmp_path / "a", encoded(causal))
    manifest = adopt(Adoption(tmp_path, causal, annotate=True))
    assert manifest.provenance["adopted"]["annotated"] == {"documents": 30, "not_reproduced": 0}
    data = ShardedDataset.open(tmp_path, verify="digests")
    prepared = Encoder(causal).encode(texts())
    ends = np.cumsum(prepared.lengths)
    for i, (end, length) in enumerate(zip(ends, prepared.lengths, strict=True)):
        np.testing.assert_array_equal(
            data.annotations(i)[:-1], prepared.annotations[end - length : end]
        )
        assert data.annotations(i)[-1] == WORD_START  # the <eos>
    assert np.count_nonzero(data.annotations(0) & SENTENCE_START) == 3


def test_a_document_cut_up_otherwise_has_a_word_a_token(tmp_path, causal, monkeypatch):
    documents = encoded(causal)
    letters = [Encoder(causal).encode([letter]).tokens for letter in "model"]
    documents[3] = np.concatenate([*letters, [0]])
    write_pair(tmp_path / "a", documents)
    with pytest.raises(DataError, match="1 of 30 documents are not what the tokenizer makes"):
        adopt(Adoption(tmp_path, causal, annotate=True))
    assert not list(tmp_path.glob("*.ann"))
    monkeypatch.setattr(annotating, "NOT_REPRODUCED", 0.05)
    manifest = adopt(Adoption(tmp_path, causal, annotate=True))
    assert manifest.provenance["adopted"]["annotated"]["not_reproduced"] == 1
    data = ShardedDataset.open(tmp_path)
    assert data.annotations(3).tolist() == [WORD_START] * len(documents[3])


def test_ids_beyond_the_vocabulary_are_another_tokenizers(tmp_path, causal):
    size = tokenizer_record(causal).vocabulary_size
    write_pair(tmp_path / "a", [*encoded(causal), np.array([5, size, 7])])
    with pytest.raises(DataError, match=rf"a\.bin: token \d+ is id {size}, but .* has {size} ids"):
        adopt(Adoption(tmp_path, causal))
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize(
    ("dtype", "code", "told"),
    [("<u2", 6, "float64, which DeepSpeed's writer uses for uint16"), ("<i8", 5, "int64"),
     ("<u1", 1, "uint8"), ("<u2", 9, "dtype code 9")],
)  # fmt: skip
def test_tokens_of_other_kinds_are_refused(tmp_path, causal, dtype, code, told):
    width = 4 if code == 6 else 1  # its pointers are of two bytes a token, not of eight
    write_pair(tmp_path / "a", [np.arange(4 * width)], dtype=dtype, code=code)
    with pytest.raises(DataError, match=rf"a\.idx: .*{told}"):
        adopt(Adoption(tmp_path, causal))


def test_damaged_and_odd_files_are_named(tmp_path, causal):
    documents = encoded(causal)
    cases = {
        "cut": lambda stem: stem.with_suffix(".bin").write_bytes(b"\0\0"),
        "alone": lambda stem: stem.with_suffix(".bin").unlink(),
        "index": lambda stem: stem.with_suffix(".idx").write_bytes(b"TNTIDX\0\0" * 9),
        "modes": lambda stem: write_pair(stem, documents, modes=bytes(len(documents))),
        "none": lambda stem: write_pair(stem, [np.zeros(0, int)]),
        "uncovered": lambda stem: write_pair(stem, documents, marks=[0, 5]),
    }
    told = {
        "cut": r"cut\.bin: 2 bytes, but its \.idx speaks of",
        "alone": r"alone\.bin: missing",
        "index": r"index\.idx: not an MMIDIDX index",
        "modes": r"modes\.idx: it holds a mode of each sequence",
        "none": r"none\.idx: not one token",
        "uncovered": r"uncovered\.idx: its documents do not cover",
    }
    for name, damage in cases.items():
        stem = tmp_path / name / name
        write_pair(stem, documents)
        damage(stem)
        with pytest.raises(DataError, match=told[name]):
            adopt(Adoption(stem.parent, causal))
    write_pair(tmp_path / "named" / "a name", documents)
    with pytest.raises(DataError, match="a manifest cannot name it"):
        adopt(Adoption(tmp_path / "named", causal))
    with pytest.raises(DataError, match=r"nothing: no \.idx file there"):
        adopt(Adoption(tmp_path / "nothing", causal))


def test_kinds_of_tokens_are_not_mixed(tmp_path, causal):
    write_pair(tmp_path / "a", encoded(causal))
    write_pair(tmp_path / "b", encoded(causal), dtype="<i4", code=4)
    with pytest.raises(DataError, match=r"b\.idx: its tokens are int32, those of a are uint16"):
        adopt(Adoption(tmp_path, causal))


def test_nothing_that_is_there_is_overwritten(tmp_path, causal):
    write_pair(tmp_path / "tokens" / "a", encoded(causal))
    adopt(Adoption(tmp_path / "tokens", causal))
    with pytest.raises(RecipeError, match="there is a manifest already"):
        adopt(Adoption(tmp_path / "tokens", causal))
    with pytest.raises(RecipeError, match="not empty"):
        adopt(Adoption(tmp_path / "tokens", causal, tmp_path))
    (tmp_path / "tokens" / "manifest.json").unlink()
    (tmp_path / "tokens" / "a.ann").write_text("mine")
    with pytest.raises(RecipeError, match=r"a\.ann: it is there already"):
        adopt(Adoption(tmp_path / "tokens", causal, annotate=True))
    assert (tmp_path / "tokens" / "a.ann").read_text() == "mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match="file: not a folder"):
        adopt(Adoption(tmp_path / "tokens", causal, tmp_path / "file"))


def test_rows_of_adopted_files_hold_one_end_of_text_a_document(tmp_path, causal):
    from data_pipeline.streaming import DataConfig, TokenStream

    documents = encoded(causal)
    write_pair(tmp_path / "a", documents)
    adopt(Adoption(tmp_path, causal))
    config = DataConfig.model_validate(
        {"length": 64, "sources": {"a": {"shards": str(tmp_path)}}, "mode": "pread"}
    )
    stream = TokenStream.open(config, Path, seed=1)
    rows = stream.examples(0, stream.rows[0])
    real = rows.tokens[rows.segments > 0]
    assert np.count_nonzero(real == 0) == 30
    assert sorted(real.tolist()) == sorted(np.concatenate(documents).tolist())


def in_sentences(tmp_path, causal):
    """Adopted files whose documents lie in three sequences each; and these documents."""
    documents = encoded(causal)
    sequences, marks = [], [0]
    for document in documents:
        sequences += [document[:2], document[2:5], document[5:]]
        marks.append(len(sequences))
    write_pair(tmp_path / "a", sequences, marks=marks)
    adopt(Adoption(tmp_path, causal))
    assert ShardedDataset.open(tmp_path).manifest.level == "sentence"
    return documents


@pytest.mark.parametrize("packing", ["best_fit", "concatenate", "single"])
def test_what_is_packed_are_documents_though_they_lie_in_sentences(tmp_path, causal, packing):
    from data_pipeline.streaming import DataConfig, TokenStream

    documents = in_sentences(tmp_path, causal)
    length = max(map(len, documents)) + 1
    config = DataConfig.model_validate(
        {
            "length": length,
            "packing": {"name": packing},
            "sources": {"a": {"shards": str(tmp_path)}},
        }
    )
    stream = TokenStream.open(config, Path, seed=1, cache=tmp_path / "plans")
    rows = stream.examples(0, stream.rows[0])
    found, flat, data = [], np.concatenate(documents), ShardedDataset.open(tmp_path)
    for tokens, segments, sample in zip(rows.tokens, rows.segments, rows.keys.sample, strict=True):
        pieces = stream.reader.sources[0].describe(int(sample)).pieces
        assert len(pieces) == segments.max()
        for number, piece in enumerate(pieces, 1):
            found.append(tokens[segments == number].tolist())
            assert piece.start < data.lengths[piece.sequence]
            begin = int(data.shards[0].index.starts[piece.sequence]) + piece.start
            assert found[-1] == flat[begin : begin + piece.length].tolist()
    if packing == "concatenate":  # which cuts them where rows end, and nowhere else
        assert len(found) < len(documents) + len(rows)
        assert sorted(np.concatenate(found)) == sorted(flat)
    else:
        assert sorted(found) == sorted(document.tolist() for document in documents)


def test_documents_stay_what_they_are_when_exported(tmp_path, causal, monkeypatch):
    monkeypatch.setattr("data_pipeline.shards.export.BLOCK_TOKENS", 7)
    documents = in_sentences(tmp_path / "from", causal)
    export_shards(tmp_path / "from", tmp_path / "out", "int32")
    one, other = (ShardedDataset.open(tmp_path / name) for name in ("from", "out"))
    assert other.manifest.level == "sentence"
    assert other.lengths.tolist() == one.lengths.tolist()
    index = other.shards[0].index
    assert index.documents.tolist() == [3 * n for n in range(len(documents) + 1)]
    assert other.shard_tokens(0).tolist() == np.concatenate(documents).tolist()


def test_the_verb(tmp_path, causal, monkeypatch, capsys):
    write_pair(tmp_path / "a", encoded(causal))
    words = ["onward", "adopt", str(tmp_path / "a"), "--tokenizer", str(causal), "--json"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    told = json.loads(capsys.readouterr().out)
    assert (told["documents"], told["provenance"]["adopted"]["contains"]) == (30, ["suffix"])
    monkeypatch.setattr("sys.argv", [*words, "--contains", "eos"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
