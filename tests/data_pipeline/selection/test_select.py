"""Every method picks planted documents of a domain out of a mixture; what is kept is as asked."""

import json
import tracemalloc
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from configs.errors import DataError, RecipeError
from configs.schema import load
from configs.stage import StageContext
from data_pipeline.cleaning import normalise
from data_pipeline.example import Document
from data_pipeline.selection.keep import Keep
from data_pipeline.selection.passes import HEAD, TakeTask, take_part
from data_pipeline.selection.stage import SelectStage
from data_pipeline.sources import JsonlSource
from tests.data_pipeline.selection import mixtures

METHODS = [
    {"name": "tfidf"},
    {"name": "tfidf", "neighbours": 5},
    {"name": "ngram"},
    {"name": "perplexity_difference"},
]
FIELDS = {"id": "id", "group": "group"}


@pytest.fixture(scope="module")
def english(tmp_path_factory):
    return mixtures.mixture(tmp_path_factory.mktemp("english"), mixtures.LATIN)


@pytest.fixture(scope="module")
def chinese(tmp_path_factory):
    return mixtures.mixture(tmp_path_factory.mktemp("chinese"), mixtures.CHINESE)


@pytest.fixture
def context(tmp_path: Path) -> StageContext:
    folder = tmp_path / "select"
    folder.mkdir()
    return StageContext("select", folder, 7, "key", {})


def stage(files, **changes):
    values = {
        "sources": [
            {"name": "jsonl", "path": files["first"], "fields": FIELDS},
            {"name": "jsonl", "path": files["second"], "fields": FIELDS},
        ],
        "target": [files["target"]],
        "method": {"name": "tfidf"},
        "keep": {"documents": 30},
    }
    return SelectStage.model_validate(values | changes)


def selected(context):
    lines = (context.folder / "selected.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def results(context):
    return json.loads((context.folder / "results.json").read_text())


@pytest.mark.parametrize("method", METHODS, ids=lambda method: "-".join(map(str, method.values())))
@pytest.mark.parametrize("language", ["english", "chinese"])
def test_the_planted_documents_are_found(method, language, context, request):
    stage(request.getfixturevalue(language), method=method).run(context)
    found = [row["id"].split("-")[0] for row in selected(context)]
    # Chance would find 3 of 30.
    assert found.count("domain") >= 29
    told = results(context)
    scores = told["scores"]
    assert scores["kept"]["0"] >= scores["all"]["75"]
    assert scores["kept"]["mean"] > scores["random_choice"]["mean"]
    assert told["random_choice"]["expected_share"] == 0.1
    assert told["random_choice"]["in_common"] < 12


@pytest.mark.parametrize("method", METHODS, ids=lambda method: "-".join(map(str, method.values())))
def test_length_does_not_decide(method, context, tmp_path):
    """Among the general documents are some 40 times as long, which share most words with any."""
    words = mixtures.LATIN
    texts = mixtures.texts(11, words, "general", 120) + mixtures.texts(12, words, "domain", 15)
    texts += [" ".join(mixtures.texts(seed, words, "general", 40)) for seed in range(20, 35)]
    kinds = ["general"] * 120 + ["domain"] * 15 + ["long"] * 15
    rows = [
        {"id": f"{kind}-{at}", "group": "g", "text": text}
        for at, (kind, text) in enumerate(zip(kinds, texts, strict=True))
    ]
    target = [{"text": text} for text in mixtures.texts(13, words, "domain", 40)]
    files = {
        "first": mixtures.write(tmp_path / "a.jsonl", rows[::2]),
        "second": mixtures.write(tmp_path / "b.jsonl", rows[1::2]),
        "target": mixtures.write(tmp_path / "t.jsonl", target),
    }
    stage(files, method=method, keep={"documents": 15}).run(context)
    found = [row["id"].split("-")[0] for row in selected(context)]
    assert found.count("domain") >= 14
    assert "long" not in found


def test_gumbel_draws_by_weight(context, english):
    method = {"name": "ngram", "draw": "gumbel"}
    first = stage(english, method=method).run(context)
    kept = Counter(row["id"].split("-")[0] for row in selected(context))
    assert kept["domain"] >= 25
    assert stage(english, method=method).run(context) == first
    scores = results(context)["scores"]
    plain = StageContext("select", context.folder, 8, "key", {})
    stage(english, method=method).run(plain)
    assert results(context)["scores"] != scores


def test_what_is_written_is_what_the_source_has(context, english):
    stage(english).run(context)
    given = {}
    order = []
    for name in ("first", "second"):
        for line in Path(english[name]).read_text().splitlines():
            row = json.loads(line)
            given[row["id"]] = row
            order.append(row["id"])
    rows = selected(context)
    assert [row["id"] for row in rows] == [i for i in order if i in {row["id"] for row in rows}]
    for row in rows:
        assert (row["text"], row["group"]) == (given[row["id"]]["text"], given[row["id"]]["group"])
        assert set(row) == {"id", "group", "text", "score", "metadata"}
    source = JsonlSource(path=str(context.folder / "selected.jsonl"), fields=FIELDS)
    read = list(source.documents(context.locate))
    assert [document.group for document in read] == [row["group"] for row in rows]


def test_the_numbers_tell_what_was_done(context, english):
    stage(english).run(context)
    told = results(context)
    assert told["documents"] == 300
    assert told["target"] == {"documents": 40, "learnt_from": 40}
    assert told["background"] == {"learnt_from": 300}
    assert told["kept"]["documents"] == 30
    assert told["kept"]["share"] == 0.1
    assert told["kept"]["characters"] == sum(len(row["text"]) for row in selected(context))
    assert [row["documents"] for row in told["kept"]["by_source"]] == [150, 150]
    assert sum(row["kept"] for row in told["kept"]["by_source"]) == 30
    examples = told["examples"]
    assert {name: len(rows) for name, rows in examples.items()} == {
        "best": 5,
        "last_kept": 5,
        "first_left_out": 5,
        "worst": 5,
    }
    shown = [row["score"] for rows in examples.values() for row in rows]
    assert shown == sorted(shown, reverse=True)
    assert examples["best"][0]["score"] == told["scores"]["kept"]["100"]
    assert not (context.folder / ".scorer").exists()


def test_what_a_killed_run_left_is_cleared_away(context, english):
    (context.folder / ".selected.jsonl.1.tmp").write_text("half")
    (context.folder / ".selected.jsonl.part-9.tmp").write_text("half")
    (context.folder / ".scorer").write_text("half")
    stage(english).run(context)
    made = {path.name for path in context.folder.iterdir()}
    assert made == {"selected.jsonl", "results.json", "read.json"}


@dataclass(frozen=True)
class Many:
    """A part of so many documents with one text, which are nowhere held."""

    number: int
    text: str

    def read(self):
        return (Document(self.text, str(at), str(at)) for at in range(self.number))


def taken(part, target):
    everything = np.arange(part.number)
    return take_part(TakeTask(part, part.number, everything, np.zeros(part.number), [0], target))


def test_what_is_taken_of_a_large_part_is_not_held(tmp_path):
    tracemalloc.start()
    try:
        shown = taken(Many(400, "a" * (1 << 16)), tmp_path / "taken")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "taken").stat().st_size > 400 << 16
    assert peak < 4 << 20
    assert shown[0]["begins"] == "a" * HEAD


