"""Counts as plain counting gives them, divergences as the formula does, and the whole stage."""

import json
import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import DataError
from configs.stage import Artifact, StageContext
from data_pipeline.analysis.corpus import count_halves, merge_corpora, word_tokens
from data_pipeline.analysis.counts import Counts, compare, merge
from data_pipeline.analysis.domain_gap import GapStage
from data_pipeline.analysis.hashing import half_of
from data_pipeline.analysis.stretches import Reader
from data_pipeline.example import WORD_START
from data_pipeline.shards import ShardedDataset, ShardWriter, TokenizerRecord
from data_pipeline.tokenization import tokenizer_record

RECORD = TokenizerRecord(
    name="tiny", sha256="a" * 64, vocabulary_size=50, special={"unk": 1}, prefix=[], suffix=[]
)
# A document: words, each a list of ids.
DOCUMENTS = st.lists(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), min_size=1, max_size=6),
    min_size=1,
    max_size=12,
)


def write(folder, documents, record=RECORD, shard_tokens=25):
    with ShardWriter(folder, record, shard_tokens) as writer:
        for words in documents:
            tokens = np.array([t for word in words for t in word])
            starts = [at == 0 for word in words for at in range(len(word))]
            annotations = np.array(starts, np.uint8) * WORD_START
            writer.write(tokens, np.array([len(tokens)], np.int32), annotations)
        writer.finish({})
    return ShardedDataset.open(folder)


def plain_divergence(first: Counter, second: Counter) -> float:
    total = 0.0
    for side, other in ((first, second), (second, first)):
        for key, count in side.items():
            p, q = count / side.total(), other[key] / other.total()
            total += p * math.log2(2 * p / (p + q)) / 2
    return total


def counts_of(values):
    return Counts.of(np.array(values, np.uint64), np.arange(len(values)))


@given(documents=DOCUMENTS, stretch=st.integers(1, 60), shard_tokens=st.integers(1, 80))
@settings(max_examples=25, deadline=None)
def test_counts_are_those_of_plain_counting(tmp_path_factory, documents, stretch, shard_tokens):
    data = write(tmp_path_factory.mktemp("shards"), documents, shard_tokens=shard_tokens)
    halves = count_halves(Reader(data), 3, stretch)
    for half, found in enumerate(halves):
        place = half_of(np.arange(len(documents)))
        own = [words for words, at in zip(documents, place, strict=True) if at == half]
        flat = [[t for word in words for t in word] for words in own]
        assert found.documents == len(own)
        tokens = Counter(t for ids in flat for t in ids)
        assert dict(zip(found.tokens.keys.tolist(), found.tokens.counts.tolist(), strict=True)) == (
            tokens
        )
        pairs = Counter((a << 32) + b for ids in flat for a, b in pairwise(ids))
        counted = found.ngrams[1]
        assert dict(zip(counted.keys.tolist(), counted.counts.tolist(), strict=True)) == pairs
        triples = Counter(run for ids in flat for run in zip(ids, ids[1:], ids[2:], strict=False))
        assert sorted(found.ngrams[2].counts.tolist()) == sorted(triples.values())
        words = Counter(tuple(word) for words in own for word in words)
        spelled = {
            tuple(word_tokens(data, place)): count
            for place, count in zip(
                found.words.firsts.tolist(), found.words.counts.tolist(), strict=True
            )
        }
        assert spelled == words
    assert merge_corpora(list(halves)).documents == len(documents)


def test_the_halves_are_alike_though_two_kinds_of_documents_take_turns(tmp_path):
    """Texts and their translations, classes of a task: no order of documents may show."""
    kinds = [[[1], [2]], [[3], [4]]]
    data = write(tmp_path, kinds * 500)
    first, second = count_halves(Reader(data), 2)
    assert first.documents == second.documents == 500
    assert compare(first.words, second.words).divergence < 0.01
    assert compare(first.ngrams[1], second.ngrams[1]).divergence < 0.01
    for turns in (2, 3, 4, 6):
        shares = half_of(np.arange(12_000)).reshape(-1, turns).mean(axis=0)
        assert abs(shares - 0.5).max() < 0.05


@given(
    first=st.lists(st.integers(0, 12), min_size=1, max_size=80),
    second=st.lists(st.integers(0, 12), min_size=1, max_size=80),
)
@settings(max_examples=60, deadline=None)
def test_the_divergence_is_jensens_and_shannons(first, second):
    found = compare(counts_of(first), counts_of(second)).divergence
    assert found == pytest.approx(plain_divergence(Counter(first), Counter(second)), abs=1e-12)
    assert 0 <= found <= 1
    again = compare(counts_of(second), counts_of(first)).divergence
    assert found == pytest.approx(again, abs=1e-12)


