"""What simple methods reach on a task: the majority class, and words with logistic regression."""

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from configs.errors import DataError
from downstream.evaluation.metrics import scores
from downstream.tasks.rows import TaskData

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

STRENGTHS = (1.0, 10.0, 100.0)
WORD = re.compile(r"(?u)\b\w\w+\b")
REPEATED = 0.5
MOST_CHARACTERS = 200_000
RULE = (
    f"words and pairs of them, of two texts or more, where at least {REPEATED:.0%} of train's "
    "running words stand in two of its texts or more; else one to three characters "
    "(scripts without spaces, or too few texts)"
)


def reference_scores(data: TaskData) -> dict[str, Any]:
    """Scores on test of both methods; the regression's strength is chosen on dev."""
    return {"majority": _majority(data), "tfidf_logistic_regression": _words(data)}


def _majority(data: TaskData) -> dict[str, Any]:
    (label, _), *_ = Counter(data.label_ids("train")).most_common(1)
    truth = data.label_ids("test")
    return {"label": data.labels[label], "test": scores(truth, [label] * len(truth))}


def _words(data: TaskData) -> dict[str, Any]:
    from sklearn.linear_model import LogisticRegression

    texts = [row.text for row in data.sides["train"]]
    if not any(text.strip() for text in texts):
        msg = "task: every text of train is empty; look at the field its texts are read from"
        raise DataError(msg)
    share = repeated_share(texts)
    vectorizer = _vectorizer(share)
    train = vectorizer.fit_transform(texts)
    sides = {s: vectorizer.transform(r.text for r in data.sides[s]) for s in ("dev", "test")}
    models = {
        strength: LogisticRegression(C=strength, max_iter=2000).fit(train, data.label_ids("train"))
        for strength in STRENGTHS
    }
    on_dev = {
        strength: scores(data.label_ids("dev"), model.predict(sides["dev"]).tolist())
        for strength, model in models.items()
    }
    best = max(STRENGTHS, key=lambda strength: on_dev[strength]["macro_f1"])
    predicted = models[best].predict(sides["test"]).tolist()
    return {
        "strength": best,
        "analyzer": vectorizer.analyzer,
        "rule": RULE,
        "repeated_words": round(share, 4),
        "features": len(vectorizer.vocabulary_),
        "dev": on_dev[best],
        "test": scores(data.label_ids("test"), predicted),
    }


def repeated_share(texts: list[str]) -> float:
    """Share of the running words of ``texts`` whose word stands in two of them or more."""
    words = [WORD.findall(text.lower()) for text in texts]
    holding = Counter(word for found in words for word in set(found))
    total = sum(map(len, words))
    repeated = sum(holding[word] > 1 for found in words for word in found)
    return repeated / total if total else 0.0


def _vectorizer(share: float) -> "TfidfVectorizer":
    from sklearn.feature_extraction.text import TfidfVectorizer

    if share >= REPEATED:
        return TfidfVectorizer(
            sublinear_tf=True, ngram_range=(1, 2), min_df=2, token_pattern=WORD.pattern
        )
    return TfidfVectorizer(
        analyzer="char", sublinear_tf=True, ngram_range=(1, 3), max_features=MOST_CHARACTERS
    )
