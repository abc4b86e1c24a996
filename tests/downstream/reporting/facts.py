"""A run folder with results as the stages write them, numbers made up."""

import json
from pathlib import Path
from typing import Any

from downstream.records import write_json, write_jsonl, write_text

ARMS = ("base", "dapt", "tapt")


def difference(value: float, width: float, significant: bool) -> dict[str, Any]:
    return {
        "difference": value,
        "low": value - width,
        "high": value + width,
        "standard_error": width / 2,
        "from_test_set": 0.7,
        "degrees": 30.0,
        "p": 0.0004 if significant else 0.31,
        "p_holm": 0.0008 if significant else 0.31,
        "significant": significant,
        "detectable": 0.05,
        "percentile": [value - width, value + width],
    }


def evaluation() -> dict[str, Any]:
    scores = {"base": 0.41, "dapt": 0.52, "tapt": 0.42}

    def cell(arm: str, seed: int) -> dict[str, Any]:
        score = scores[arm] + 0.01 * (seed - 2)
        test = {"macro_f1": score, "accuracy": score + 0.1}
        degenerate = arm == "tapt" and seed == 3
        return {"seed": seed, "test": test, "dev": test, "degenerate": degenerate} | {
            "chosen_epoch": 2,
            "steps": 100,
            "tokens": 50_000,
            "seconds": 12.5,
            "epochs": [],
        }

    reference = {"macro_f1": 0.45, "accuracy": 0.6}
    majority = {"label": "nn", "test": {"macro_f1": 0.06, "accuracy": 0.3}}
    changes = {"base": 0.0, "dapt": -0.31, "tapt": -0.02}
    lm = {
        arm: {"loss": 5 + c, "perplexity": 148.0, "change": c, "low": c - 0.02, "high": c + 0.02}
        for arm, c in changes.items()
    }
    held_out = {"rows": 64, "targets": 1200, "tokens": 8000, "arms": lm}
    by_arm = {
        "dapt": difference(0.11, 0.04, significant=True),
        "tapt": difference(0.01, 0.03, significant=False),
    }
    return {
        "task": {
            "task": "documentation_part",
            "labels": ["nn", "<b>bold</b>"],
            "rows": {"train": 1200, "dev": 100, "test": 400},
            "rows_by_label": {s: {"nn": 7, "<b>bold</b>": 5} for s in ("train", "dev", "test")},
            "groups": {"train": 90, "dev": 20, "test": 40},
            "median_characters": 200,
            "notes": {"rows before deduplication": 1900},
            "references": {"majority": majority, "tfidf_logistic_regression": {"test": reference}},
        },
        "baseline": "base",
        "primary": "macro_f1",
        "confidence": 0.95,
        "resamples": 4000,
        "method": "As told.",
        "degenerate_rule": "A rule.",
        "seeds": [1, 2, 3],
        "arms": {
            arm: {
                "cells": [cell(arm, seed) for seed in (1, 2, 3)],
                "mean": {"macro_f1": scores[arm], "accuracy": scores[arm] + 0.1},
                "sd": {"macro_f1": 0.01, "accuracy": 0.01},
                "class_f1": {"nn": 0.5, "<b>bold</b>": 0.4},
            }
            for arm in ARMS
        },
        "differences": {"macro_f1": by_arm, "accuracy": by_arm},
        "language_model": {
            "objective": "mlm",
            "gain_on": "domain",
            "forgetting_on": "general",
            "sets": {"general": held_out, "domain": held_out},
            "arms": {arm: {"gain": -c, "forgetting": c} for arm, c in changes.items()},
        },
    }


def gap() -> dict[str, Any]:
    divergence = {"words": None, "tokens": 0.2, "pairs": 0.5}
    bands = [
        {"from": 1, "to": 1, "words": 200, "share_of_words": 0.7, "share_of_tokens": 0.3},
        {"from": 2, "to": 2, "words": 100, "share_of_words": 0.3, "share_of_tokens": 0.7},
    ]
    tail = {"bands": bands, "rare_at_most": 1, "rare_words": 0.7, "rare_tokens": 0.3}
    corpus = {
        "documents": 10,
        "tokens": 1000,
        "words": 700,
        "distinct_words": 300,
        "all_documents": 10,
        "all_tokens": 1000,
        "fertility": 1.43,
        "unknown_rate": None,
        "long_tail": {**tail, "once_words": 0.7, "once_tokens": 0.3, "zipf_slope": -1.1},
        "divergence_of_halves": divergence,
        "balance": 0.8,
    }
    word = {"word": "tensor", "per_million_words": 5.0, "in_the_other": 0.1}
    shifted = {"word": "cell", "shift": 0.4, "across": 0.6, "within": 0.2}
    shifted["neighbours"] = {"general": ["prison"], "domain": ["<b>nucleus</b>"]}
    pair = {
        "corpora": ["general", "domain"],
        "vocabulary_overlap": {"top": 10_000, "share": 0.4321},
        "divergence": divergence,
        "context": {"words": 90, "window": 5, "shift": 0.111, "most_shifted": [shifted]},
        "distinctive_words": {"general": [], "domain": [word]},
    }
    clusters = [
        {"words": ["tensor"], "shares": {"general": 0.25, "domain": 1.0}},
        {"words": [], "shares": {"general": 0.75, "domain": 0.0}},
    ]
    measures = {
        "vocabulary_overlap": [[1.0, 0.4321], [0.4321, 1.0]],
        "divergence_tokens": [[0.1, 0.2], [0.2, 0.1]],
        "context_shift": [[None, -0.001], [-0.001, None]],
        "covered": [[1.0, 0.25], [1.0, 1.0]],
    }
    return {
        "kind": "gap",
        "corpora": {"general": corpus, "domain": {**corpus, "all_tokens": 5000}},
        "pairs": [pair],
        "clusters": {"documents": {"general": 8, "domain": 4}, "clusters": clusters},
        "matrices": {"corpora": ["general", "domain"], "measures": measures},
    }


def run_folder(folder: Path, with_report: bool = True) -> Path:
    stages: dict[str, Any] = {
        "gap": {"kind": "gap"},
        "pre": {"kind": "pretrain"},
        "evaluate": {"kind": "evaluate"},
    }
    if with_report:
        stages["summary"] = {"kind": "report", "evaluate": "stage:evaluate", "gap": "stage:gap"}
        stages["summary"]["pretraining"] = ["stage:pre"]
    write_text(folder / "recipe.yaml", json.dumps({"name": "trial & error", "stages": stages}))
    write_json(folder / "evaluate" / "results.json", evaluation())
    write_json(folder / "gap" / "results.json", gap())
    lines = [
        {"step": s, "loss": 9 - s / 10, "tokens": 900 * s, "seconds": 2.0 * s, "mfu": 0.3}
        for s in (10, 20)
    ]
    write_jsonl(folder / "pre" / "metrics.jsonl", lines)
    held_out = [{"step": s, "sets": {"domain": {"loss": 8 - s / 10}}} for s in (0, 20)]
    write_jsonl(folder / "pre" / "validation.jsonl", held_out)
    times = {"started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T00:02:05+00:00"}
    write_json(folder / "pre" / "status.json", {"state": "done", **times})
    write_json(
        folder / "provenance.json",
        {
            "commit": "abc",
            "command": ["onward", "run"],
            "hosts": {"here": 2},
            "versions": {"a": "1"},
        },
    )
    return folder
