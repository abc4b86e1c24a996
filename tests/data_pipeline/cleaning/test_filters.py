"""Filters: each rule refuses what it is about, says so, and lets ordinary text pass."""

import builtins
from collections import Counter

import pytest
from pydantic import TypeAdapter, ValidationError

from configs.errors import RecipeError
from data_pipeline.cleaning.filters import (
    AnyFilter,
    C4Quality,
    Contains,
    Filters,
    FineWebQuality,
    GopherQuality,
    GopherRepetition,
    LanguageFilter,
    Length,
    Refusal,
)
from data_pipeline.cleaning.filters.language import excerpt

ENGLISH = (
    "The river rises in the northern hills and flows to the sea. It is one of the longest in the "
    "country, and many towns have grown along its banks. Fishermen set out early with their "
    "boats, while farmers bring fruit to the market. In spring the water covers the low fields. "
    "People say that the old bridge was built by a king who never crossed it."
)
CHINESE = (
    "这条河发源于北方的山区，最后流入大海。它是全国最长的河流之一，沿岸有许多城镇。"
    "渔民们清晨就驾着小船出发，而农民则把水果带到市场上去卖。春天的时候，河水会淹没低处的田地。"
    "人们说，那座古老的桥是由一位从来没有走过它的国王建造的。在他的时代，也有很多人在这里生活和工作。"
)
MIXED = ENGLISH + "\n" + CHINESE


@pytest.fixture
def datatrove():
    return pytest.importorskip("datatrove")


def judged(config, text):
    answer = config.build(Counter())(text)
    return answer.reason if isinstance(answer, Refusal) else "stays"


def read(values):
    return TypeAdapter(AnyFilter).validate_python(values)


RULES = ["gopher_quality", "gopher_repetition", "c4_quality", "fineweb_quality"]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(("language", "text"), [("en", ENGLISH), ("zh", CHINESE), ("zh", MIXED)])
@pytest.mark.usefixtures("datatrove")
def test_ordinary_text_passes_every_rule(name, language, text):
    config = read({"name": name, "language": language})
    config.check()
    assert config.build(Counter())(text) == text


BULLETS = "\n".join("- another ending of some line that belongs with others" for _ in range(30))


@pytest.mark.parametrize(
    ("values", "text", "reason"),
    [
        ({}, "Too short.", "gopher_short_doc"),
        ({"max_doc_words": 60}, ENGLISH, "gopher_long_doc"),
        ({}, "of a to " * 40, "gopher_below_avg_threshold"),
        ({"max_avg_word_length": 4}, ENGLISH, "gopher_above_avg_threshold"),
        ({}, ENGLISH + " #x" * 20, "gopher_too_many_hashes"),
        ({}, ENGLISH.replace(" the", " … the") + "… " * 9, "gopher_too_many_ellipsis"),
        ({}, BULLETS, "gopher_too_many_bullets"),
        ({}, ENGLISH + " 12345" * 30, "gopher_below_alpha_threshold"),
        ({}, "Fluss Wasser Berge Stadt Wiese " * 20, "gopher_enough_stop_words"),
        ({"language": "zh"}, ENGLISH, "gopher_enough_stop_words"),
        ({}, CHINESE, "gopher_below_avg_threshold"),
        ({"min_stop_words": None}, "Fluss Wasser Berge Stadt Wiese " * 20, "stays"),
    ],
)
@pytest.mark.usefixtures("datatrove")
def test_gopher_quality_names_the_rule_that_refuses(values, text, reason):
    assert judged(GopherQuality(**values), text) == reason


@pytest.mark.parametrize(
    ("language", "text", "reason"),
    [
        ("en", "same line\n" * 9 + ENGLISH[:20], "dup_line_frac"),
        ("en", "a paragraph\n\n" * 9, "dup_para_frac"),
        ("en", ENGLISH + " buy it now" * 20, "top_2_gram"),
        (
            "en",
            ENGLISH + " and then all of them went home again to sleep" * 4,
            "duplicated_5_n_grams",
        ),
        ("zh", CHINESE + "点击这里购买" * 20, "top_2_gram"),
        ("zh", CHINESE * 2, "duplicated_5_n_grams"),
    ],
)
@pytest.mark.usefixtures("datatrove")
def test_gopher_repetition_names_the_rule_that_refuses(language, text, reason):
    assert judged(GopherRepetition(language=language), text) == reason


