"""The fine-tuning table: learns, repeats itself, goes on where it was cut off."""

import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError

from configs.errors import DataError, NumericalError, RecipeError
from downstream.finetune import FinetuneStage
from downstream.table import read_predictions
from tests.downstream import tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A task and two models."""
    folder = tmp_path_factory.mktemp("finetune")
    arms = {name: str(tiny.model_folder(folder / name, seed)) for seed, name in enumerate("ab")}
    return folder, tiny.task_folder(folder), arms


def run(place, name, **changes):
    folder, rows, arms = place
    stage = FinetuneStage.model_validate(tiny.finetune_config(arms, **changes))
    context = tiny.context("finetune", folder / name, rows=rows)
    stage.check(context)
    return stage.run(context), context.folder


@pytest.fixture(scope="module")
def finished(place):
    return run(place, "finished")


def test_the_table_is_complete_and_learned(finished):
    _, folder = finished
    results = tiny.read(folder / "results.json")
    cells = {(cell["arm"], cell["seed"]): cell for cell in results["cells"]}
    assert set(cells) == {(arm, seed) for arm in "ab" for seed in (1, 2)}
    assert results["task"]["references"]["majority"]["test"]["accuracy"] == pytest.approx(1 / 3)
    for cell in cells.values():
        assert cell["test"]["macro_f1"] > 0.7
        assert not cell["degenerate"]
        assert cell["steps"] == 4 * 96 / 8
        dev = [epoch["dev"]["macro_f1"] for epoch in cell["epochs"]]
        assert cell["chosen_epoch"] == 1 + dev.index(max(dev))
        assert cell["dev"]["macro_f1"] == max(dev)
        losses = [epoch["loss"] for epoch in cell["epochs"]]
        assert losses[-1] < losses[0]


def test_predictions_give_the_scores(finished):
    _, folder = finished
    results = tiny.read(folder / "results.json")
    found = read_predictions(folder, results, "test")
    assert len(set(found.groups.tolist())) == 15
    for cell in results["cells"]:
        predicted = found.by_arm[cell["arm"]][results["seeds"].index(cell["seed"])]
        assert (predicted == found.truth).mean() == pytest.approx(cell["test"]["accuracy"])


def test_tokens_are_counted(finished, place):
    _, rows, _ = place
    _, folder = finished
    texts = (rows / "train.jsonl").read_text().splitlines()
    words = sum(min(24, 2 + line.count(" w") + 1) for line in texts)
    assert tiny.read(folder / "results.json")["cells"][0]["tokens"] == pytest.approx(
        4 * words, rel=0.02
    )


def test_finished_cells_are_not_run_again(finished, place):
    fingerprint, folder = finished
    cells = sorted((folder / "cells").iterdir())
    before = {path.name: path.stat().st_mtime_ns for path in cells}
    cells[1].unlink()
    again, _ = run(place, "finished")
    assert again == fingerprint
    after = {path.name: path.stat().st_mtime_ns for path in cells}
    assert {name for name in before if before[name] != after[name]} == {cells[1].name}


def test_another_key_is_another_table(finished, place):
    folder = place[0]
    path = folder / "finished" / "cells" / "a.seed-1.json"
    stage = FinetuneStage.model_validate(tiny.finetune_config(place[2]))
    from downstream.cell import Cell
    from downstream.table import Table

    context = tiny.context("finetune", folder / "finished", rows=place[1])
    assert Table(stage, context).is_finished(Cell("a", 1))
    path.write_text(path.read_text().replace("key of finetune", "another"))
    assert not Table(stage, context).is_finished(Cell("a", 1))


def test_a_run_that_learns_nothing_is_flagged(place):
    _, folder = run(place, "lazy", optimizer={"name": "adamw", "lr": 1e-12}, epochs=1, seeds=[1, 2])
    results = tiny.read(folder / "results.json")
    lazy = [cell for cell in results["cells"] if cell["dev"]["accuracy"] <= 1 / 3]
    assert lazy
    assert [cell["degenerate"] for cell in results["cells"]] == [
        cell["dev"]["accuracy"] <= 1 / 3 for cell in results["cells"]
    ]
    assert "never left out" in results["degenerate_rule"]


def test_a_loss_that_is_not_finite_stops_the_run(place):
    with pytest.raises(NumericalError, match="lower the learning rate"):
        run(place, "wild", optimizer={"name": "adamw", "lr": 1e38}, epochs=1)


def test_mistakes_are_found_before_the_run(place, tmp_path):
    folder, rows, arms = place
    for changes, message in (
        ({"seeds": [1]}, "at least 2"),
        ({"seeds": [1, 1]}, "each must be another one"),
        ({"arms": {"a/b": "x"}}, "should match pattern"),
    ):
        with pytest.raises(ValidationError, match=message):
            FinetuneStage.model_validate(tiny.finetune_config(arms) | changes)
    context = tiny.context("finetune", tmp_path / "f", rows=rows)
    missing = tiny.finetune_config({"a": str(folder / "no" / "where" / "x")})
    with pytest.raises(DataError, match="nothing at"):
        FinetuneStage.model_validate(missing).check(context)
    half = {"name": "plain", "config": {"train_batch_size": 8, "fp16": {"enabled": True}}}
    with pytest.raises(RecipeError, match="fp16"):
        FinetuneStage.model_validate(tiny.finetune_config(arms, backend=half)).check(context)
    long = tiny.finetune_config({"a": arms["a"]}, length=4096)
    with pytest.raises(RecipeError, match="arm 'a': length is 4096, but the model has positions"):
        FinetuneStage.model_validate(long).run(context)
    not_yet = tiny.context("finetune", tmp_path / "g")
    FinetuneStage.model_validate(tiny.finetune_config({"a": "stage:base/export"})).check(not_yet)


ADAPTATIONS = {
    "lora": {"name": "lora", "rank": 4},
    "adapter": {"name": "adapter", "placement": "parallel", "size": 16},
    "prefix": {"name": "prefix", "length": 4},
    "prompt": {"name": "prompt", "length": 4},
}


@pytest.mark.grid
@pytest.mark.parametrize("name", ADAPTATIONS)
def test_a_task_is_learned_by_an_adaptation_and_the_head(place, monkeypatch, name):
    from downstream import table

    trained = {}

    def seen(backend, *others):
        parameters = list(backend.learner.named_parameters())
        trained.update({key: p.requires_grad for key, p in parameters})
        return run_cell(backend, *others)

    run_cell = table.run_cell
    monkeypatch.setattr(table, "run_cell", seen)
    settings = {"adaptation": ADAPTATIONS[name], "seeds": [1, 2], "epochs": 2}
    folder, rows, arms = place
    one = folder, rows, {"a": arms["a"]}
    _, made = run(one, f"by {name}", **settings, optimizer={"name": "adamw", "lr": 2e-2})
    cells = tiny.read(made / "results.json")["cells"]
    for cell in cells:
        first, last = cell["epochs"][0]["loss"], cell["epochs"][-1]["loss"]
        assert last < first
    assert all(is_trained for key, is_trained in trained.items() if key.startswith("heads."))
    assert not all(trained.values())


def test_arms_that_carry_additions_are_fine_tuned_with_them(place, tmp_path):
    from engine.adaptation import Adapter, Prompt
    from engine.additions import save_additions
    from engine.models import PretrainedModel

    folder, rows, arms = place
    found = {}
    for kind in (Adapter(size=4), Prompt(length=2)):
        loaded = PretrainedModel(location=arms["a"]).build(Path, "encoder", 0, shared_rows=False)
        backbone = kind.build(1).apply(loaded.model)
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                parameter.data.normal_(std=0.3)
        made = shutil.copytree(arms["a"], tmp_path / kind.name)
        save_additions(backbone, made)
        found[kind.name] = str(made)
    three = folder, rows, {"plain": arms["a"]} | found
    frozen = {"name": "frozen", "layers": 2}
    _, made = run(three, "carried", epochs=1, adaptation=frozen)
    losses = {
        cell["arm"]: cell["epochs"][0]["loss"]
        for cell in tiny.read(made / "results.json")["cells"]
        if cell["seed"] == 1
    }
    assert len(set(losses.values())) == 3


def test_each_cell_is_a_session_of_tensorboard_without_its_scores_on_test(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    _, folder = finished
    for cell in tiny.read(folder / "results.json")["cells"]:
        place = folder / "tensorboard" / cell["arm"] / f"seed-{cell['seed']}"
        events = EventAccumulator(str(place))
        events.Reload()
        about = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
        settings = metadata.parse_session_start_info_plugin_data(about).hparams
        assert settings["arm"].string_value == cell["arm"]
        assert settings["seed"].number_value == cell["seed"]
        assert not [tag for tag in events.Tags()["scalars"] if "test" in tag]
        curve = [event.value for event in events.Scalars("1 learning/dev macro-F1")]
        assert curve == pytest.approx([epoch["dev"]["macro_f1"] for epoch in cell["epochs"]])
        (chosen,) = events.Scalars("1 learning/dev macro-F1 of the chosen epoch")
        assert (chosen.step, chosen.value) == (
            cell["chosen_epoch"],
            pytest.approx(cell["dev"]["macro_f1"]),
        )
