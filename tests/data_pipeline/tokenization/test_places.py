"""Annotations without the library's offsets are those with them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.cleaning import normalise
from data_pipeline.tokenization import Encoder, starts

PIECES = (
    *"aBZé中文。！”\"')(?!.,;…\t`½ßİ가각가ก็अ",
    *(". ", "! A", "\n\n", "\n", "  ", "Dr. ", "U.S. ", "e.g. A", "Fig. 1", "No. x", "Prof. "),
    *("e\u0301", "\u0301", "\u3099", "\u00ad", "\u200b", "\u200f", "\ufffd", "\u1fef", "\u037e"),
    *("##", "[CLS]", "<|end|>", "👨\u200d👩", "\u00a0", "\u2003", "؟ ا", "। क", "一个词。下一句"),
)
TEXTS = st.lists(st.lists(st.sampled_from(PIECES), max_size=25).map("".join), max_size=6)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    made = {}
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bert = pre_tokenizers.BertPreTokenizer()
    for name, backend, trainer in (
        ("wordpiece", models.WordPiece(unk_token="[UNK]"), trainers.WordPieceTrainer),
        ("cased", models.WordPiece(unk_token="[UNK]"), trainers.WordPieceTrainer),
        ("bytes", models.BPE(), trainers.BpeTrainer),
        ("few bytes", models.BPE(), trainers.BpeTrainer),
    ):
        tokenizer = Tokenizer(backend)
        special = ["<|end|>"]
        more = {}
        if isinstance(backend, models.BPE):
            tokenizer.pre_tokenizer = level
            more = {"initial_alphabet": level.alphabet() if name == "bytes" else []}
        else:
            tokenizer.normalizer = normalizers.BertNormalizer(lowercase=name == "wordpiece")
            tokenizer.pre_tokenizer = bert
            special = ["[UNK]", "[CLS]"]
        trained = trainer(vocab_size=300, special_tokens=special, show_progress=False, **more)
        tokenizer.train_from_iterator(["".join(PIECES[:20]) + " word words. A é 中文"] * 3, trained)
        made[name] = tmp_path_factory.mktemp("tokenizer")
        tokenizer.save(str(made[name] / "tokenizer.json"))
    return made


@pytest.mark.parametrize("name", ["wordpiece", "cased", "bytes", "few bytes"])
def test_they_are_those_that_offsets_give(folders, name):
    quick, slow = Encoder(folders[name]), Encoder(folders[name])
    assert quick._bert or quick._bytes
    slow._bert = slow._bytes = None

    @settings(max_examples=150, deadline=None)
    @given(TEXTS)
    def same(texts):
        texts = [normalise(text) for text in texts]
        one, two = quick.encode(texts), slow.encode(texts)
        np.testing.assert_array_equal(one.tokens, two.tokens)
        np.testing.assert_array_equal(one.lengths, two.lengths)
        np.testing.assert_array_equal(one.annotations, two.annotations)

    same()


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_sentences_are_those_of_the_regular_expression(texts):
    over = starts.characters(texts)
    expected = set(over.opening.tolist())
    for start, text in zip(over.starts.tolist(), texts, strict=True):
        for found in starts._SENTENCE_ENDS.finditer(text):
            if starts._opens(text, found.start(), found.end()):
                expected.add(start + found.end())
    assert starts.sentence_places(over).tolist() == sorted(expected)