def test_equal_corpora_do_not_diverge_and_disjoint_ones_do_by_one_bit():
    assert compare(counts_of([1, 2, 2]), counts_of([2, 1, 2])).divergence == 0
    assert compare(counts_of([1, 2]), counts_of([3, 4])).divergence == pytest.approx(1)


def test_merged_counts_are_counted_together():
    whole = counts_of([5, 1, 5, 9, 1, 1])
    parts = [
        Counts.of(np.array([5, 1], np.uint64), np.array([0, 1])),
        Counts.of(np.array([5, 9, 1, 1], np.uint64), np.array([2, 3, 4, 5])),
    ]
    for name in ("keys", "counts", "firsts"):
        assert getattr(merge(parts), name).tolist() == getattr(whole, name).tolist()
    assert merge(parts).most_frequent(2).tolist() == [1, 5]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = ["[UNK]", "the", "cat", "sat", "gene", "##s", "cell", "on", "."]
    backend = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"unk_token": "[UNK]"}))
    return folder


@pytest.fixture
def context(tmp_path: Path, tokenizer: Path) -> StageContext:
    """A run in which ``prepare`` has made two corpora."""
    record = tokenizer_record(tokenizer)
    the, cat, sat, genes, cell, unknown, dot = [1], [2], [3], [4, 5], [6], [0], [8]
    write(tmp_path / "general", [[the, cat, sat], [the, cat], [the, sat, the, cat]], record)
    domain = [[the, genes, cell], [genes, unknown, dot], [the, cell, genes]]
    write(tmp_path / "domain", domain, record)
    folder = tmp_path / "gap"
    folder.mkdir()
    made = {"prepare": Artifact(tmp_path, "fingerprint")}
    return StageContext("gap", folder, 1, "key", made)


def stage(**changes):
    values = {
        "corpora": {"general": "stage:prepare/general", "domain": "stage:prepare/domain"},
        "tokenizer": "stage:prepare/tokenizer",
    }
    return GapStage.model_validate(values | changes)


def test_the_stage_writes_what_it_measured(context):
    stage().check(context)
    fingerprint = stage().run(context)
    results = json.loads((context.folder / "results.json").read_text())
    general, domain = results["corpora"]["general"], results["corpora"]["domain"]
    assert (general["documents"], general["tokens"], general["words"]) == (3, 9, 9)
    assert (domain["tokens"], domain["words"], domain["distinct_words"]) == (12, 9, 5)
    assert domain["fertility"] == round(12 / 9, 4)
    assert domain["unknown_rate"] == pytest.approx(1 / 12, abs=1e-6)
    assert general["unknown_rate"] == 0
    (pair,) = results["pairs"]
    assert pair["corpora"] == ["general", "domain"]
    # Of three words each: the, cat, sat and genes, cell, the.
    assert pair["vocabulary_overlap"] == {"top": 3, "share": round(1 / 3, 4)}
    first = Counter({1: 4, 2: 3, 3: 2})
    second = Counter({1: 2, 4: 3, 5: 3, 6: 2, 0: 1, 8: 1})
    assert pair["divergence"]["tokens"] == pytest.approx(plain_divergence(first, second), abs=1e-6)
    # The full stop sets it off too, but is no word.
    domain_words = pair["distinctive_words"]["domain"]
    assert [row["word"] for row in domain_words] == ["genes", "cell", "[UNK]"]
    assert domain_words[0] == {"word": "genes", "per_million_words": 333333.33, "in_the_other": 0}
    assert stage().run(context) == fingerprint


def test_settings_are_honoured(context):
    stage(top=1, distinctive=1, ngrams=1, context=None, clusters=None).run(context)
    results = json.loads((context.folder / "results.json").read_text())
    (pair,) = results["pairs"]
    assert list(pair["divergence"]) == ["words", "tokens"]
    assert pair["context"] is pair["coverage"] is results["clusters"] is None
    assert results["corpora"]["general"]["balance"] is None
    assert "context_shift" not in results["matrices"]["measures"]
    assert pair["vocabulary_overlap"]["top"] == 1
    assert [len(words) for words in pair["distinctive_words"].values()] == [1, 1]


