"""Tokenizers: which ids, where words start, and whether it is the same tokenizer."""

import json
import random
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from configs.errors import DataError, RecipeError
from data_pipeline.cleaning import normalise
from data_pipeline.example import SENTENCE_START, WORD_START
from data_pipeline.parallel import Workers
from data_pipeline.tokenization import (
    Encoder,
    PretrainedTokenizer,
    WordPieceTokenizer,
    tokenizer_record,
    tokenizer_sha256,
)
from data_pipeline.tokenization import encode as encode_module
from data_pipeline.tokenization.encode import LONGEST_PIECE

WORDS = (
    "the model of a layer trains wörld tensors, gradients and 3.14 parameters "
    "(see: loss_scale) 世界"
)

CJK = Regex("[\u4e00-\u9fff]")


def corpus(count=200):
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS.split(), k=30)) + "." for _ in range(count)]


def wordpiece(folder):
    WordPieceTokenizer(vocabulary_size=140, corpora=["x"]).build(
        folder, Path, lambda names: iter(corpus())
    )


def save(folder, backend, **roles):
    folder.mkdir(parents=True)
    backend.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **roles}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def byte_level(folder, *, prefix=False):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        initial_alphabet=alphabet,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    backend.train_from_iterator(corpus(), trainer)
    save(folder, backend, eos_token="<|endoftext|>", bos_token="<|endoftext|>")


