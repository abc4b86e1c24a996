"""New words in models: rows that are means, old rows as they were, and a folder anybody loads."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from configs.errors import CheckpointError, DataError
from configs.stage import Artifact, StageContext
from data_pipeline.shards import ShardWriter
from data_pipeline.tokenization import Encoder, tokenizer_record, tokenizer_sha256
from engine.checkpoint.export import export_problems
from engine.models import PretrainedModel, RandomModel
from engine.vocabulary import VocabularyStage
from launcher.recipe import load_recipe
from tests.data_pipeline.tokenization.kinds import config_of, documents, texts

NEW = ("dolomite", "hornfels", "phyllitic")
FIELD = [f"the {a} of the {b}, {a}: a {b} ({a}) trains a {b}." for a in NEW for b in NEW]
FAMILIES = {
    "bert": ("wordpiece", "bert_tiny", "masked_lm"),
    "roberta": ("roberta", "roberta_tiny", "masked_lm"),
    "modernbert": ("roberta", "modernbert_tiny", "masked_lm"),
    "xlm-roberta": ("folding", "roberta_tiny", "masked_lm"),
    "gpt2": ("bpe", "gpt2_tiny", "causal_lm"),
    "llama": ("llama", "llama_tiny", "causal_lm"),
    "untied llama": ("unigram", "llama_tiny", "causal_lm"),
}
AUTO = {
    "masked_lm": AutoModelForMaskedLM,
    "causal_lm": AutoModelForCausalLM,
}


def shards(folder, tokenizer, corpus):
    encoded = Encoder(tokenizer).encode(corpus)
    with ShardWriter(folder, tokenizer_record(tokenizer), 10**6) as writer:
        writer.write(encoded.tokens, encoded.lengths, encoded.annotations)
        writer.finish({})


def make(family, place, unmerged=None):
    """A tiny model, its tokenizer and two corpora, as earlier stages leave them.

    No merge leads to the token ``unmerged``.
    """
    kind, shape, architecture = FAMILIES[family]
    config_of(kind, place / "made").build(place / "tokenizer", Path, texts)
    if unmerged:
        path = place / "tokenizer" / "tokenizer.json"
        values = json.loads(path.read_text())
        merges = values["model"]["merges"]
        values["model"]["merges"] = [pair for pair in merges if "".join(pair) != unmerged]
        path.write_text(json.dumps(values))
    shards(place / "field", place / "tokenizer", FIELD)
    shards(place / "general", place / "tokenizer", documents(20))
    random = RandomModel(shape=shape, tokenizer=str(place / "tokenizer"))
    if family == "untied llama":
        from engine.models import read_shape

        shape = {**read_shape(shape), "tie_word_embeddings": False}
        random = random.model_copy(update={"shape": shape})
    loaded = random.build(Path, architecture, 3)
    with torch.no_grad():  # a bias of nothing but zeros would show nothing
        for name, parameter in loaded.model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    loaded.model.save_pretrained(place / "model")
    loaded.tokenizer.save_pretrained(place / "model")
    return place


def context(place, name="extend"):
    folder = place / name
    folder.mkdir(exist_ok=True)
    return StageContext(name, folder, 0, "key", {"base": Artifact(place, "fingerprint")})


def stage(family, **values):
    return VocabularyStage(
        model=PretrainedModel(location="stage:base/model"),
        architecture=FAMILIES[family][2],
        corpora={"field": "stage:base/field"},
        held_out={"general": "stage:base/general"},
        **{"add": 3, "min_count": 3, **values},
    )


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def test_a_model_with_new_words(family, tmp_path):
    place = make(family, tmp_path)
    config = stage(family)
    config.check(context(place))
    fingerprint = config.run(context(place))
    export = place / "extend" / "export"
    results = json.loads((place / "extend" / "results.json").read_text())
    assert not export_problems(export)
    assert {path.name for path in (place / "extend").iterdir()} == {"export", "results.json"}

    auto = AUTO[FAMILIES[family][2]]
    old, new = (auto.from_pretrained(folder).eval() for folder in (place / "model", export))
    rows = results["embeddings"]["rows_before"]
    assert results["embeddings"]["rows_after"] == rows + 3 == new.config.vocab_size
    assert [word["id"] for word in results["words"]] == [rows, rows + 1, rows + 2]
    ids = AutoTokenizer.from_pretrained(place / "model").get_vocab()
    tables = [each.get_input_embeddings().weight for each in (old, new)]
    check_rows(*tables, results, ids)
    if (head := new.get_output_embeddings()) is not None:
        tied = old.get_output_embeddings().weight is tables[0]
        assert (head.weight is tables[1]) == tied == (family != "untied llama")
        check_rows(old.get_output_embeddings().weight, head.weight, results, ids)
        if head.bias is not None:
            check_rows(old.get_output_embeddings().bias, head.bias, results, ids)

    # A text without a new word: the same ids, the same numbers.
    before, after = (AutoTokenizer.from_pretrained(each) for each in (place / "model", export))
    tokens = [each("the model trains a layer", return_tensors="pt") for each in (before, after)]
    assert torch.equal(tokens[0]["input_ids"], tokens[1]["input_ids"])
    assert list(tokens[0]) == list(tokens[1])
    with torch.no_grad():
        outputs = [m(**t)[0] for m, t in zip((old, new), tokens, strict=True)]
    torch.testing.assert_close(outputs[0], outputs[1][..., : outputs[0].shape[-1]])
    assert after.special_tokens_map == before.special_tokens_map

    field, general = results["corpora"]["field"], results["held_out"]["general"]
    assert field["tokens_after"] < field["tokens_before"]
    assert general["tokens_after"] == general["tokens_before"] > 0
    assert field["tokens_left_out"] == 0
    assert config.run(context(place, "again")) == fingerprint


def test_an_old_token_that_no_merge_led_to_is_told_of(tmp_path):
    place = make("gpt2", tmp_path, unmerged="Ġmodel")
    stage("gpt2").run(context(place))
    results = json.loads((place / "extend" / "results.json").read_text())
    assert results["old_tokens_now_reached"] == ["Ġmodel"]
    general = results["held_out"]["general"]
    assert general["tokens_after"] < general["tokens_before"]


def test_a_head_that_the_model_lacks_is_told_of(tmp_path):
    place = make("bert", tmp_path)
    AutoModelForMaskedLM.from_pretrained(place / "model").bert.save_pretrained(place / "model")
    stage("bert").run(context(place))
    results = json.loads((place / "extend" / "results.json").read_text())
    assert "cls.predictions.bias" in results["head_made_afresh"]
    assert not export_problems(place / "extend" / "export")


def check_rows(old, new, results, ids):
    """Old rows bit by bit; each new one the mean of its pieces'."""
    assert torch.equal(new[: len(old)], old)
    for word in results["words"]:
        pieces = [ids[piece] for piece in word["pieces"]]
        torch.testing.assert_close(new[word["id"]], old[pieces].mean(0))