def test_half_a_surrogate_pair_is_what_it_is_in_a_corpus(tmp_path):
    taken(Many(1, "caf\ud800"), tmp_path / "taken.jsonl")
    (document,) = JsonlSource(path=str(tmp_path / "taken.jsonl")).documents(Path)
    assert document.text == "caf\ufffd" == normalise("caf\ud800")


def test_the_outcome_does_not_depend_on_processes_or_on_the_run(context, english, tmp_path):
    alone = stage(english).run(context)
    lines = (context.folder / "selected.jsonl").read_bytes()
    other = StageContext("select", tmp_path / "other", 7, "key", {})
    other.folder.mkdir()
    assert stage(english, processes=2).run(other) == alone
    assert (other.folder / "selected.jsonl").read_bytes() == lines


def test_samples_bound_what_is_learnt_from(context, english):
    few = stage(english, target_documents=10, background_documents=20, judged_characters=100)
    few.run(context)
    told = results(context)
    assert told["target"] == {"documents": 40, "learnt_from": 10}
    assert told["background"] == {"learnt_from": 20}
    found = [row["id"].split("-")[0] for row in selected(context)]
    assert found.count("domain") >= 20
    assert all(len(row["text"]) > 100 for row in selected(context))


@pytest.mark.parametrize(
    ("keep", "documents"), [({"share": 0.02}, 6), ({"documents": 1}, 1), ({"share": 1}, 300)]
)
def test_as_many_are_kept_as_asked(context, english, keep, documents):
    stage(english, keep=keep).run(context)
    assert len(selected(context)) == documents


def test_a_budget_of_characters_is_kept_to(context, english):
    stage(english, keep={"characters": 2000}).run(context)
    rows = selected(context)
    assert 1000 < sum(len(row["text"]) for row in rows) <= 2000
    best = results(context)["examples"]["best"][0]["id"]
    assert best in {row["id"] for row in rows}


def test_equal_scores_are_taken_in_their_order(context, tmp_path):
    rows = [{"id": str(at), "group": "g", "text": "gene cell"} for at in range(9)]
    files = {"first": mixtures.write(tmp_path / "a.jsonl", rows[:4])}
    files["second"] = mixtures.write(tmp_path / "b.jsonl", rows[4:])
    files["target"] = mixtures.write(tmp_path / "t.jsonl", [{"text": "gene cell"}])
    stage(files, keep={"documents": 5}).run(context)
    assert [row["id"] for row in selected(context)] == ["0", "1", "2", "3", "4"]


