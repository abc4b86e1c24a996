"""Where sentences start, and Chinese words."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from configs.errors import DataError
from configs.stage import StageContext
from data_pipeline.example import WORD_START
from data_pipeline.prepare import PrepareStage
from data_pipeline.shards import ShardedDataset
from data_pipeline.tokenization import Encoder, WordPieceTokenizer, tokenizer_record
from data_pipeline.tokenization import chinese as chinese_module
from data_pipeline.tokenization.chinese import cutting, segmenter
from data_pipeline.tokenization.starts import characters, sentence_starts, word_starts
from tests.data_pipeline.tokenization.kinds import KINDS, config_of, documents, texts

needs_rjieba = pytest.mark.skipif(
    importlib.util.find_spec("rjieba") is None, reason="rjieba is not installed"
)


def sentences(text):
    first = np.flatnonzero(sentence_starts(characters([text])).first).tolist()
    return [text[a:b].strip() for a, b in zip(first, [*first[1:], len(text)], strict=True)]


SPLIT = [
    ["A model trains.", "It stops!", "Why?", "Nobody knows…", "The end"],
    ["What?!", "Yes."],
    ['He said "stop."', "She did.", "(They left.)", "Then rain came."],
    ["Dr. Smith met Prof. J. K. Rowling and Mrs. May of the U.S. Senate.", "They spoke."],
    ["See Fig. 3, Eq. 2, e.g. Table 1, i.e. Section 2.", "Smith et al. 2019 did so."],
    ["Nothing came of Smith et al.", "The others left."],
    ["He said no.", "No.", "I won't go.", "See No. 5.", "It cost 3.50 dollars."],
    ["version 3.14.2 of a.b.c runs", "next"],
    ["我们来了。", "他说：“好！！”", "真的吗？", "是的"],
    ["价格是3.5元。", "Then English. yes, small letters go on.", "完了！", "Next one."],
    ["यह वाक्य है।", "दूसरा वाक्य।"],
    ["Title without a stop", "a paragraph after it"],
]


@pytest.mark.parametrize("parts", SPLIT)
def test_sentences(parts):
    blank = "" if "我们" in parts[0] else " "
    if parts[0].startswith(("version", "Title")):
        blank = "\n\n"
    assert sentences(blank.join(parts)) == parts


def test_line_ends_alone_start_no_sentence():
    assert sentences("first line\nsecond Line\n- third") == ["first line\nsecond Line\n- third"]
    assert sentences("First.\nSecond.\n \n third") == ["First.", "Second.", "third"]


def by_hand(text, cut):
    """Words by the rules for all, but each stretch of CJK characters cut by itself."""
    plain = word_starts(characters([text])).first.copy()
    is_han = [("\u4e00" <= c <= "\u9fff") or ("\u3400" <= c <= "\u4dbf") for c in text]
    at = 0
    while at < len(text):
        if not is_han[at]:
            at += 1
            continue
        stop = at
        while stop < len(text) and is_han[stop]:
            stop += 1
        plain[at:stop] = False
        for word in cut(text[at:stop]):
            plain[at] = True
            at += len(word)
    return plain


STRETCHES = st.text(st.sampled_from("北京大学我们自然语言处理的a1 ,。\n㐀"), max_size=30)


@needs_rjieba
@settings(max_examples=80, deadline=None)
@given(parts=st.lists(STRETCHES, min_size=1, max_size=4))
@example(parts=["我们在北京大学学习。GPT模型", "北京", "", "大学 abc"])
def test_chinese_words_are_cut_stretch_by_stretch(parts):
    cut = segmenter()
    over = characters(parts)
    found = word_starts(over, cut).first
    assert found.tolist() == np.concatenate([by_hand(text, cut) for text in parts]).tolist()


def groups(folder, text):
    """The words of a text as whole-word masking sees them."""
    encoder = Encoder(folder)
    encoded = encoder.encode([text])
    backend = encoder._backend
    backend.encode_special_tokens = True
    offsets = backend.encode(text, add_special_tokens=False).offsets
    starts = np.flatnonzero(encoded.annotations & WORD_START).tolist()
    stops = [*starts[1:], len(offsets)]
    return [
        text[offsets[a][0] : offsets[b - 1][1]].strip() for a, b in zip(starts, stops, strict=True)
    ]


@needs_rjieba
@pytest.mark.parametrize("kind", KINDS)
def test_chinese_words_of_every_tokenizer(tmp_path, kind):
    text = "model 我们在北京大学学习自然语言处理。数据, 3"
    config = config_of(kind, tmp_path)
    config.model_copy(update={"chinese_words": "jieba"}).build(tmp_path / "t", Path, texts)
    config.build(tmp_path / "plain", Path, texts)
    words = groups(tmp_path / "t", text)
    assert "".join(words) == text.replace(" ", "")
    if kind in {"wordpiece", "bpe", "roberta", "pretrained"}:
        cut = ["我们", "在", "北京大学", "学习", "自然语言", "处理", "。", "数据"]
        if kind in {"wordpiece", "pretrained"}:
            assert words == ["model", *cut, ",", "3"]
    found, plain = (Encoder(tmp_path / name).encode([text]) for name in ("t", "plain"))
    assert found.tokens.tolist() == plain.tokens.tolist()
    fewer = (found.annotations & WORD_START).sum() < (plain.annotations & WORD_START).sum()
    # A tokenizer that writes over the borders of characters has had fewer words before.
    assert fewer or kind not in {"wordpiece", "pretrained"}


@needs_rjieba
def test_the_manifest_tells_how_words_were_found(tmp_path):
    config = WordPieceTokenizer(vocabulary_size=220, corpora=["x"], chinese_words="jieba")
    config.build(tmp_path, Path, texts)
    assert tokenizer_record(tmp_path).words.startswith("rjieba ")
    note = tmp_path / "words.json"
    note.write_text(json.dumps({"chinese_words": "rjieba 0.0.1"}))
    with pytest.raises(DataError, match=r"cut by rjieba 0\.0\.1, but rjieba"):
        cutting(tmp_path)
    note.write_text("{")
    with pytest.raises(DataError, match=r"words\.json: damaged"):
        Encoder(tmp_path)


def test_without_rjieba_jieba_is_refused(tmp_path, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(chinese_module, "import_module", missing)
    config = WordPieceTokenizer(vocabulary_size=220, corpora=["x"], chinese_words="jieba")
    with pytest.raises(DataError, match=r"pip install 'onward\[chinese\]'"):
        config.build(tmp_path / "t", Path, texts)
    assert not (tmp_path / "t").exists()


@needs_rjieba
def test_shards_with_other_words_have_another_content(tmp_path):
    """The same ids under other words are masked otherwise: no plan or cursor of one fits both."""
    place = tmp_path / "zh.jsonl"
    lines = (json.dumps({"text": text}) + "\n" for text in documents(10))
    place.write_text("".join(lines), encoding="utf-8")
    made = {}
    for words in ("characters", "jieba"):
        stage = PrepareStage.model_validate(
            {
                "tokenizer": {
                    "name": "wordpiece",
                    "vocabulary_size": 220,
                    "corpora": ["zh"],
                    "chinese_words": words,
                },
                "corpora": {"zh": {"sources": [{"name": "jsonl", "path": str(place)}]}},
            }
        )
        folder = tmp_path / words
        folder.mkdir()
        context = StageContext(words, folder, 0, words, {})
        stage.check(context)
        stage.run(context)
        made[words] = ShardedDataset.open(folder / "corpora" / "zh" / "train")
    plain, cut = made["characters"], made["jieba"]
    np.testing.assert_array_equal(plain.shard_tokens(0), cut.shard_tokens(0))
    assert (plain.shard_annotations(0) != cut.shard_annotations(0)).any()
    assert plain.content != cut.content
    assert cut.manifest.tokenizer.words.startswith("rjieba ")