def metaspace(folder):
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    special = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=120, unk_token="<unk>", special_tokens=special, show_progress=False
    )
    backend.train_from_iterator(corpus(), trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    roles = {"pad": "<pad>", "bos": "<s>", "eos": "</s>", "unk": "<unk>"}
    mask = {"content": "<mask>", "lstrip": True, "__type": "AddedToken"}
    save(folder, backend, mask_token=mask, **{f"{r}_token": t for r, t in roles.items()})


def unsplit(folder):
    """Llama's kind: no pre-tokenizer, spaces are written by the normaliser, bytes as a fallback."""
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<unk>", "<s>", "</s>", *fallback], show_progress=False
    )
    backend.train_from_iterator(corpus(40), trainer)
    backend = Tokenizer.from_str(backend.to_str())
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    save(folder, backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


KINDS = {
    "wordpiece": wordpiece,
    "byte-level": byte_level,
    "byte-level with prefix": lambda folder: byte_level(folder, prefix=True),
    "metaspace": metaspace,
    "unsplit": unsplit,
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    @lru_cache
    def make(kind):
        folder = tmp_path_factory.mktemp("tokenizers") / kind.replace(" ", "-")
        KINDS[kind](folder)
        return folder

    return make


@pytest.fixture(params=KINDS)
def folder(request, folders):
    return folders(request.param)


def plain(folder):
    """The tokenizer as it is, but for its post-processor: what offsets are compared with."""
    values = json.loads((folder / "tokenizer.json").read_text())
    backend = Tokenizer.from_str(json.dumps(values | {"post_processor": None}))
    backend.encode_special_tokens = True
    return backend


def words_of(text):
    """(first, end) of each word: BERT's own cutting, and each CJK character by itself."""
    isolating = pre_tokenizers.Sequence(
        [
            pre_tokenizers.BertPreTokenizer(),
            pre_tokenizers.Split(pattern=CJK, behavior="isolated"),
        ]
    )
    return [span for _, span in isolating.pre_tokenize_str(text)]


def expected_starts(text, encoding):
    """By brute force, word by word; space between words that is more than a blank is a word too."""
    words = words_of(text)
    places = [(first - (first > 0 and text[first - 1] == " "), first) for first, _ in words]
    ends = [0, *[end for _, end in words]]
    for end, (mark, _) in zip(ends, [*places, (len(text), len(text))], strict=True):
        if end < mark:
            places.append((end, end))
    offsets = encoding.offsets
    starts = [False] * len(offsets)
    for mark, first in places:
        token = next((t for t, (begin, _) in enumerate(offsets) if begin >= mark), None)
        if token is None:
            continue
        earlier = [end for _, end in offsets[:token]]
        if max(earlier, default=0) <= min(first, offsets[token][0]):
            starts[token] = True
    return starts


TEXTS = st.text(st.sampled_from("ab the.,(_1 世界é\n\t☃-"), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXTS.map(normalise).filter(bool), min_size=1, max_size=4))
@example(texts=["the model, of 世界  (a)\n\n  wörld 3.14", "loss_scale  ☃☃ x"])
def test_word_starts_are_exact(folders, texts):
    for kind in KINDS:
        folder = folders(kind)
        encoded = Encoder(folder).encode(texts)
        encodings = plain(folder).encode_batch(texts, add_special_tokens=False)
        assert encoded.tokens.tolist() == [i for e in encodings for i in e.ids]
        assert encoded.lengths.tolist() == [len(e) for e in encodings]
        found = (encoded.annotations & WORD_START).astype(bool).tolist()
        if kind == "wordpiece":
            tokens = [token for e in encodings for token in e.tokens]
            assert found == [not token.startswith("##") for token in tokens]
        else:
            wanted = [
                s for t, e in zip(texts, encodings, strict=True) for s in expected_starts(t, e)
            ]
            assert found == wanted, (kind, texts, [e.tokens for e in encodings])


@settings(max_examples=60, deadline=None)
@given(TEXTS.map(normalise).filter(bool))
def test_wordpieces_own_mark_agrees_with_the_rule_for_all(folders, text):
    encoding = plain(folders("wordpiece")).encode(text, add_special_tokens=False)
    own = [not token.startswith("##") for token in encoding.tokens]
    assert own == expected_starts(text, encoding)


def test_words_by_hand(folder):
    text = "model, of 世界 (layer_scale)"
    encoded = Encoder(folder).encode([text])
    offsets = plain(folder).encode(text, add_special_tokens=False).offsets
    starts = np.flatnonzero(encoded.annotations & WORD_START).tolist()
    groups = [
        text[offsets[a][0] : offsets[b - 1][1]].strip()
        for a, b in zip(starts, [*starts[1:], len(offsets)], strict=True)
    ]
    assert groups[0] == "model"
    assert "".join(groups) == text.replace(" ", "")
    # Only a tokenizer that writes over the border of two words may join them.
    if folder.name != "unsplit":
        assert [g for g in groups if g] in (
            ["model", ",", "of", "世", "界", "(", "layer", "_", "scale", ")"],
            ["model", ",", "of", "世界", "(", "layer", "_", "scale", ")"],
        )


def test_sentence_starts(folder):
    texts = ['The model of 3.14 layers. "A tensor trains!" (see) a.b\n\nthe loss. the rest', "The"]
    encoded = Encoder(folder).encode(texts)
    encodings = plain(folder).encode_batch(texts, add_special_tokens=False)
    sentences = []
    for part, encoding, text in zip(
        np.split(encoded.annotations, np.cumsum(encoded.lengths)[:-1]),
        encodings,
        texts,
        strict=True,
    ):
        assert ((part & SENTENCE_START == 0) | (part & WORD_START != 0)).all()
        at = np.flatnonzero(part & SENTENCE_START)
        sentences.append([text[encoding.offsets[i][0] :].strip()[:5] for i in at])
    assert sentences == [["The m", '"A te', "(see)", "the l"], ["The"]]


def test_what_looks_special_in_a_text_is_text(folder):
    record = tokenizer_record(folder)
    tokens = ["[MASK]", "[CLS]", "<mask>", "</s>", "<|endoftext|>"]
    encoded = Encoder(folder).encode([f"the {token} model{token}" for token in tokens])
    special = set(record.special.values()) - {record.special.get("unk")}
    assert special
    assert special.isdisjoint(encoded.tokens.tolist())


def test_texts_without_tokens_have_no_length(folder):
    encoded = Encoder(folder).encode(["", "the", ""])
    assert (encoded.lengths > 0).tolist() == [False, True, False]
    assert len(encoded.tokens) == len(encoded.annotations) == encoded.lengths.sum()
    nothing = Encoder(folder).encode([])
    assert len(nothing.lengths) == len(nothing.tokens) == 0


@pytest.mark.parametrize("kind", ["wordpiece", "byte-level"])
def test_long_texts_are_cut_without_loss(folders, monkeypatch, kind):
    assert LONGEST_PIECE > 1000
    text = "\n".join(corpus(30)) + " the" * 40
    whole = Encoder(folders(kind)).encode([text, "the model"])
    monkeypatch.setattr(encode_module, "LONGEST_PIECE", 333)
    monkeypatch.setattr(encode_module, "BATCH", 1000)
    pieces = Encoder(folders(kind)).encode([text, "the model"])
    if kind == "wordpiece":
        np.testing.assert_array_equal(pieces.tokens, whole.tokens)
        np.testing.assert_array_equal(pieces.lengths, whole.lengths)
    else:
        backend = plain(folders(kind))
        first = pieces.tokens[: pieces.lengths[0]].tolist()
        assert backend.decode(first, skip_special_tokens=False) == text
    endless = Encoder(folders(kind)).encode(["a" * 1000])
    assert endless.lengths[0] >= 4


EXPECTED = {
    "wordpiece": ({"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}, [2], [3]),
    "byte-level": ({"bos": 0, "eos": 0}, [], [0]),
    "metaspace": ({"pad": 0, "bos": 1, "eos": 2, "unk": 3, "mask": 4}, [1], [2]),
    "unsplit": ({"unk": 0, "bos": 1, "eos": 2}, [1], []),
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_special_tokens_and_what_stands_around_a_document(folders, kind):
    record = tokenizer_record(folders(kind))
    assert (record.special, record.prefix, record.suffix) == EXPECTED[kind]
    ids = plain(folders(kind)).get_vocab().values()
    assert record.vocabulary_size == max(ids) + 1


def test_a_role_that_the_vocabulary_lacks_is_an_error(tmp_path):
    byte_level(tmp_path / "t")
    (tmp_path / "t" / "tokenizer_config.json").write_text('{"pad_token": "[PAD]"}')
    with pytest.raises(DataError, match=r"pad token is '\[PAD\]'"):
        tokenizer_record(tmp_path / "t")


@pytest.mark.parametrize("kind", ["wordpiece", "byte-level", "metaspace", "unsplit"])
def test_transformers_reads_it_and_saves_the_same_tokenizer(folders, tmp_path, kind):
    from transformers import AutoTokenizer

    folder = folders(kind)
    loaded = AutoTokenizer.from_pretrained(str(folder))
    assert tokenizer_sha256(loaded.backend_tokenizer) == tokenizer_sha256(folder)
    PretrainedTokenizer(location=str(folder)).build(tmp_path / "saved", Path, iter)
    assert tokenizer_record(tmp_path / "saved") == tokenizer_record(folder)
    text = "the model of wörld tensors"
    assert (
        loaded(text, add_special_tokens=False)["input_ids"]
        == Encoder(tmp_path / "saved").encode([text]).tokens.tolist()
    )


def test_a_model_type_beside_it_changes_nothing(folders, tmp_path):
    """An export holds a config.json that names a model with a tokenizer class of its own."""
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(str(folders("wordpiece")))
    loaded.save_pretrained(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert", "vocab_size": 140}')
    again = AutoTokenizer.from_pretrained(str(tmp_path))
    assert tokenizer_sha256(again.backend_tokenizer) == tokenizer_sha256(folders("wordpiece"))
    assert again.mask_token_id == 4
    assert again("the model")["input_ids"][0] == 2


def test_digest_tells_tokenizers_apart(folders, tmp_path):
    assert len({tokenizer_sha256(folders(kind)) for kind in KINDS}) == len(KINDS)
    values = json.loads((folders("wordpiece") / "tokenizer.json").read_text())
    values["truncation"] = {
        "direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    assert tokenizer_sha256(tmp_path) == tokenizer_sha256(folders("wordpiece"))
    assert Encoder(tmp_path).encode(["the model " * 20]).lengths[0] > 8
    values["normalizer"]["lowercase"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    assert tokenizer_sha256(tmp_path) != tokenizer_sha256(folders("wordpiece"))


def trained_digest(seed):
    """In another process: the hash tables of the library are keyed anew in each."""
    import tempfile

    del seed
    with tempfile.TemporaryDirectory() as folder:
        wordpiece(Path(folder))
        return tokenizer_sha256(Path(folder)), (Path(folder) / "tokenizer.json").read_text()


@pytest.mark.processes
def test_training_is_deterministic(folders):
    with Workers(2) as workers:
        found = set(workers.map(trained_digest, range(2)))
    found.add(trained_digest(0))
    assert len(found) == 1
    assert found.pop()[0] == tokenizer_sha256(folders("wordpiece"))


def test_a_trained_vocabulary_has_the_size_and_letters_asked_for(tmp_path):
    def build(name, **values):
        config = WordPieceTokenizer(corpora=["x"], **values)
        config.build(tmp_path / name, Path, lambda names: iter([*corpus(), "Größe É €"]))
        return plain(tmp_path / name)

    full = build("full", vocabulary_size=100)
    assert full.get_vocab_size() == 100
    assert sorted(full.get_vocab().values()) == list(range(100))
    assert full.encode("grosse e").tokens == full.encode("GROSSE É").tokens
    assert "[UNK]" not in full.encode("Größe É €").tokens
    cased = build("cased", vocabulary_size=110, lower_case=False)
    assert "G" in cased.get_vocab()
    few = build("few", vocabulary_size=60, alphabet_size=12)
    assert len([t for t in few.get_vocab() if len(t) == 1]) == 12
    assert "[UNK]" in few.encode("€").tokens


def test_chinese_characters_take_one_id_each(tmp_path):
    """Each is a word by itself: as the rest of a word it could never stand anywhere."""
    characters = "".join(map(chr, range(0x4E00, 0x4E00 + 200)))
    config = WordPieceTokenizer(vocabulary_size=212, corpora=["x"])
    config.build(tmp_path / "t", Path, lambda names: iter([f"{characters} ab", "ab か"]))
    backend = plain(tmp_path / "t")
    assert {t for t in backend.get_vocab() if t.startswith("##")} == {"##a", "##b", "##か"}
    assert backend.encode(f"a{characters}b", add_special_tokens=False).tokens == [
        *("a", *characters, "b")
    ]


def test_a_vocabulary_too_small_for_its_alphabet_is_refused(tmp_path):
    config = WordPieceTokenizer(vocabulary_size=20, corpora=["x"])
    with pytest.raises(RecipeError, match=r"vocabulary_size: 20, but .*alphabet_size"):
        config.build(tmp_path / "t", Path, lambda names: iter(corpus()))
    assert not (tmp_path / "t").exists()


def test_nothing_to_train_on_is_refused(tmp_path):
    config = WordPieceTokenizer(vocabulary_size=20, corpora=["x"])
    with pytest.raises(DataError, match="x hold no text"):
        config.build(tmp_path / "t", Path, lambda names: iter([]))


@pytest.mark.parametrize("content", [None, "{", "[]", '{"version": "1.0"}', '{"model": 1}'])
def test_a_folder_that_is_no_tokenizer_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(DataError, match=str(tmp_path)):
        tokenizer_sha256(tmp_path)


def test_a_location_that_holds_no_tokenizer_is_named(tmp_path):
    with pytest.raises(DataError, match=f"tokenizer {tmp_path}: cannot be loaded"):
        PretrainedTokenizer(location=str(tmp_path)).build(tmp_path / "t", Path, iter)
    with pytest.raises(RecipeError, match="revision"):
        PretrainedTokenizer(location=str(tmp_path), revision="main").build(tmp_path, Path, iter)