def test_documents_without_a_word_are_never_kept(context, tmp_path):
    rows = [{"id": str(at), "group": "g", "text": text} for at, text in enumerate(["", " ", "a b"])]
    files = {"first": mixtures.write(tmp_path / "a.jsonl", rows)}
    files["second"] = mixtures.write(tmp_path / "b.jsonl", rows)
    files["target"] = mixtures.write(tmp_path / "t.jsonl", [{"text": "a"}])
    stage(files, keep={"documents": 2}).run(context)
    assert [row["id"] for row in selected(context)] == ["2", "2"]
    assert results(context)["nothing_to_judge"] == 4
    with pytest.raises(DataError, match="only 2 with words among 6"):
        stage(files, keep={"documents": 3}).run(context)


@pytest.mark.parametrize("held_back", ["test.jsonl", "dev.jsonl", "test.jsonl.gz"])
def test_rows_that_models_are_judged_by_are_refused(context, english, tmp_path, held_back):
    folder = tmp_path / "task"
    mixtures.write(folder / "train.jsonl", [{"text": "a"}])
    mixtures.write(folder / held_back, [{"text": "b"}])
    for target in (folder, folder / held_back):
        with pytest.raises(DataError, match="judged by"):
            stage(english, target=[str(target)]).check(context)
        with pytest.raises(DataError, match="judged by"):
            stage(english, target=[str(target)]).run(context)
    stage(english, target=[str(folder / "train.jsonl")]).check(context)


def test_what_is_missing_is_told_before_anything_is_read(context, english):
    with pytest.raises(DataError, match="nowhere"):
        stage(english, target=["nowhere.jsonl"]).check(context)
    later = stage(english, target=["stage:rows/train.jsonl"])
    later.check(context)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ({"name": "tfidf", "neighbours": 50}, "the target has 40 texts"),
        ({"name": "perplexity_difference", "least": 10_000}, "lower method.least"),
    ],
)
def test_a_target_that_is_too_small_is_refused(context, english, method, said):
    with pytest.raises(DataError, match=said):
        stage(english, method=method).run(context)
    assert not list(context.folder.iterdir())


def test_a_target_without_words_is_refused(context, english, tmp_path):
    target = mixtures.write(tmp_path / "t.jsonl", [{"text": "..."}])
    with pytest.raises(DataError, match="no words"):
        stage(english, target=[target]).run(context)
    target = mixtures.write(tmp_path / "t.jsonl", [])
    with pytest.raises(DataError, match="no text in the target"):
        stage(english, target=[target]).run(context)


def test_malformed_records_count_against_the_limit(context, english):
    with Path(english["first"]).open("rb") as file:
        content = file.read()
    broken = Path(english["first"]).with_name("broken.jsonl")
    broken.write_bytes(content + b"{not json\n")
    files = english | {"first": str(broken)}
    with pytest.raises(DataError, match=r"broken\.jsonl:151"):
        stage(files).run(context)
    borne = {"name": "jsonl", "path": str(broken), "fields": FIELDS, "max_rejected": 1}
    stage(files, sources=[borne], keep={"documents": 3}).run(context)
    assert results(context)["rejected"] == 1


def test_a_changed_source_makes_the_stage_outdated(context, english, tmp_path):
    files = english | {
        "first": mixtures.write(tmp_path / "a.jsonl", [{"id": 1, "group": "g", "text": "b c"}])
    }
    given = stage(files, keep={"documents": 5})
    given.run(context)
    assert given.outdated(context) is None
    with Path(files["first"]).open("a") as file:
        file.write("\n")
    assert "a.jsonl was changed" in given.outdated(context)


def test_an_interrupted_write_leaves_nothing_under_the_final_name(context, english, monkeypatch):
    def fail(task):
        raise KeyboardInterrupt

    monkeypatch.setattr("data_pipeline.selection.work.take_part", fail)
    with pytest.raises(KeyboardInterrupt):
        stage(english).run(context)
    assert not list(context.folder.iterdir())


RECIPE = """
name: x
output: runs/x
stages:
  pick:
    kind: select
    sources: [{{name: jsonl, path: a.jsonl}}]
    target: [t.jsonl]
    method: {method}
    keep: {keep}
"""


def test_a_recipe_names_the_stage(tmp_path):
    from launcher.recipe import load_recipe

    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(method="{name: ngram}", keep="{share: 0.1}"))
    loaded = load_recipe(path).stages["pick"]
    assert isinstance(loaded, SelectStage)
    assert (loaded.method.name, loaded.keep.share) == ("ngram", 0.1)


@pytest.mark.parametrize(
    ("keep", "said"),
    [("{}", "given: none"), ("{share: 0.1, documents: 2}", "given: documents and share")],
)
def test_keep_is_one_of_three(tmp_path, keep, said):
    path = tmp_path / "keep.yaml"
    path.write_text(keep)
    with pytest.raises(RecipeError, match=said):
        load(path, Keep)
