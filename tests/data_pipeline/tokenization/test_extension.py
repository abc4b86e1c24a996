"""New words in tokenizers of every kind: used as one token, and nothing else moves."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models

from configs.errors import DataError
from data_pipeline.example import WORD_START
from data_pipeline.shards import ShardedDataset, ShardWriter
from data_pipeline.tokenization import Encoder, load_backend, tokenizer_record
from data_pipeline.tokenization.extension import (
    Candidate,
    Measure,
    Spelling,
    count_words,
    extend,
    rank,
)
from data_pipeline.tokenization.extension import words as words_module
from data_pipeline.tokenization.extension.extend import _either
from data_pipeline.tokenization.extension.words import LONGEST, stretches
from tests.data_pipeline.tokenization.kinds import KINDS, documents

NEW = ("dolomite", "dolomites", "hornfels", "mörtel", "phyllitic")
FIELD = [
    f"the {a} of the {b}, {a}: a {b} ({a}) model {b} {a}. The {b}\n{a} trains"
    for a in NEW
    for b in NEW
]


def shards(folder, tokenizer, texts):
    encoded = Encoder(tokenizer).encode(texts)
    with ShardWriter(folder, tokenizer_record(tokenizer), 500) as writer:
        writer.write(encoded.tokens, encoded.lengths, encoded.annotations)
        writer.finish({})
    return ShardedDataset.open(folder)


def ranked_words(folder, data):
    """Those that the documents have not got."""
    counts = count_words(data, 10**9)
    found = rank(spelling_of(folder), counts, min_count=3, letters_only=True)
    return [word for word in found if word.shown.strip() in {*NEW, "mortel"}]


def spelling_of(folder):
    return Spelling(json.loads(load_backend(folder).to_str()))


def extended_folder(folder, values, target):
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    (target / "tokenizer.json").write_text(json.dumps(values))
    return target


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def grown(made, tmp_path, kind):
    """(old folder, new folder, what was extended, the shards that were counted)."""
    data = shards(tmp_path / "field", made(kind), FIELD)
    extended = extend(spelling_of(made(kind)), ranked_words(made(kind), data), 40)
    return (
        made(kind),
        extended_folder(made(kind), extended.values, tmp_path / "new"),
        extended,
        data,
    )


def test_words_are_counted_exactly(made, tmp_path, kind, monkeypatch):
    data = shards(tmp_path / "field", made(kind), FIELD)
    expected = Counter()
    for number in range(len(data)):
        ids, marks = data.tokens(number).tolist(), data.annotations(number) & WORD_START
        starts = [0, *(i for i in np.flatnonzero(marks).tolist() if i)]
        for a, b in zip(starts, [*starts[1:], len(ids)], strict=True):
            if 2 <= b - a <= LONGEST:
                expected[tuple(ids[a:b])] += 1
    assert count_words(data, 10**9) == expected
    whole = words_module.stretches
    monkeypatch.setattr(words_module, "stretches", lambda data, most: whole(data, most, 50))
    assert count_words(data, 10**9) == expected
    some = sum(len(part.tokens) for part in whole(data, data.manifest.tokens // 4))
    assert 0.15 < some / data.manifest.tokens < 0.35


def test_new_words_are_single_tokens(grown, kind):
    _, new, extended, _ = grown
    known = {word.shown.strip() for word in extended.words}
    folded = kind in {"wordpiece", "pretrained"}
    assert known == {"mortel" if folded and word == "mörtel" else word for word in NEW}
    backend = load_backend(new)
    assert sorted(backend.get_vocab().values())[-1] == extended.first + len(extended.words) - 1
    for text in ("the dolomite of", "the phyllitic, a"):
        ids = backend.encode(text, add_special_tokens=False).ids
        assert any(number >= extended.first for number in ids)
    for number, word in enumerate(extended.words, extended.first):
        assert backend.id_to_token(number) == word.token
        assert len(word.pieces) > 1


@settings(max_examples=50, deadline=None)
@given(st.text(st.sampled_from("ab the.,(_1 世界é北京\n-😀"), min_size=1, max_size=40))
def test_texts_without_new_words_keep_their_tokens(folders_of_grown, text):
    for old, new in folders_of_grown:
        assert Encoder(old).encode([text]).tokens.tolist() == (
            Encoder(new).encode([text]).tokens.tolist()
        )


@pytest.fixture(scope="session")
def folders_of_grown(made, tmp_path_factory):
    pairs = []
    for kind in KINDS:
        place = tmp_path_factory.mktemp(kind)
        data = shards(place / "field", made(kind), FIELD)
        values = extend(spelling_of(made(kind)), ranked_words(made(kind), data), 40).values
        pairs.append((made(kind), extended_folder(made(kind), values, place / "new")))
    return pairs


def test_all_old_texts_keep_their_tokens_and_read_back(folders_of_grown):
    for old, new in folders_of_grown:
        before, after = (Encoder(folder).encode(documents()) for folder in (old, new))
        np.testing.assert_array_equal(before.tokens, after.tokens)
        np.testing.assert_array_equal(before.annotations, after.annotations)
        backends = [load_backend(folder) for folder in (old, new)]
        for text in FIELD:
            ids = [each.encode(text, add_special_tokens=False).ids for each in backends]
            assert len(ids[1]) < len(ids[0])
            # Only the blank that some decoders write between tokens may differ from the text.
            shown = [
                b.decode(i, skip_special_tokens=False) for b, i in zip(backends, ids, strict=True)
            ]
            assert shown[0] == shown[1]


def test_word_starts_hold_with_new_words(grown, kind):
    old, new, _, _ = grown
    before, after = (Encoder(folder).encode(FIELD) for folder in (old, new))
    starts = [(each.annotations & WORD_START).sum() for each in (before, after)]
    # A line end that is folded to a blank was a token by itself before each new word.
    folded = sum(text.count("\n") for text in FIELD) if kind == "folding" else 0
    assert starts[0] == starts[1] + folded


def test_savings_are_what_encoding_the_texts_tells(grown, tmp_path):
    old, new, extended, data = grown
    saved = Measure(old, new, extended.first).corpus(data, 10**9)
    counts = [int(Encoder(folder).encode(FIELD).lengths.sum()) for folder in (old, new)]
    assert saved.left_out <= counts[0] * 0.05
    if not saved.left_out:
        assert [saved.before, saved.after] == counts
    assert saved.before + saved.left_out == counts[0]
    assert saved.after < saved.before * 0.8
    assert 0.95 < saved.as_dict()["fertility_after"] < saved.as_dict()["fertility_before"]
    other = shards(tmp_path / "other", old, documents())
    nothing = Measure(old, new, extended.first).corpus(other, 10**9)
    assert nothing.before == nothing.after > 0


def test_a_tokenizer_that_moves_other_texts_is_refused(grown, tmp_path):
    old, _, extended, data = grown
    values = json.loads((old / "tokenizer.json").read_text())
    swap = {"type": "Replace", "pattern": {"String": "m"}, "content": "t"}
    own = [values["normalizer"]] if values["normalizer"] else []
    values["normalizer"] = {"type": "Sequence", "normalizers": [swap, *own]}
    other = extended_folder(old, values, tmp_path / "other")
    with pytest.raises(DataError, match="texts without a new word otherwise"):
        Measure(old, other, extended.first).corpus(data, 10**9)


def test_old_tokens_that_no_merge_led_to_are_measured(made, tmp_path):
    """Cut out as a whole, their texts are such a token now, without a new word in them."""
    values = json.loads((made("bpe") / "tokenizer.json").read_text())
    model = values["model"]
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) != "Ġmodel"]
    old = extended_folder(made("bpe"), values, tmp_path / "old")
    data = shards(tmp_path / "field", old, [*FIELD, *documents(20)])
    extended = extend(spelling_of(old), ranked_words(old, data), 40)
    assert extended.shadowed == ("Ġmodel",)
    new = extended_folder(old, extended.values, tmp_path / "new")
    reached = frozenset({model["vocab"]["Ġmodel"]})
    saved = Measure(old, new, extended.first, reached).corpus(data, 10**9)
    counts = [
        int(Encoder(folder).encode([*FIELD, *documents(20)]).lengths.sum()) for folder in (old, new)
    ]
    assert [saved.before, saved.after] == counts
    assert saved.left_out == 0
    with pytest.raises(DataError, match="texts without a new word otherwise"):
        Measure(old, new, extended.first).corpus(data, 10**9)


CHINESE = ["我们研究三叶虫化石，三叶虫在寒武纪。三叶虫化石 (三叶虫) 很重要"] * 12


@pytest.mark.parametrize("chinese_kind", ["bpe", "unigram", "llama"])
def test_chinese_words(made, tmp_path, chinese_kind):
    folder = made(chinese_kind)
    spelling = spelling_of(folder)
    backend = load_backend(folder)
    counts = {}
    for word in ("三叶虫", "化石", "寒武纪"):
        # As they stand within a text, where no mark of a blank comes before them.
        ids = backend.encode(f"a{word}", add_special_tokens=False)
        counts[tuple(i for i, (at, _) in zip(ids.ids, ids.offsets, strict=True) if at)] = 12
    ranked = rank(spelling, counts, min_count=3, letters_only=True)
    extended = extend(spelling, ranked, 10)
    assert {word.shown for word in extended.words} == {"三叶虫", "化石", "寒武纪"}
    new = extended_folder(folder, extended.values, tmp_path / "new")
    before, after = (Encoder(each).encode(CHINESE) for each in (folder, new))
    assert (after.tokens >= extended.first).sum() == 12 * 7
    assert len(after.tokens) < len(before.tokens)
    shown = load_backend(new).decode(after.tokens.tolist()[: after.lengths[0]])
    assert shown == CHINESE[0]


def test_a_word_that_is_always_cut_is_left_out(made):
    """WordPiece sets each CJK character apart, so no entry of several is ever used."""
    spelling = spelling_of(made("wordpiece"))
    words = [
        Candidate("北京", "北京", (5, 6), 100),
        Candidate("trilobite", "trilobite", (5, 6), 50),
        Candidate("stratigraphy", "stratigraphy", (5, 6), 40),
    ]
    extended = extend(spelling, words, 2)
    assert [word.token for word in extended.words] == ["trilobite", "stratigraphy"]
    assert [word.token for word in extended.unreachable] == ["北京"]


def test_ranking(made):
    spelling = spelling_of(made("bpe"))
    backend = load_backend(made("bpe"))

    def ids(text):
        return tuple(backend.encode(text, add_special_tokens=False).ids)

    counts = {
        ids(" trilobite"): 10,
        ids("trilobite"): 9,
        ids(" stratigraphy"): 100,
        ids(" x86trilobite"): 1000,
        ids(" --trilobite"): 1000,
        (0, *ids("trilobite")): 1000,
        ids(" rare"): 2,
    }
    ranked = rank(spelling, counts, min_count=3, letters_only=True)
    assert [word.shown for word in ranked] == [" stratigraphy", " trilobite", "trilobite"]
    with_digits = rank(spelling, counts, min_count=3, letters_only=False)
    assert with_digits[0].shown == " x86trilobite"


def test_a_tokenizer_that_does_not_cut_texts(made, tmp_path):
    """As Llama's: the whole text is one stretch of merges."""
    values = json.loads((made("llama") / "tokenizer.json").read_text()) | {"pre_tokenizer": None}
    old = extended_folder(made("llama"), values, tmp_path / "old")
    data = shards(tmp_path / "field", old, FIELD)
    extended = extend(spelling_of(old), ranked_words(old, data), 40)
    assert {word.shown.strip() for word in extended.words} == set(NEW)
    new = extended_folder(old, extended.values, tmp_path / "new")
    saved = Measure(old, new, extended.first).corpus(data, 10**9)
    assert saved.left_out == 0
    assert saved.after < saved.before * 0.8
    before, after = (Encoder(folder).encode(documents()) for folder in (old, new))
    np.testing.assert_array_equal(before.tokens, after.tokens)
    # A longer word that begins with a new one is not the new one.
    text = "a dolomitess adolomite dolomite1 dolomite_"
    ids = Encoder(new).encode([text]).tokens
    assert (ids >= extended.first).sum() == 1


