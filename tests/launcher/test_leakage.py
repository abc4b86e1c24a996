"""Corpora that pretraining reads, and no guard stands between them and a task's test rows."""

import pytest

from configs.errors import RecipeError
from launcher.leakage import leaks
from launcher.recipe import RECIPES, load_recipe

UNGUARDED = "stages.prepare.corpora.domain.decontaminate=null"


def found(*settings, recipe="dapt_tapt"):
    stages = load_recipe(RECIPES / f"{recipe}.yaml", settings).stages
    return {".".join(map(str, problem.keys)): problem.message for problem in leaks(stages)}


@pytest.mark.parametrize("recipe", ["quickstart", "dapt_tapt"])
def test_the_recipes_that_come_along_are_guarded(recipe):
    assert found(recipe=recipe) == {}


def test_a_corpus_without_a_guard_is_named_with_its_readers_and_the_rows():
    (message,) = found(UNGUARDED).values()
    assert list(found(UNGUARDED)) == ["stages.prepare.corpora.domain"]
    assert message.startswith("dapt trains on this corpus, and finetune evaluates on")
    assert "against: [stage:rows/dev.jsonl, stage:rows/test.jsonl]" in message


def test_what_is_missing_is_told_and_spelling_does_not_matter():
    one = 'stages.prepare.corpora.domain.decontaminate.against=["stage:rows/./dev.jsonl"]'
    (message,) = found(one).values()
    assert "against: [stage:rows/test.jsonl]" in message


def test_holding_out_the_groups_of_the_task_is_a_guard():
    groups = "stages.prepare.corpora.domain.split={groups: 'stage:rows/groups.json'}"
    assert found(UNGUARDED, groups) == {}
    other = "stages.prepare.corpora.domain.split={groups: 'stage:rows/others.json'}"
    assert len(found(UNGUARDED, other)) == 1


def test_training_on_what_is_held_out_is_told_whatever_guards_there_are():
    shards = "stage:prepare/corpora/domain/held_out"
    (message,) = found(f"stages.dapt.data.sources.domain.shards={shards}").values()
    assert message.startswith("dapt trains on its held-out side")


def test_strict_recipes_are_refused_with_file_and_line():
    load_recipe(RECIPES / "dapt_tapt.yaml", ["strict=true"])
    with pytest.raises(RecipeError, match=r"dapt_tapt\.yaml.*corpora\.domain: dapt"):
        load_recipe(RECIPES / "dapt_tapt.yaml", ["strict=true", UNGUARDED])


def test_the_task_of_a_probe_is_guarded_as_one_that_is_fine_tuned():
    probe = "stages.dapt.probes={tags: {task: 'stage:rows', every: 100}}"
    assert found(probe) == {}
    (message,) = found(UNGUARDED, probe).values()
    assert "and probe tags of dapt and finetune evaluate" in message
    other = "stages.dapt.probes={tags: {task: 'tasks/other', every: 100}}"
    messages = found(other)
    assert messages, "nothing guards against a task of another folder"
    assert all("probe tags of dapt evaluates on rows" in each for each in messages.values())
    assert all("against: [tasks/other/dev.jsonl, tasks/" in each for each in messages.values())
