"""Simple methods work on any script and on very few rows."""

import random

import pytest

from configs.errors import DataError
from downstream.tasks.reference import reference_scores, repeated_share
from downstream.tasks.rows import LabelledRow, TaskData


def task(texts_by_label):
    rows = [
        LabelledRow(f"{label}{number}", f"{label}{number}", text, label)
        for label, texts in texts_by_label.items()
        for number, text in enumerate(texts)
    ]
    sides = {"train": rows[::2], "dev": rows[1::4], "test": rows[3::4]}
    return TaskData(sides, sorted(texts_by_label), [], {})


def chinese(alphabet, count, seed):
    rng = random.Random(seed)
    return ["".join(rng.choices(alphabet, k=rng.randint(20, 60))) + "\u3002" for _ in range(count)]


def test_a_script_without_spaces_is_read_by_characters():
    sports, money = (
        "\u7403\u8d5b\u961f\u8d62\u8dd1\u7684\u662f",
        "\u80a1\u94b6\u4ef7\u6da8\u503a\u7684\u662f",
    )
    found = reference_scores(task({"s": chinese(sports, 100, 0), "m": chinese(money, 100, 1)}))
    words = found["tfidf_logistic_regression"]
    assert words["analyzer"] == "char"
    assert words["test"]["accuracy"] == 1.0


def test_twelve_rows_are_enough():
    texts = {"a": [f"unlike number{n}" for n in range(6)], "b": list("uvwxyz")}
    found = reference_scores(task(texts))["tfidf_logistic_regression"]
    assert 0 <= found["test"]["accuracy"] <= 1
    assert found["features"] > 0


def test_words_where_texts_share_them():
    texts = {
        label: [f"the {word} of day {n} was {word}" for n in range(20)]
        for label, word in (("a", "rain"), ("b", "snow"))
    }
    found = reference_scores(task(texts))["tfidf_logistic_regression"]
    assert (found["analyzer"], found["test"]["accuracy"]) == ("word", 1.0)
    assert found["repeated_words"] > 0.5


def test_the_share_counts_words_of_two_texts():
    assert repeated_share(["one two two", "two three"]) == 3 / 5
    assert repeated_share(["", "?"]) == 0


def test_texts_of_nothing_are_refused():
    with pytest.raises(DataError, match="every text of train is empty"):
        reference_scores(task({"a": [" "] * 6, "b": [""] * 6}))
