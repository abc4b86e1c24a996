"""Data sets that ``datasets`` reads: folders without a script, and names on the hub."""

from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from configs.errors import DataError
from data_pipeline.sources import DatasetsSource, datasets_library
from tests.data_pipeline.sources.formats import as_jsonl, as_parquet

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROWS = [{"text": f"第 {at}", "id": at, "more": {"a": [at]}} for at in range(10)]


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    for part in range(3):
        (root / f"train-{part}.parquet").write_bytes(as_parquet(ROWS[part * 3 : part * 3 + 3]))
    (root / "test.parquet").write_bytes(as_parquet(ROWS[9:]))
    return root


def texts(path, **values):
    return [d.text for d in DatasetsSource(path=str(path), **values).documents(Path)]


def test_a_split_of_a_folder_with_its_fields(folder):
    fields = {"id": "id", "metadata": ["more"]}
    source = DatasetsSource(path=str(folder), fields=fields)
    source.check(Path)
    found = list(source.documents(Path))
    assert [(d.text, d.id, d.metadata["more"]) for d in found] == [
        (f"第 {at}", str(at), f'{{"a": [{at}]}}') for at in range(9)
    ]
    assert texts(folder, split="test") == ["第 9"]
    assert [file.name for file in source.files(Path)] == [f"train-{at}.parquet" for at in range(3)]


def test_few_parts_keep_the_order(folder, monkeypatch):
    monkeypatch.setattr(datasets_library, "MOST_PARTS", 2)
    parts = DatasetsSource(path=str(folder)).parts(Path)
    assert len(parts) == 2
    read = list(chain.from_iterable(part.read() for part in parts))
    assert [d.text for d in read] == [row["text"] for row in ROWS[:9]]
    assert read[0].id == "train/00000:1"


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"split": "dev"}, r"no split 'dev'; it has train, test|Bad split: dev"),
        ({"config": "nope"}, r"BuilderConfig 'nope' not found"),
        ({"fields": {"text": "body"}}, r"no column 'body' \(columns: text, id, more\)"),
        ({"fields": {"text": "id"}}, "'id' is of type int64"),
    ],
)
def test_what_is_not_there_is_told(folder, values, told):
    with pytest.raises(DataError, match=told):
        texts(folder, **values)
    source = DatasetsSource(path=str(folder), **values)
    if "split" in values:
        with pytest.raises(DataError, match="no split 'dev'; it has train, test"):
            source.check(Path)


def test_a_script_is_never_run(folder):
    (folder / "data.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(DataError, match="scripts are no longer supported"):
        texts(folder)


def test_a_malformed_file_is_an_error_that_names_the_way_out(tmp_path):
    content = as_jsonl(ROWS)
    (tmp_path / "rows.jsonl").write_bytes(content + b'{"text": "cut')
    with pytest.raises(DataError, match=r"train: .*record by record by the sources jsonl, csv"):
        texts(tmp_path)


def test_settings_that_cannot_be_honoured(folder):
    with pytest.raises(ValidationError, match="no name on the hub, and folders have none"):
        DatasetsSource(path=str(folder), revision="main")
    with pytest.raises(ValidationError, match="pattern"):
        DatasetsSource(path="owner/name", split="train[:10%]")


@pytest.fixture
def hub(folder, monkeypatch):
    """A hub that knows one data set; what it was asked for."""
    import datasets
    from huggingface_hub import HfApi

    asked = []
    load = datasets.load_dataset

    def info(self, name, revision=None):
        asked.append((name, revision))
        return SimpleNamespace(sha=COMMIT)

    def loaded(path, **options):
        asked.append((path, options))
        return load(str(folder), split=options["split"], streaming=options["streaming"])

    monkeypatch.setattr(HfApi, "dataset_info", info)
    monkeypatch.setattr(datasets, "load_dataset", loaded)
    cached = (datasets_library._commit, datasets_library._streamed_once)
    for one in cached:
        one.cache_clear()
    yield asked
    for one in cached:
        one.cache_clear()


def test_a_revision_is_looked_up_once_and_all_parts_are_of_its_commit(hub):
    source = DatasetsSource(path="owner/name", revision="v1")
    assert source.locations == ()
    source.check(Path)
    assert len(list(source.documents(Path))) == 9
    assert hub == [
        ("owner/name", "v1"),
        (
            "owner/name",
            {"name": None, "split": "train", "revision": COMMIT, "streaming": True},
        ),
    ]


def test_the_digest_of_a_hub_data_set_is_its_commit_config_and_split(hub):
    digests = {
        DatasetsSource(path="owner/name", **values).digest(Path)
        for values in ({}, {"config": "en"}, {"split": "test"}, {"revision": "f" * 40})
    }
    assert len(digests) == 4
    same = DatasetsSource(path="owner/name", revision=COMMIT)
    assert same.digest(Path) == DatasetsSource(path="owner/name", revision="main").digest(Path)
    assert same.files(Path)[0].stamp() == {"commit": COMMIT}
    # A commit needs no looking up.
    assert [revision for _, revision in hub] == [None, "main"]


def test_without_a_hub_the_name_is_told(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("ONWARD_REMOTE_DEADLINE", "0.2")
    datasets_library._commit.cache_clear()
    with pytest.raises(DataError, match="hf://datasets/owner/name"):
        DatasetsSource(path="owner/name").check(Path)
