"""The evaluation: numbers that follow from the predictions, and models on held-out text."""

import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from configs.errors import DataError, RecipeError
from downstream.evaluate import EvaluateStage
from downstream.evaluation.language_model import LanguageModelEvaluation, row_losses
from downstream.finetune import FinetuneStage
from tests.downstream import tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A finished table of three arms, one the base under another name; two held-out sets."""
    folder = tmp_path_factory.mktemp("evaluate")
    base = tiny.model_folder(folder / "base", 0)
    models = {"base": base, "same": base, "other": tiny.model_folder(folder / "other", 1)}
    arms = {name: str(path) for name, path in models.items()}
    rows = tiny.task_folder(folder)
    config = tiny.finetune_config(arms, epochs=2)
    FinetuneStage.model_validate(config).run(
        tiny.context("finetune", folder / "finetune", rows=rows)
    )
    sets = {
        name: str(tiny.shard_folder(folder / name, base, seed))
        for seed, name in enumerate(("general", "domain"))
    }
    return folder, arms, sets


def config(place, **changes):
    _, arms, sets = place
    read = {"arms": arms, "sets": sets, "length": 48, "rows": 8, "objective": {"name": "mlm"}}
    values = {
        "kind": "evaluate",
        "finetune": "stage:finetune",
        "baseline": "base",
        "resamples": 300,
        "language_model": read | changes.pop("language_model", {}),
    }
    return values | changes


def context(place, name="evaluate"):
    return tiny.context(name, place[0] / name, finetune=place[0] / "finetune")


@pytest.fixture(scope="module")
def results(place):
    stage = EvaluateStage.model_validate(config(place))
    stage.check(context(place))
    fingerprint = stage.run(context(place))
    found = tiny.read(place[0] / "evaluate" / "results.json")
    assert stage.run(context(place)) == fingerprint
    return found


def test_means_and_spreads_are_those_of_the_cells(results):
    for arm in results["arms"].values():
        scores = [cell["test"]["macro_f1"] for cell in arm["cells"]]
        assert arm["mean"]["macro_f1"] == pytest.approx(sum(scores) / 2)
        assert arm["sd"]["macro_f1"] == pytest.approx(abs(scores[0] - scores[1]) / math.sqrt(2))
        f1 = arm["class_f1"].values()
        assert sum(f1) / 3 == pytest.approx(arm["mean"]["macro_f1"])


def test_the_same_model_makes_no_difference(results):
    for metric in ("macro_f1", "accuracy"):
        one = results["differences"][metric]["same"]
        assert (one["difference"], one["significant"]) == (0, False)
    for held_out in results["language_model"]["sets"].values():
        same = held_out["arms"]["same"]
        assert (same["change"], same["low"], same["high"]) == (0, 0, 0)
    assert results["language_model"]["arms"]["same"] == {"gain": 0, "forgetting": 0}


def test_gain_and_forgetting_have_their_signs(results):
    measured = results["language_model"]
    domain = measured["sets"]["domain"]["arms"]["other"]
    general = measured["sets"]["general"]["arms"]["other"]
    base = measured["sets"]["domain"]["arms"]["base"]["loss"]
    assert domain["change"] == pytest.approx(domain["loss"] - base)
    assert domain["low"] <= domain["change"] <= domain["high"]
    assert measured["arms"]["other"] == {"gain": -domain["change"], "forgetting": general["change"]}
    assert domain["perplexity"] == pytest.approx(math.exp(domain["loss"]))


def test_row_losses_are_the_objectives_own(place):
    from data_pipeline.streaming import FixedRows
    from engine.backends.passes import score_fixed
    from engine.learner import Learner
    from engine.models import PretrainedModel

    asked = LanguageModelEvaluation.model_validate(config(place)["language_model"])
    found = row_losses(asked, "other", "domain", Path)
    rows = FixedRows.open(Path(asked.sets["domain"]), 48, 8)
    goal = asked.objective.build(rows.tokenizer.special, rows.tokenizer.vocabulary_size)
    model = PretrainedModel(location=asked.arms["other"]).build(Path, "masked_lm", 0).model
    batch = goal.collate(rows.examples(0, len(rows)), 0, 1)
    import torch

    loss = score_fixed(Learner(model, goal), batch, torch.device("cpu"))
    assert found.counts.sum() == batch.count
    assert found.mean == pytest.approx(float(loss.total) / batch.count, rel=1e-5)
    assert len(found.sums) == len(rows)


def test_a_model_with_another_tokenizer_is_refused(place, tmp_path):
    other = tiny.model_folder(tmp_path / "larger", words=tiny.WORDS + 3)
    changed = {"language_model": {"arms": {"base": place[1]["base"], "larger": str(other)}}}
    with pytest.raises(DataError, match="tokenizer"):
        EvaluateStage.model_validate(config(place, **changed)).run(context(place, "refused"))
    assert not (place[0] / "refused" / "results.json").exists()


def test_wrong_names_are_told_before_the_run(place):
    with pytest.raises(ValidationError, match="baseline 'nobody' is not one of"):
        EvaluateStage.model_validate(config(place, baseline="nobody"))
    with pytest.raises(ValidationError, match="gain_on 'medical' is not one of the sets"):
        EvaluateStage.model_validate(config(place, language_model={"gain_on": "medical"}))
    without = config(place, baseline="nobody") | {"language_model": None}
    with pytest.raises(RecipeError, match="baseline 'nobody' is not one of the arms"):
        EvaluateStage.model_validate(without).check(context(place))
    missing = config(place, language_model={"sets": {"domain": "no/where", "general": "no/where"}})
    with pytest.raises(DataError, match="nothing at no/where"):
        EvaluateStage.model_validate(missing).check(context(place))


def test_without_language_models(place):
    stage = EvaluateStage.model_validate(config(place) | {"language_model": None})
    stage.run(context(place, "scores"))
    assert tiny.read(place[0] / "scores" / "results.json")["language_model"] is None
