"""A stage's pages and settings, from its config and what the run folder tells."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from configs.deepspeed_json import BatchPlan
from configs.stage import Artifact, StageContext
from engine.board.pages import lineage_page, parameters, recipe_page, session_of, table
from engine.pretraining import PretrainStage
from tests.engine import tiny

STAGE: dict[str, Any] = {
    "model": {"name": "pretrained", "location": "stage:base/export"},
    "data": {
        "length": 48,
        "sources": {
            "domain": {"shards": "stage:prepare/domain", "weight": 3},
            "general": {"shards": "stage:prepare/general"},
        },
        "changes": [{"after": 4096, "weights": {"domain": 1, "general": 1}}],
    },
    "objective": {"name": "mlm", "masking": {"name": "dynamic", "rate": 0.2}},
    "adaptation": {"name": "lora", "rank": 4},
    "penalties": [{"name": "l2_sp", "strength": 0.02}],
    "averaging": {"name": "ema", "decay": 0.99},
    "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1},
    "schedule": {"name": "cosine", "warmup": 5},
    "steps": 60,
    "backend": {
        "name": "deepspeed",
        "config": {
            "train_batch_size": 16,
            "bf16": {"enabled": True},
            "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
        },
    },
    "checkpoint": {"every": 20},
    "validation": {"every": 10, "sets": {"general": "stage:prepare/held_out"}},
}


@pytest.fixture
def parts(tmp_path: Path) -> Any:
    run = tmp_path / "quick"
    status = {"config": {"kind": "pretrain"}, "inputs": {"prepare": "f0f0"}}
    (run / "base").mkdir(parents=True)
    (run / "base" / "status.json").write_text(json.dumps(status))
    (run / "provenance.json").write_text('{"commit": "c0ffee", "versions": {"torch": "2.13"}}')
    inputs = {"base": Artifact(run / "base", "abcd")}
    learner = tiny.learner(tmp_path)
    next(learner.parameters()).requires_grad_(False)
    return SimpleNamespace(
        stage=PretrainStage.model_validate(STAGE),
        context=StageContext("dapt", run / "dapt", 1, "key", inputs),
        stream=SimpleNamespace(rows=[100, 2000], fingerprint="d1d1"),
        backend=SimpleNamespace(learner=learner),
        batches=BatchPlan(16, 4, 2, 2),
        steps=60,
        seed=7,
    )


def cells(page: str) -> dict[str, list[str]]:
    """First cell -> the others, of all tables of a page."""
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in rows}


def test_the_recipe_page_tells_what_is_trained_on_what(parts: Any) -> None:
    rows = cells(recipe_page(parts))
    trained, total = parameters(parts.backend.learner)
    assert 0 < trained < total
    assert rows["parameters"][0].startswith(f"{trained:,} trained of {total:,} (")
    assert rows["adaptation"][0].startswith("lora: rank 4")
    assert rows["penalties"] == ["l2_sp: strength 0.02"]
    assert rows["averaging"] == ["ema: decay 0.99"]
    assert rows["global batch"] == ["16 rows: 4 a micro-batch x 2 accumulated x 2 ranks"]
    assert rows["backend"] == ["deepspeed, ZeRO stage 2, bf16, optimizer on cpu"]
    assert rows["domain"] == ["stage:prepare/domain", "3", "75.0%", "100"]
    assert rows["4,096"] == ['{"domain": 1.0, "general": 1.0}']
    assert rows["seed"] == ["7"]


def test_the_lineage_page_goes_back_to_the_first_stage(parts: Any) -> None:
    rows = cells(lineage_page(parts.context, parts))
    assert rows["base"] == ["pretrain", "abcd", "dapt"]
    assert rows["prepare"] == ["not known", "f0f0", "base"]
    assert (rows["code"], rows["packages"], rows["data"]) == (["c0ffee"], ["torch 2.13"], ["d1d1"])


def test_a_library_run_has_no_provenance_and_says_so(parts: Any, tmp_path: Path) -> None:
    context = StageContext("alone", tmp_path / "elsewhere" / "alone", 1, "key", {})
    page = lineage_page(context, parts)
    assert cells(page)["code"] == ["not known"]
    assert "reads no earlier stage" in page


def test_settings_are_flat_and_of_kinds_that_hparams_takes(parts: Any) -> None:
    told = session_of(parts)
    assert told.name == "dapt, quick"
    assert list(told.pages) == ["1 recipe", "2 lineage"]
    expected = {
        "lr": 1e-3,
        "model": "stage:base/export",
        "objective": "mlm",
        "masking rate": 0.2,
        "adaptation": "lora",
        "adaptation.rank": 4,
        "penalties": "l2_sp",
        "penalty.l2_sp.strength": 0.02,
        "averaging": "ema",
        "averaging.decay": 0.99,
        "optimizer": "adamw",
        "optimizer.weight_decay": 0.1,
        "schedule": "cosine",
        "schedule.warmup": 5,
        "share of domain": 0.75,
        "share of general": 0.25,
        "steps": 60,
        "global batch": 16,
        "ZeRO stage": 2,
        "precision": "bf16",
        "seed": 7,
    }
    assert {name: told.settings.get(name) for name in expected} == expected
    assert all(isinstance(value, bool | int | float | str) for value in told.settings.values())


def test_a_tables_cells_cannot_break_it() -> None:
    made = table(("a", "b"), [("x|y", "two\nlines"), ("long", "word " * 40)])
    assert made.splitlines()[2] == r"| x\|y | two lines |"
    assert made.splitlines()[3].count("<br>") == 2
