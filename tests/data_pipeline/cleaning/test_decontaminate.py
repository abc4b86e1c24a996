"""What must not be trained on is found wherever it stands, and nothing else is."""

import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from configs.errors import DataError
from data_pipeline.cleaning import SHORTEST_CONTAINED, Decontamination, Evaluation, Guard, Hit
from data_pipeline.cleaning.decontaminate import refuse_contaminated

LONG = "".join(f"{n} bottles, " for n in range(20))
WORDS = ("red", "green", "blue", "Sky", "sea")
HAN = "山水火木金土日月"


def evaluation(*texts, ngram=13):
    return Evaluation.of(((f"row {n}", text) for n, text in enumerate(texts)), ngram)


def rule(found):
    return found and found.rule


def squeezed(text):
    return "".join(filter(str.isalnum, text.casefold()))


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text("ab \u7403", min_size=50, max_size=120), max_size=4),
    documents=st.lists(st.text("ab \u7403", max_size=200), min_size=1, max_size=3),
    inserted=st.integers(0, 3),
)
def test_whole_texts_are_found_as_searching_for_each_would(texts, documents, inserted):
    if inserted < len(texts):
        documents[0] = documents[0][:20] + texts[inserted] + documents[0][20:]
    wanted = [text for text in map(squeezed, texts) if text]
    found = evaluation(*texts, ngram=None).find(documents)
    for document, hit in zip(map(squeezed, documents), found, strict=True):
        contained = any(t in document for t in wanted if len(t) >= SHORTEST_CONTAINED)
        expected = "equal" if document in wanted else "contained" if contained else None
        assert rule(hit) == expected


def units(text):
    """Words and single Chinese characters, and what each weighs; by plain Python."""
    found = []
    for word in "".join(c.lower() if c.isalnum() else " " for c in text).split():
        run = ""
        for character in word:
            if character in HAN:
                found += [(run, 3)] * bool(run) + [(character, 2)]
                run = ""
            else:
                run += character
        found += [(run, 3)] * bool(run)
    return found


def grams(text, ngram):
    """Every shortest run of words that weighs enough."""
    found, words = set(), units(text)
    for begin in range(len(words)):
        weight = 0
        for end in range(begin, len(words)):
            weight += words[end][1]
            if weight >= 3 * ngram:
                found.add("".join(word for word, _ in words[begin : end + 1]))
                break
    return found


MIXED = st.lists(st.sampled_from([*WORDS, *HAN]), max_size=30).map(" ".join)


@settings(max_examples=80, deadline=None)
@given(st.lists(MIXED, max_size=3), st.lists(MIXED, min_size=1, max_size=4), st.integers(5, 8))
def test_shared_ngrams_are_what_comparing_all_of_them_finds(texts, documents, ngram):
    forbidden = set().union(*(grams(text, ngram) for text in texts))
    own = {squeezed(text) for text in texts}
    for document, hit in zip(
        documents, evaluation(*texts, ngram=ngram).find(documents), strict=True
    ):
        shared = bool(grams(document, ngram) & forbidden)
        equal = squeezed(document) in own and squeezed(document)
        assert (rule(hit) in {"ngram", "contained"}) == (shared and not equal)


def test_case_space_and_signs_do_not_count():
    loud = "Before. " + LONG.upper().replace(" ", "\n").replace(",", ";") + "After"
    other = LONG.replace("17 bottles", "seventeen bottles")
    found = evaluation(LONG, ngram=None).find([loud, other, LONG[:150]])
    assert list(map(rule, found)) == ["contained", None, None]
    assert rule(evaluation(LONG).find([other])[0]) == "ngram"