@pytest.mark.usefixtures("datatrove")
def test_c4_takes_lines_out_and_counts_them():
    noise = (
        "Home | About\nPlease enable javascript to go on.\nRead our privacy policy today.\nA [1]"
    )
    notes = Counter()
    kept = C4Quality().build(notes)(f"{noise}\n{ENGLISH}  \nno mark at the end of this")
    assert kept == ENGLISH
    assert notes["line-filter-no_terminal_punc"] == 3
    assert notes["line-filter-javascript"] == notes["line-filter-policy"] == 1
    assert (notes["line-total"], notes["line-kept"]) == (6, 1)


@pytest.mark.usefixtures("datatrove")
def test_what_is_taken_out_of_texts_that_go_is_not_counted():
    noise = "no mark at the end of this"
    passing = Filters((C4Quality(), Length(min_words=30)))
    for short in (f"One sentence that is all.\n{noise}", f"{'A b c. ' * 6}\n{noise}", noise):
        assert isinstance(passing.judge(short), tuple)
    assert passing.notes["c4_quality"] == Counter()
    assert passing.judge(f"{ENGLISH}\n{noise}") == ENGLISH
    assert passing.notes["c4_quality"]["line-filter-no_terminal_punc"] == 1


@pytest.mark.parametrize(
    "values",
    [
        {"name": "gopher_quality", "max_symbol_word_ratio": 0},
        {"name": "gopher_quality", "min_stop_words": 0},
        {"name": "gopher_quality", "max_bullet_lines_ratio": 1.5},
        {"name": "gopher_repetition", "dup_line_frac": 0},
        {"name": "gopher_repetition", "dup_n_grams": [[-1, 0.2]]},
        {"name": "gopher_repetition", "top_n_grams": [[0, 0.2]]},
        {"name": "gopher_repetition", "top_n_grams": [[2, 20]]},
        {"name": "fineweb_quality", "line_punct_thr": -0.1},
        {"name": "fineweb_quality", "short_line_thr": 67},
    ],
)
def test_limits_that_datatrove_would_skip_or_hang_on_are_refused(values):
    """It takes 0 for no limit, and never ends on n-grams of no words."""
    with pytest.raises(ValidationError):
        read(values)


@pytest.mark.parametrize(
    ("config", "text", "reason"),
    [
        (C4Quality(), "One. Two is here.", "too_few_sentences"),
        (C4Quality(), "Lorem ipsum dolor sit amet.\n" + ENGLISH, "lorem_ipsum"),
        (C4Quality(), "A line with {code} in it.\n" + ENGLISH, "curly_bracket"),
        (C4Quality(language="zh"), "只有一句话。没有第二段。", "too_few_sentences"),
        (FineWebQuality(), "short\nlines\nare.\nhere.\n", "short_line_ratio"),
        (FineWebQuality(), "no mark at all in this line of text\n" * 3, "line_punct_ratio"),
        (FineWebQuality(), ENGLISH + "\n" + ENGLISH, "char_dup_ratio"),
    ],
)
@pytest.mark.usefixtures("datatrove")
def test_c4_and_fineweb_name_the_rule_that_refuses(config, text, reason):
    assert judged(config, text) == reason


@pytest.mark.usefixtures("datatrove")
@pytest.mark.parametrize("text", ["!!!", "…", "_", "\u200d", "\u0301", "123", "🙂", "x" * 100_000])
def test_odd_texts_pass_through_the_rules(text):
    for name in RULES:
        for language in ("en", "zh"):
            read({"name": name, "language": language}).build(Counter())(text)


@pytest.mark.usefixtures("datatrove")
def test_words_of_english_chinese_and_both():
    from data_pipeline.cleaning.filters.word_tokenizer import word_tokenizer

    english = word_tokenizer("en").word_tokenize
    assert english("Don't stop... at 3.14—now!!") == [
        *("Don't", "stop", "...", "at", "3", ".", "14", "—", "now", "!!")
    ]
    assert english("用 naïve नमस्ते 中文") == ["用", "naïve", "नमस्ते", "中", "文"]
    chinese = word_tokenizer("zh").word_tokenize
    assert chinese("我们在研究BERT模型，对吗？") == [
        *("我们", "在", "研究", "BERT", "模型", "，", "对", "吗", "？")
    ]
    sentences = word_tokenizer("zh").sent_tokenize(
        "他说：“好。”然后走了！ She left. Then 他回来了。"
    )
    assert sentences == ["他说：“好。”", "然后走了！", "She left.", "Then 他回来了。"]
    assert word_tokenizer("en").sent_tokenize("") == []


