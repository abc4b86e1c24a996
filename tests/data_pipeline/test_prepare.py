"""The offline stage, from files to shards: exact, repeatable, and clear about what it lacks."""

import errno
import json
import random
from pathlib import Path

import pytest
from pydantic import ValidationError

from configs.errors import DataError, RecipeError, ResourceError
from configs.stage import Artifact, StageContext
from data_pipeline import prepare
from data_pipeline.cleaning import Splitter
from data_pipeline.prepare import PrepareStage
from data_pipeline.preparing import chunks, job, shards, state
from data_pipeline.shards import ShardedDataset
from data_pipeline.tokenization import load_backend, tokenizer_sha256

LETTERS = "aeiounrstlk"


def text(rng):
    words = ["".join(rng.choices(LETTERS, k=rng.randint(1, 6))) for _ in range(rng.randint(3, 25))]
    return " ".join(words) + "."


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def files(tmp_path):
    rng = random.Random(0)
    general = [{"id": f"d{i}", "text": text(rng), "group": f"g{i // 3}"} for i in range(120)]
    general += [general[i] | {"id": f"again{i}", "group": f"copy{i}"} for i in range(0, 120, 4)]
    general += [{"id": "blank", "text": " \n", "group": "blank"}]
    domain = [{"id": f"t{i}", "text": text(rng), "group": f"file{i % 8}"} for i in range(60)]
    task = [{"text": row["text"]} for row in domain[::5]] + [{"text": text(rng)}]
    for name, rows in (("general", general), ("domain", domain), ("task", task)):
        write_rows(tmp_path / f"{name}.jsonl", rows)
    (tmp_path / "groups.json").write_text(json.dumps({"held_out": ["file1", "file2"]}))
    return tmp_path


def recipe(files, **values):
    fields = {"id": "id", "group": "group"}
    corpora = {
        "general": {
            "sources": [{"name": "jsonl", "path": f"{files}/general.jsonl", "fields": fields}],
            "split": {"held_out": 0.25},
        },
        "domain": {
            "sources": [{"name": "jsonl", "path": f"{files}/domain.jsonl", "fields": fields}],
            "split": {"groups": f"{files}/groups.json"},
        },
        "task": {"sources": [{"name": "jsonl", "path": f"{files}/task.jsonl"}]},
    }
    tokenizer = {"name": "wordpiece", "vocabulary_size": 60, "corpora": ["general"]}
    given = {"kind": "prepare", "tokenizer": tokenizer, "corpora": corpora, "shard_tokens": 500}
    return PrepareStage.model_validate(given | values)


def context(folder, key="key", **inputs):
    folder.mkdir(parents=True, exist_ok=True)
    return StageContext("prepare", folder, 7, key, inputs)