def test_the_export_is_a_model_and_a_tokenizer_for_later_stages(tmp_path):
    place = make("bert", tmp_path)
    config = stage("bert")
    config.run(context(place))
    later = PretrainedModel(location=str(place / "extend" / "export"))
    loaded = later.build(Path, "masked_lm", 0)
    assert loaded.model.config.vocab_size == len(loaded.tokenizer)
    shards(place / "anew", place / "extend" / "export", FIELD)
    sha256 = tokenizer_record(place / "extend" / "export").sha256
    later.check_tokenizer(lambda location: True, Path, sha256)
    assert sha256 != tokenizer_sha256(place / "tokenizer")
    again = VocabularyStage(
        model=later,
        architecture="masked_lm",
        corpora={"field": str(place / "anew")},
        add=2,
        min_count=3,
    )
    with pytest.raises(DataError, match="no word of several tokens occurs 1000 times"):
        again.model_copy(update={"min_count": 1000}).run(context(place, "twice"))
    (place / "extend" / "export" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="damaged"):
        again.run(context(place, "twice"))


def test_rows_that_no_id_used_are_used_first(tmp_path):
    place = make("bert", tmp_path)
    model = AutoModelForMaskedLM.from_pretrained(place / "model")
    rows = model.config.vocab_size
    model.resize_token_embeddings(rows + 2, mean_resizing=False)
    model.save_pretrained(place / "model")
    stage("bert").run(context(place))
    results = json.loads((place / "extend" / "results.json").read_text())
    assert results["embeddings"] == {"rows_before": rows + 2, "rows_after": rows + 3}
    assert results["words"][0]["id"] == rows


def test_shards_of_another_tokenizer_are_refused(tmp_path):
    place = make("bert", tmp_path)
    config_of("bpe", place / "x").build(place / "other", Path, texts)
    shards(place / "strange", place / "other", FIELD)
    config = stage("bert").model_copy(update={"corpora": {"strange": "stage:base/strange"}})
    with pytest.raises(DataError, match="prepare the data with this tokenizer"):
        config.check(context(place))
    with pytest.raises(DataError, match="prepare the corpus with the tokenizer of the model"):
        config.run(context(place))


RECIPE = """
name: extend
output: {output}
stages:
  data:
    kind: prepare
    tokenizer: {{name: pretrained, location: {model}}}
    corpora:
      field: {{sources: [{{name: jsonl, path: {texts}}}]}}
  extend:
    kind: vocabulary
    model: {{location: {model}}}
    architecture: masked_lm
    corpora: {{field: "stage:data/corpora/field/train"}}
    add: 2
    min_count: 3
  anew:
    kind: prepare
    tokenizer: {{name: pretrained, location: "stage:extend/export"}}
    corpora:
      field: {{sources: [{{name: jsonl, path: {texts}}}]}}
"""


def test_a_recipe_with_the_stage(tmp_path):
    place = make("bert", tmp_path)
    lines = [json.dumps({"text": text}) + "\n" for text in FIELD]
    (place / "field.jsonl").write_text("".join(lines))
    path = place / "recipe.yaml"
    values = {"output": place / "run", "model": place / "model", "texts": place / "field.jsonl"}
    path.write_text(RECIPE.format(**values))
    recipe = load_recipe(path)
    made: dict[str, Artifact] = {}
    for name, config in recipe.stages.items():
        folder = place / "run" / name
        folder.mkdir(parents=True)
        here = StageContext(name, folder, recipe.seed, name, dict(made))
        config.check(here)
        made[name] = Artifact(folder, config.run(here))
    results = json.loads((made["extend"].folder / "results.json").read_text())
    expected = results["corpora"]["field"]["tokens_after"]
    manifest = json.loads(
        (made["anew"].folder / "corpora" / "field" / "train" / "manifest.json").read_text()
    )
    assert sum(shard["tokens"] for shard in manifest["shards"]) == expected
    assert manifest["tokenizer"]["sha256"] == results["tokenizer"]["sha256_after"]