def test_a_corpus_of_one_document_has_no_second_half(context, tokenizer, tmp_path):
    write(tmp_path / "single", [[[1], [2]]], tokenizer_record(tokenizer))
    stage(corpora={"one": str(tmp_path / "single"), "two": "stage:prepare/domain"}).run(context)
    results = json.loads((context.folder / "results.json").read_text())
    halves = results["corpora"]["one"]["divergence_of_halves"]
    assert halves == dict.fromkeys(("words", "tokens", "pairs", "triples"))
    assert results["corpora"]["one"]["unseen_of_halves"] is None


def test_shards_of_another_tokenizer_are_refused(context, tmp_path):
    write(tmp_path / "strange", [[[1], [2]]])
    given = stage(corpora={"a": "stage:prepare/general", "b": str(tmp_path / "strange")})
    with pytest.raises(DataError, match="strange: made by tokenizer tiny"):
        given.check(context)
    assert not (context.folder / "results.json").exists()


def test_shards_without_words_are_refused(context):
    bare = ShardedDataset.open(context.locate("stage:prepare/domain"))
    manifest = bare.manifest.model_copy(update={"annotations": {}})
    adopted = replace(bare, manifest=manifest)
    with pytest.raises(DataError, match=r"no word starts .*prepare the corpus from its text"):
        Reader.limited(adopted, 100, 1)


def test_a_sample_is_fixed_and_of_whole_documents(tmp_path):
    documents = [[[number % 7]] * (1 + number % 3) for number in range(400)]
    data = write(tmp_path / "shards", documents, shard_tokens=120)
    reader = Reader.limited(data, 400, seed=3)
    parts = list(reader.stretches(50))
    numbers = np.concatenate([part.numbers for part in parts])
    assert 120 < len(numbers) < 280
    assert sorted(set(numbers.tolist())) == numbers.tolist()
    whole = list(reader.stretches(10_000))
    assert np.array_equal(np.concatenate([part.numbers for part in whole]), numbers)
    tokens = [token for part in parts for token in part.tokens.tolist()]
    assert tokens == [word[0] for number in numbers.tolist() for word in documents[number]]
    flat = [word[0] for document in documents for word in document]
    assert tokens == [flat[at] for part in parts for at in part.places.tolist()]
    other = Reader.limited(data, 400, seed=4)
    assert [part.numbers.tolist() for part in other.stretches()] != [
        part.numbers.tolist() for part in whole
    ]
    none = Reader.limited(data, 10_000, seed=3)
    assert sum(len(part.numbers) for part in none.stretches()) == 400


def test_where_and_how_shards_are_read_does_not_matter(context):
    fingerprint = stage().run(context)
    assert stage(mode="pread").run(context) == fingerprint
    url = context.locate("stage:prepare/domain").resolve().as_uri()
    cache = {"folder": str(context.folder / "cache")}
    given = stage(corpora={"general": "stage:prepare/general", "domain": url}, cache=cache)
    given.check(context)
    assert given.run(context) == fingerprint


def test_a_sample_of_nothing_is_refused(context):
    with pytest.raises(DataError, match="raise sample_tokens"):
        stage(sample_tokens=1).run(context)


def test_measures_stand_in_tables_over_all_pairs(context):
    stage().run(context)
    results = json.loads((context.folder / "results.json").read_text())
    (pair,) = results["pairs"]
    found = results["matrices"]
    assert found["corpora"] == ["general", "domain"]
    measures = found["measures"]
    words = pair["divergence"]["words"]
    halves = [one["divergence_of_halves"]["words"] for one in results["corpora"].values()]
    assert measures["divergence_words"] == [[halves[0], words], [words, halves[1]]]
    # general: the cat sat; domain: the genes [UNK] . cell
    assert pair["unseen"]["general"] == {"words": round(2 / 3, 6), "tokens": round(5 / 9, 6)}
    assert measures["unseen_words"][0][1] == round(2 / 3, 6)
    assert measures["unseen_words"][1][0] == round(4 / 5, 6)
    assert measures["covered"][0][0] == 1


def test_a_flipped_bit_is_found_before_anything_is_measured(context):
    file = next(iter(sorted(context.locate("stage:prepare/general").glob("*.ann"))))
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=file.name):
        stage().run(context)


def test_a_missing_corpus_is_named_before_anything_is_read(context):
    with pytest.raises(DataError, match=r"nothing at .*nowhere"):
        stage(corpora={"a": "stage:prepare/general", "b": "stage:prepare/nowhere"}).check(context)


def test_what_an_earlier_stage_will_make_is_not_looked_for(context):
    later = {"a": "stage:later/train", "b": "stage:prepare/domain"}
    stage(corpora=later).check(context)
