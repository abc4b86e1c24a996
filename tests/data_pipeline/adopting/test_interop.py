"""Other projects' readers and writers, on the same files."""

import importlib.util
import json
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest

from configs.errors import RecipeError
from data_pipeline.adopting import Adoption, adopt
from data_pipeline.shards import ShardedDataset, ShardWriter, describe, token_dtype
from data_pipeline.shards.export import export_shards
from data_pipeline.tokenization import tokenizer_record
from launcher import cli
from tests.data_pipeline.adopting.conftest import encoded, texts


@pytest.fixture
def megatron(monkeypatch):
    """megatron.core.datasets.indexed_dataset, without the rest of the package, which takes 20 s."""
    spec = importlib.util.find_spec("megatron")
    if spec is None or not (Path(next(iter(spec.submodule_search_locations))) / "core").is_dir():
        pytest.skip("megatron-core is not installed (pip install --no-deps megatron-core==0.16.1)")
    root = Path(next(iter(spec.submodule_search_locations)))
    for name in ("megatron.core", "megatron.core.datasets", "megatron.core.utils"):
        module = types.ModuleType(name)
        module.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        monkeypatch.setitem(sys.modules, name, module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import megatron.core._rank_utils as ranks

        sys.modules["megatron.core.utils"].log_single_rank = ranks.log_single_rank
        return importlib.import_module("megatron.core.datasets.indexed_dataset")


@pytest.fixture
def deepspeed_reader():
    """DeepSpeed's copy of the same format; the file alone, as the package starts up slowly."""
    spec = importlib.util.find_spec("deepspeed")
    place = Path(next(iter(spec.submodule_search_locations))) / "runtime" / "data_pipeline"
    file = place / "data_sampling" / "indexed_dataset.py"
    loaded = importlib.util.spec_from_file_location("deepspeed_indexed_dataset", file)
    module = importlib.util.module_from_spec(loaded)
    loaded.loader.exec_module(module)
    return module.MMapIndexedDataset


def write_shards(folder, causal, *, wide=False):
    record = tokenizer_record(causal)
    if wide:
        record = record.model_copy(update={"vocabulary_size": 100_000})
    documents = encoded(causal, eos=False)
    with ShardWriter(folder, record, shard_tokens=200) as writer:
        for document in documents:
            nothing = np.zeros(len(document), np.uint8)
            writer.write(document, np.array([len(document)], np.int32), nothing)
        writer.finish({})
    return documents


def stems(folder):
    return [str(path.with_suffix("")) for path in sorted(folder.glob("*.idx"))]


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("mapped", [False, True])
def test_megatron_reads_our_shards(tmp_path, causal, megatron, wide, mapped):
    documents = write_shards(tmp_path, causal, wide=wide)
    data = ShardedDataset.open(tmp_path)
    assert data.shards[0].index.dtype == token_dtype(100_000 if wide else 400)
    theirs = [megatron.IndexedDataset(stem, mmap=mapped) for stem in stems(tmp_path)]
    assert len(theirs) > 1
    found = [each[i] for each in theirs for i in range(len(each))]
    assert [ids.tolist() for ids in found] == [document.tolist() for document in documents]
    for each, shard in zip(theirs, data.shards, strict=True):
        assert each.document_indices.tolist() == shard.index.documents.tolist()


@pytest.mark.parametrize("vocabulary", [400, 100_000])
@pytest.mark.parametrize("sentences", [False, True])
def test_we_read_what_megatrons_builder_writes(tmp_path, causal, megatron, vocabulary, sentences):
    import torch

    documents = encoded(causal)
    stem = tmp_path / "corpus_text_document"
    dtype = megatron.DType.optimal_dtype(vocabulary)
    builder = megatron.IndexedDatasetBuilder(f"{stem}.bin", dtype=dtype)
    parts = []
    for document in documents:
        cut = [document[:4], document[4:4], document[4:]] if sentences else [document]
        parts += [part for part in cut if len(part)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it converts tensors as numpy 1 did
            builder.add_document(torch.tensor(document), [len(part) for part in cut])
    builder.finalize(f"{stem}.idx")
    manifest = adopt(Adoption(tmp_path, causal))
    data = ShardedDataset.open(tmp_path, verify="digests")
    assert manifest.dtype == ("uint16" if vocabulary == 400 else "int32")
    assert manifest.level == ("sentence" if sentences else "document")
    assert [data.tokens(i).tolist() for i in range(len(data))] == [p.tolist() for p in parts]
    assert (data.manifest.shards[0].documents, manifest.tokenizer.suffix) == (30, [])


def test_we_read_what_datatrove_writes(tmp_path, causal, monkeypatch):
    pytest.importorskip("datatrove", reason="datatrove is not installed (onward[cleaning])")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from datatrove.data import Document
        from datatrove.pipeline.tokens.megatron_tokenizer import MegatronDocumentTokenizer

        step = MegatronDocumentTokenizer(
            str(tmp_path), tokenizer_name_or_path=str(causal / "tokenizer.json"), eos_token="<eos>"
        )
        step.run((Document(text=text, id=str(i)) for i, text in enumerate(texts())), 0, 1)
    manifest = adopt(Adoption(tmp_path, causal, annotate=True))
    data = ShardedDataset.open(tmp_path, verify="digests")
    assert manifest.shards[0].name == "00000_tokens"
    assert manifest.tokenizer.suffix == []
    expected = [document.tolist() for document in encoded(causal)]
    assert [data.tokens(i).tolist() for i in range(len(data))] == expected


@pytest.mark.parametrize("wide", [False, True])
def test_deepspeed_reads_exported_shards(tmp_path, causal, deepspeed_reader, wide):
    documents = write_shards(tmp_path / "shards", causal, wide=wide)
    out = tmp_path / "out"
    made = export_shards(tmp_path / "shards", out, "int32")
    assert describe(out)["tokens"] == made.tokens == sum(map(len, documents))
    theirs = [deepspeed_reader(stem, skip_warmup=True) for stem in stems(out)]
    found = [each[i] for each in theirs for i in range(len(each))]
    assert [ids.tolist() for ids in found] == [document.tolist() for document in documents]
    assert {ids.dtype for ids in found} == {np.dtype("int32")}
    for each, shard in zip(theirs, made.shards, strict=True):
        assert each.doc_idx.tolist() == list(range(shard.documents + 1))


def test_why_uint16_is_not_exported(tmp_path, causal, deepspeed_reader):
    documents = write_shards(tmp_path / "shards", causal)
    with pytest.raises(RecipeError, match="DeepSpeed, which reads code 8 as uint64, without an er"):
        export_shards(tmp_path / "shards", tmp_path / "out", "uint16")
    misread = deepspeed_reader(stems(tmp_path / "shards")[0], skip_warmup=True)
    assert misread[0].dtype == np.uint64
    assert misread[0].tolist() != documents[0].tolist()


@pytest.mark.parametrize("dtype", ["int64", "float"])
def test_no_other_kind_is_exported(tmp_path, causal, dtype):
    write_shards(tmp_path / "shards", causal)
    with pytest.raises(RecipeError, match=f"--dtype {dtype}: .* expected int32"):
        export_shards(tmp_path / "shards", tmp_path / "out", dtype)


def test_the_verb_exports_into_a_new_folder(tmp_path, causal, monkeypatch, capsys):
    write_shards(tmp_path / "shards", causal)
    words = ["onward", "export-shards", str(tmp_path / "shards"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", [*words, "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert json.loads(capsys.readouterr().out)["dtype"] == "int32"
    with pytest.raises(RecipeError, match="not empty"):
        export_shards(tmp_path / "shards", tmp_path / "out", "int32")