def made(folder):
    """Every file below the folder, with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def texts_of(folder, name):
    """Tokens of each document as text: the alphabet is known whole, so nothing is lost."""
    backend = load_backend(folder / "tokenizer")
    data = ShardedDataset.open(folder / "corpora" / name, verify="digests")
    return [backend.decode(data.tokens(i).tolist()).replace(" .", ".") for i in range(len(data))]


def rows_of(files, name):
    return [json.loads(line) for line in (files / f"{name}.jsonl").read_text().splitlines()]


def test_every_document_goes_where_it_belongs_once(files, tmp_path):
    stage, folder = recipe(files), tmp_path / "run"
    stage.check(context(folder))
    stage.run(context(folder))

    splitter = Splitter(7, share=0.25)
    general = rows_of(files, "general")[:-1]
    held = [r["text"] for r in general if splitter.side(r["group"]) == "held_out"]
    train = [r["text"] for r in general if splitter.side(r["group"]) == "train"]
    assert texts_of(folder, "general/held_out") == list(dict.fromkeys(held))
    assert texts_of(folder, "general/train") == [t for t in dict.fromkeys(train) if t not in held]

    domain = rows_of(files, "domain")
    held = [r["text"] for r in domain if r["group"] in {"file1", "file2"}]
    assert texts_of(folder, "domain/held_out") == held
    assert texts_of(folder, "domain/train") == [r["text"] for r in domain if r["text"] not in held]

    # What one corpus holds out is read in no other one.
    task = [r["text"] for r in rows_of(files, "task")]
    assert set(task) & set(held)
    assert texts_of(folder, "task/train") == [t for t in task if t not in held]
    assert not (folder / "corpora" / "task" / "held_out").exists()
    assert not (folder / ".prepare").exists()


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.processes)])
def test_excluded_texts_are_not_trained_on(files, tmp_path, processes):
    rows = rows_of(files, "domain")
    train = [r["text"] for r in rows if r["group"] not in {"file1", "file2"}]
    contained = "the text of a test which is long enough to be looked for inside other documents"
    letters = contained.replace(" ", "\n")
    held = [{"id": f"h{n}", "text": f"held {n}", "group": "file1"} for n in range(2)]
    written = [*train, f"before it: {letters}, after it", "last"]
    added = [{"id": f"w{n}", "text": text, "group": "file9"} for n, text in enumerate(written)]
    write_rows(files / "domain.jsonl", [*held, *added])
    out = [{"text": contained}, {"text": train[1].upper() + "!"}, {"text": "held 0"}]
    write_rows(files / "test.jsonl", out)
    corpora = recipe(files).model_dump()["corpora"]
    corpora["domain"]["decontaminate"] = {"against": [str(files / "test.jsonl")]}
    stage, folder = recipe(files, corpora=corpora, processes=processes), tmp_path / "run"
    stage.check(context(folder))
    fingerprint = stage.run(context(folder))

    expected = len(dict.fromkeys(train)) - 1 + len(["last"])
    data = ShardedDataset.open(folder / "corpora" / "domain" / "train")
    removed = data.manifest.provenance["removed"]
    assert (len(data), removed) == (expected, {"decontaminate": {"contained": 1, "equal": 1}})
    held_out = ShardedDataset.open(folder / "corpora" / "domain" / "held_out")
    assert (len(held_out), held_out.manifest.provenance["removed"]) == (2, {})
    assert train[1] not in texts_of(folder, "domain/train")
    write_rows(files / "test.jsonl", out[1:])
    assert stage.run(context(folder)) != fingerprint
    assert len(texts_of(folder, "domain/train")) == expected + 1


def test_check_names_a_missing_file_of_what_is_excluded(files, tmp_path):
    corpora = recipe(files).model_dump()["corpora"]
    corpora["task"]["decontaminate"] = {"against": ["stage:rows/test.jsonl", "no/such.jsonl"]}
    with pytest.raises(DataError, match=r"nothing at no/such\.jsonl"):
        recipe(files, corpora=corpora).check(context(tmp_path / "run"))


def test_manifests_tell_where_everything_comes_from(files, tmp_path):
    stage, folder = recipe(files), tmp_path / "run"
    fingerprint = stage.run(context(folder))
    data = ShardedDataset.open(folder / "corpora" / "general" / "train")
    assert len(data.shards) > 1
    assert data.manifest.tokenizer.sha256 == tokenizer_sha256(folder / "tokenizer")
    assert (data.manifest.tokenizer.prefix, data.manifest.tokenizer.suffix) == ([2], [3])
    provenance = data.manifest.provenance
    assert provenance["sources"][0]["name"] == "jsonl"
    counts = provenance["counts"]
    assert counts["documents_read"] == len(rows_of(files, "general"))
    assert counts["empty"] == 1
    assert counts["on_this_side"] - counts["duplicates_left_out"] == len(data)
    assert counts["duplicates_left_out"] > 0
    assert counts["characters"] == sum(map(len, texts_of(folder, "general/train")))
    assert stage.run(context(tmp_path / "other")) == fingerprint


@pytest.mark.processes
def test_the_number_of_processes_changes_nothing(files, tmp_path, monkeypatch):
    one, two = tmp_path / "one", tmp_path / "two"
    monkeypatch.setattr("data_pipeline.sources.lines.PART_BYTES", 1000)
    monkeypatch.setattr("data_pipeline.sources.lines.BLOCK", 700)
    assert recipe(files, processes=1).run(context(one)) == recipe(files, processes=2).run(
        context(two)
    )
    assert made(one) == made(two)
    assert len(made(one)) > 15


def test_a_finished_stage_is_not_made_again(files, tmp_path, monkeypatch):
    stage, folder = recipe(files), tmp_path / "run"
    fingerprint = stage.run(context(folder))
    monkeypatch.setattr(job, "perform", None)
    assert stage.run(context(folder)) == fingerprint


@pytest.mark.parametrize(
    "damage", ["corpora/domain/train/shard-00000.bin", "tokenizer/tokenizer.json"]
)
def test_what_is_lost_is_made_again(files, tmp_path, damage):
    stage, folder = recipe(files), tmp_path / "run"
    fingerprint = stage.run(context(folder))
    before = made(folder)
    (folder / damage).unlink()
    assert stage.run(context(folder)) == fingerprint
    assert made(folder) == before


def test_other_sources_or_another_key_are_made_anew(files, tmp_path):
    stage, folder = recipe(files), tmp_path / "run"
    first = stage.run(context(folder))
    rows = rows_of(files, "general")
    write_rows(files / "general.jsonl", rows[1:])
    second = stage.run(context(folder))
    third = recipe(files, shard_tokens=100).run(context(folder, key="other"))
    assert len({first, second, third}) == 3
    fresh = tmp_path / "fresh"
    recipe(files, shard_tokens=100).run(context(fresh, key="other"))
    assert made(folder) == made(fresh)


def test_an_interrupted_run_goes_on_where_it_was(files, tmp_path, monkeypatch):
    stage, folder, whole = recipe(files), tmp_path / "run", tmp_path / "whole"
    stage.run(context(whole))
    write = shards.write_shard

    def interrupted(target, number, *rest):
        if number == 1 and target.match("domain/train"):
            raise KeyboardInterrupt
        return write(target, number, *rest)

    monkeypatch.setattr(shards, "write_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stage.run(context(folder))
    assert (folder / ".prepare").exists()
    written = []
    monkeypatch.setattr(shards, "write_shard", lambda *a: written.append(a[:2]) or write(*a))
    monkeypatch.setattr(chunks, "encode_block", None)
    stage.run(context(folder))
    assert written[0] == (folder / "corpora/domain/train", 1)
    assert made(folder) == made(whole)


def test_a_full_disk_is_told_as_such(files, tmp_path, monkeypatch):
    def full(*given):
        raise OSError(errno.ENOSPC, "No space left on device", "shard-00000.bin")

    monkeypatch.setattr(shards, "write_shard", full)
    with pytest.raises(ResourceError, match=r"shard-00000\.bin: No space left .*make room"):
        recipe(files).run(context(tmp_path / "run"))


def test_rejected_lines_are_listed(files, tmp_path):
    path, folder = files / "task.jsonl", tmp_path / "run"
    path.write_text(path.read_text() + '{"txt": 1}\n')
    stage = recipe(files)
    with pytest.raises(DataError, match=r"task\.jsonl:14: no field 'text'.*max_rejected"):
        stage.run(context(folder))
    assert made(folder) == {}
    corpora = stage.model_dump()["corpora"]
    corpora["task"]["sources"][0]["max_rejected"] = 1
    recipe(files, corpora=corpora).run(context(folder))
    (line,) = map(json.loads, (folder / state.REJECTED).read_text().splitlines())
    assert line["corpus"] == "task"
    assert line["where"].endswith("task.jsonl:14")


EMPTY = {
    "no document": ([], None, "hold no document"),
    "only space": ([{"text": " "}], None, "nothing is left for train: all .* are empty"),
    "nothing held out": ([{"text": "one"}], {"held_out": 0.01}, "for held_out: its groups are too"),
    "no such group": ([{"text": "one"}], "groups.json", "not one of the groups in .*groups.json"),
}


@pytest.mark.parametrize("case", EMPTY)
def test_an_empty_side_is_an_error_and_nothing_is_written(files, tmp_path, case):
    rows, split, expected = EMPTY[case]
    write_rows(files / "task.jsonl", rows)
    corpora = recipe(files).model_dump()["corpora"]
    corpora["task"]["split"] = {"groups": str(files / split)} if isinstance(split, str) else split
    with pytest.raises(DataError, match=f"corpus task: .*{expected}"):
        recipe(files, corpora=corpora).run(context(tmp_path / "run"))
    assert set(made(tmp_path / "run")) <= {state.REMOVED}


@pytest.mark.parametrize("missing", ["general.jsonl", "groups.json"])
def test_check_names_a_missing_file(files, tmp_path, missing):
    (files / missing).unlink()
    with pytest.raises(DataError, match=f"nothing at .*{missing}"):
        recipe(files).check(context(tmp_path / "run"))


def test_check_names_a_missing_tokenizer(files, tmp_path):
    tokenizer = {"name": "pretrained", "location": "./no/such/tokenizer"}
    with pytest.raises(DataError, match="no/such/tokenizer"):
        recipe(files, tokenizer=tokenizer).check(context(tmp_path / "run"))


def test_check_waits_for_earlier_stages(files, tmp_path):
    corpora = recipe(files).model_dump()["corpora"]
    corpora["task"]["sources"][0]["path"] = "stage:rows/train.jsonl"
    corpora["domain"]["split"] = {"groups": "stage:rows/groups.json"}
    stage = recipe(files, corpora=corpora)
    stage.check(context(tmp_path / "run"))
    rows = {"rows": Artifact(tmp_path / "rows", "f")}
    with pytest.raises(DataError, match=r"groups\.json"):
        stage.check(context(tmp_path / "run", **rows))


def test_a_tokenizer_of_an_earlier_stage(files, tmp_path):
    recipe(files).run(context(tmp_path / "first"))
    first = {"first": Artifact(tmp_path / "first", "f")}
    tokenizer = {"name": "pretrained", "location": "stage:first/tokenizer"}
    recipe(files, tokenizer=tokenizer).run(context(tmp_path / "second", **first))
    one, two = (
        ShardedDataset.open(tmp_path / n / "corpora" / "task" / "train")
        for n in ("first", "second")
    )
    assert one.manifest.tokenizer == two.manifest.tokenizer
    assert one.tokens(0).tolist() == two.tokens(0).tolist()


def test_wrong_recipes_are_refused(files, tmp_path):
    with pytest.raises(ValidationError, match="no corpus 'other'"):
        recipe(files, tokenizer={"name": "wordpiece", "vocabulary_size": 60, "corpora": ["other"]})
    with pytest.raises(ValidationError, match="corpora"):
        recipe(files, corpora={"../out": recipe(files).model_dump()["corpora"]["task"]})
    small = {"name": "wordpiece", "vocabulary_size": 16, "corpora": ["general"]}
    with pytest.raises(RecipeError, match="vocabulary_size"):
        recipe(files, tokenizer=small).run(context(tmp_path / "run"))


def test_neither_torch_nor_transformers_is_imported(files):
    import subprocess
    import sys

    code = (
        "import sys, data_pipeline.prepare; "
        "assert not {'torch', 'transformers', 'tokenizers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(prepare.__file__).parents[1])