def test_defaults_are_those_of_the_language_and_can_be_set():
    assert GopherQuality(language="zh").max_avg_word_length == 5
    assert GopherQuality(language="zh", max_avg_word_length=4).max_avg_word_length == 4
    assert read(GopherQuality(language="zh").model_dump(mode="json")) == GopherQuality(
        language="zh"
    )
    with pytest.raises(ValidationError, match="language de: give its stop_words"):
        GopherQuality(language="de")
    GopherQuality(language="de", stop_words=("der", "die", "und"))


def test_words_that_cannot_be_told_are_refused():
    with pytest.raises(RecipeError, match=r"gopher_quality: words of 'ja' cannot be told"):
        GopherQuality(language="ja", min_stop_words=None).check()


def test_an_absent_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr("data_pipeline.cleaning.packages.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"datatrove; pip install 'onward\[cleaning\]'"):
        GopherQuality().check()
    with pytest.raises(RecipeError, match=r"lingua; pip install 'onward\[cleaning\]'"):
        LanguageFilter(languages=("en",)).check()


def test_configs_are_read_without_the_packages(monkeypatch):
    imported = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] in {"datatrove", "lingua", "rensa", "rjieba"}:
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    for name in RULES:
        assert read({"name": name}).name == name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (ENGLISH, "stays"),
        (CHINESE, "stays"),
        ("Der Fluss entspringt in den Bergen und fließt durch viele Städte ins Meer.", "de"),
        ("Река берёт начало в горах и впадает в море, а на её берегах стоят города.", "ru"),
        ("123 456 ... 789", "unknown"),
    ],
)
def test_languages_are_told_apart(text, said):
    pytest.importorskip("lingua")
    config = LanguageFilter(languages=("en", "zh"), among=("en", "zh", "de", "ru"))
    config.check()
    assert judged(config, text) == said


def test_half_sure_is_not_enough():
    pytest.importorskip("lingua")
    loose, firm = (
        LanguageFilter(languages=("en",), among=("en", "de"), min_confidence=least)
        for least in (0.2, 0.9999)
    )
    assert judged(loose, "in die hand") != "low_confidence"
    assert {judged(firm, "in the hand"), judged(firm, "in die hand")} <= {"low_confidence", "de"}


def test_unknown_languages_are_refused():
    pytest.importorskip("lingua")
    with pytest.raises(RecipeError, match="lingua does not know 'xx'"):
        LanguageFilter(languages=("xx",)).check()
    with pytest.raises(ValidationError, match="lacks some"):
        LanguageFilter(languages=("en",), among=("de", "fr"))


def test_a_long_text_is_looked_at_in_three_places():
    text = "a" * 500 + "b" * 500 + "c" * 500
    assert excerpt(text, 30) == "a" * 10 + "\n" + "b" * 10 + "\n" + "c" * 10
    assert excerpt(text, 1500) is text


def test_length_counts_characters_and_words_and_keeps_its_bounds():
    config = Length(min_characters=3, max_characters=9, min_words=2, max_words=3)
    assert (
        judged(config, "a b") == judged(config, "aa bb ccc") == judged(config, "中文 a") == "stays"
    )
    assert judged(config, "ab") == "too_few_characters"
    assert judged(config, "a b c d ee") == "too_many_characters"
    assert judged(config, "abc") == "too_few_words"
    assert judged(config, "中文文字") == "too_many_words"
    for values in ({}, {"min_words": 3, "max_words": 2}):
        with pytest.raises(ValidationError):
            Length(**values)


def test_contains_drops_or_keeps():
    assert judged(Contains(pattern="(?i)secret"), "Top SECRET") == "pattern"
    assert judged(Contains(pattern="secret"), "Top SECRET") == "stays"
    wanted = Contains(pattern="[\u4e00-\u9fff]", keep="with", reason="no_han")
    assert (judged(wanted, "中"), judged(wanted, "x")) == ("stays", "no_han")
    with pytest.raises(ValidationError, match="not a regular expression"):
        Contains(pattern="(")


@pytest.mark.usefixtures("datatrove")
def test_filters_run_in_order_and_what_is_left_is_normal():
    several = Filters((Length(min_words=3), C4Quality(min_num_sentences=-1), Length(min_words=5)))
    assert several.judge("a b") == ("length", Refusal("too_few_words", "2"))
    assert several.judge("nothing ends here at all") == ("c4_quality", Refusal("nothing_left"))
    assert several.judge("This one too stays here [2].\nnot") == "This one too stays here ."
    assert several.judge("This is short.\nnot this one here")[0] == "length"
    assert several.notes["c4_quality"]["line-total"] == 2  # those of the one text that stays
