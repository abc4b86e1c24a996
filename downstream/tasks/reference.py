"""What simple methods reach on a task: the majority class, and words with logistic regression."""

from collections import Counter
from typing import Any

from downstream.evaluation.metrics import scores
from downstream.tasks.rows import TaskData

STRENGTHS = (1.0, 10.0, 100.0)


def reference_scores(data: TaskData) -> dict[str, Any]:
    """Scores on test of both methods; the regression's strength is chosen on dev."""
    return {"majority": _majority(data), "tfidf_logistic_regression": _words(data)}


def _majority(data: TaskData) -> dict[str, Any]:
    (label, _), *_ = Counter(data.label_ids("train")).most_common(1)
    truth = data.label_ids("test")
    return {"label": data.labels[label], "test": scores(truth, [label] * len(truth))}


def _words(data: TaskData) -> dict[str, Any]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2)
    train = vectorizer.fit_transform(row.text for row in data.sides["train"])
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
        "features": len(vectorizer.vocabulary_),
        "dev": on_dev[best],
        "test": scores(data.label_ids("test"), predicted),
    }