def test_added_tokens_keep_their_ids(made):
    """They follow the model's own vocabulary, and must not be pushed on by new words."""
    for kind in KINDS:
        backend = load_backend(made(kind))
        backend.add_tokens([AddedToken("qqq"), AddedToken("zzz", single_word=True)])
        spelling = Spelling(json.loads(backend.to_str()))
        new = [Candidate(*spell(spelling, "trilobite"), (5, 6), 9)]
        again = Tokenizer.from_str(json.dumps(extend(spelling, new, 1).values))
        for token, number in backend.get_vocab(with_added_tokens=True).items():
            assert again.token_to_id(token) == number
            assert again.id_to_token(number) == backend.id_to_token(number)
        assert backend.encode("a qqq b").ids == again.encode("a qqq b").ids


def spell(spelling, word):
    match spelling.kind:
        case "wordpiece":
            return word, word
        case "bytes":
            return f"Ġ{word}", f" {word}"
    return f"▁{word}", f" {word}"


def test_other_models_are_refused():
    backend = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, "<unk>"))
    with pytest.raises(DataError, match="model is WordLevel"):
        extend(Spelling(json.loads(backend.to_str())), [], 1)


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=8),
    text=st.text("abc", max_size=8),
)
def test_the_pattern_finds_the_longest_word(words, text):
    import re

    found = re.match(_either(words), text)
    longest = max((w for w in words if text.startswith(w)), key=len, default=None)
    assert (found.group() if found else None) == longest


def test_shards_without_word_starts_are_refused(made, tmp_path):
    data = shards(tmp_path / "field", made("bpe"), FIELD)
    bare = replace(data, manifest=data.manifest.model_copy(update={"annotations": {}}))
    with pytest.raises(DataError, match="no word starts"):
        list(stretches(bare, 100))