@pytest.mark.parametrize("before", [(1 << 16) - 70, (1 << 16) - 1, (1 << 17) + 5])
def test_a_text_across_the_border_of_two_stretches_is_found(before):
    document = "x" * before + LONG
    cut = document[:-8]
    found = evaluation(LONG, ngram=None).find([document, cut, document])
    assert list(map(rule, found)) == ["contained", None, "contained"]
    words = "y " * (before // 2) + LONG
    found = evaluation(LONG[26:], ngram=13).find([words[:-13], words[:-60]])
    assert list(map(rule, found)) == ["ngram", "ngram"]


def test_nothing_is_found_over_the_border_of_two_documents():
    half = len(LONG) // 2
    parts = [LONG[:half], LONG[half:]]
    assert evaluation(LONG, ngram=None).find(parts) == [None, None]
    words = LONG.split()
    parts = [" ".join(words[:20]), " ".join(words[20:])]
    assert evaluation(" ".join(words[14:27])).find(parts) == [None, None]


def test_short_texts_are_found_only_as_whole_documents():
    found = evaluation("Short text.", "", "...", "短文").find(
        ["short  text", "A short text.", "!?", "短 文。", "这是短文"]
    )
    assert list(map(rule, found)) == ["equal", None, None, "equal", None]


def test_twenty_chinese_characters_are_as_much_as_thirteen_words():
    text = "自然语言处理是计算机科学领域与人工智能领域中的一个重要方向"
    quoted = f"有人说过：“{text[3:23]}”，对吗？"
    less = f"有人说过：“{text[3:22]}”，对吗？"
    assert list(map(rule, evaluation(text).find([quoted, less]))) == ["ngram", None]
    mixed = "BERT 模型 uses 十二 layers of attention and 七千 steps in one day"
    assert rule(evaluation(f"前言 {mixed} 更多").find([f"other {mixed} words"])[0]) == "ngram"


def test_the_row_is_named_and_the_first_rule_that_finds_it():
    found = evaluation("one", LONG).find([f"x {LONG}", "ONE!"])
    assert found == [Hit("contained", "row 1"), Hit("equal", "row 0")]


def test_combining_marks_and_joiners_part_no_words():
    word = "नमस्ते"
    text = " ".join([word] * 6)
    assert evaluation(text, ngram=7).shared.hashes.size == 0
    assert evaluation(text, ngram=6).shared.hashes.size == 1
    assert rule(evaluation("می\u200cخواهم").find(["میخواهم"])[0]) == "equal"


def test_very_long_words_are_handled():
    word = "a1b2" * 30_000
    found = evaluation(word, ngram=5).find([word, "x" + word[1000:3000], "c" * 100_000])
    assert list(map(rule, found)) == ["equal", None, None]


def test_a_guard_finds_what_the_evaluation_finds(tmp_path):
    made = evaluation("é" * 70, LONG, "短文")
    made.save(tmp_path / "guard")
    guard = pickle.loads(pickle.dumps(Guard(tmp_path / "guard")))
    texts = ["É" * 70, f"a {LONG}", "短文", "none"]
    assert guard.find(texts) == made.find(texts)
    evaluation("none").save(tmp_path / "guard")
    assert list(map(rule, guard.find(texts))) == [None, None, None, "equal"]
    evaluation().save(tmp_path / "guard")
    assert guard.find(texts) == [None] * 4


def test_it_is_built_from_files_whose_rows_are_named(tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps({"text": "first"}) + "\n" + json.dumps({"text": LONG}) + "\n")
    config = Decontamination(against=[str(path)])
    (hit,) = config.build(Path).find([LONG])
    assert hit is not None
    assert hit.row == f"{path}:2"
    (hit,) = Decontamination(against=[str(tmp_path)]).build(Path).find([LONG])
    assert hit is not None
    assert hit.row == f"{tmp_path}:test.jsonl:2"
    before = config.digest(Path)
    path.write_text(json.dumps({"text": "first"}) + "\n")
    assert config.digest(Path) != before
    path.write_text('{"body": 1}\n')
    with pytest.raises(DataError, match=r"test\.jsonl:1.*text"):
        config.build(Path)


def test_strict_mode_names_documents_and_rows():
    refuse_contaminated("general", (), 0)
    found = [(f"doc{n}", Hit("ngram", f"test.jsonl:{n}")) for n in range(3)]
    with pytest.raises(DataError, match=r"general: .*doc0 \(ngram: test\.jsonl:0\); doc1 .*strict"):
        refuse_contaminated("general", found, 3)
    with pytest.raises(DataError, match="and 7 more"):
        refuse_contaminated("general", found, 12)


@pytest.mark.parametrize("values", [{"against": []}, {"against": ["x"], "ngram": 2}, {}])
def test_settings_that_make_no_sense_are_refused(values):
    with pytest.raises(ValidationError):
        Decontamination(**values)
