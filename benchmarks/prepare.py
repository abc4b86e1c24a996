"""D2: prepare, end to end, against the tokenizers library's bare encode_batch on the same texts."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

PAIRS = 1
PROCESSES = 2
BATCH = 1000
RIVALS = ("encode_batch", "datasets")
TEXT = "ONWARD_BENCHMARK_TEXT"
"""Environment variable: a jsonl file with a field ``text``; without it, installed documentation."""


def measure() -> dict[str, Any]:
    """CPU time of encode_batch over that of the whole stage; wall time over all cores beside it.

    Read, normalise, tokenise, annotate, write and checksum, with a WordPiece and a byte-level BPE
    vocabulary that were trained before. Each trial is a process of its own; imports are counted.
    ``marginal_ratio`` leaves out what does not grow with the text: the stage's time on the first
    tenth of it is taken off, and a tenth of the bound's.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        texts = _write_texts(folder / "texts.jsonl")
        details = []
        for kind in ("wordpiece", "bpe"):
            _train(kind, folder)
            (folder / "tenth" / kind).symlink_to(folder / kind)
            details += [_pair(kind, rival, folder) | texts for rival in RIVALS]
    value = min(line["ratio"] for line in details if line["against"] == "encode_batch")
    return {
        "id": "D2",
        "value": value,
        "target": 0.9,
        "reached": value >= 0.9,
        "details": details,
    }


def _pair(kind: str, rival: str, folder: Path) -> dict[str, Any]:
    seen: dict[str, list[dict[str, float]]] = {"stage": [], rival: []}
    for turn in range(PAIRS):
        order = (rival, "stage", "stage", rival) if turn % 2 else ("stage", rival, rival, "stage")
        for name in order:
            seen[name].append(_trial(name, kind, folder))
    ratios = [
        theirs["cpu_s"] / ours["cpu_s"]
        for ours, theirs in zip(seen["stage"], seen[rival], strict=True)
    ]
    small = median(_trial("stage", kind, folder / "tenth")["cpu_s"] for _ in range(2))
    grown = [
        0.9 * theirs["cpu_s"] / (ours["cpu_s"] - small)
        for ours, theirs in zip(seen["stage"], seen[rival], strict=True)
    ]
    tokens = seen["stage"][0]["tokens"]
    # The rival encode_batch runs in one process: its wall time over all cores is the bound.
    cores = PROCESSES if rival == "encode_batch" else 1
    walls = [
        theirs["wall_s"] / cores / ours["wall_s"]
        for ours, theirs in zip(seen["stage"], seen[rival], strict=True)
    ]
    return {
        "tokenizer": kind,
        "against": rival,
        "ratio": round(median(ratios), 3),
        "lowest": round(min(ratios), 3),
        "highest": round(max(ratios), 3),
        "marginal_ratio": round(median(grown), 3),
        "wall_ratio": round(median(walls), 3),
        "stage_mtok_per_cpu_s": round(tokens / median(t["cpu_s"] for t in seen["stage"]) / 1e6, 3),
        "rival_mtok_per_cpu_s": round(tokens / median(t["cpu_s"] for t in seen[rival]) / 1e6, 3),
        "tokens": int(tokens),
    }


def _trial(name: str, kind: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.prepare", name, kind, str(folder)]
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _write_texts(path: Path) -> dict[str, Any]:
    characters = documents = 0
    with path.open("w", encoding="utf-8") as stream:
        for text in _texts():
            stream.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            characters += len(text)
            documents += 1
    tenth = path.parent / "tenth"
    tenth.mkdir()
    with (
        path.open(encoding="utf-8") as whole,
        (tenth / path.name).open("w", encoding="utf-8") as some,
    ):
        some.writelines(_up_to(whole, characters // 10))
    return {"documents": documents, "characters": characters}


def _up_to(lines: Iterable[str], characters: int) -> Iterator[str]:
    """The first lines, until they hold so many characters."""
    for line in lines:
        if characters <= 0:
            return
        characters -= len(json.loads(line)["text"])
        yield line


def _texts() -> Iterator[str]:
    given = os.environ.get(TEXT)
    if given:
        with Path(given).open(encoding="utf-8") as stream:
            for line in stream:
                yield json.loads(line)["text"]
        return
    from data_pipeline.sources import InstalledDocumentation

    packages = ["stdlib", "numpy", "torch", "transformers"]
    for document in InstalledDocumentation(packages=packages).documents(Path):
        yield document.text


def _train(kind: str, folder: Path) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    trainer: Any
    if kind == "wordpiece":
        backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer(lowercase=True)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        trainer = trainers.WordPieceTrainer(
            vocab_size=30_000, special_tokens=special, show_progress=False
        )
        names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    else:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=30_000, special_tokens=["<|endoftext|>"], show_progress=False
        )
        names = {"eos_token": "<|endoftext|>"}
    backend.train_from_iterator((json.loads(line)["text"] for line in _lines(folder)), trainer)
    target = folder / kind
    target.mkdir()
    backend.save(str(target / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"} | names
    (target / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def _lines(folder: Path) -> Iterator[str]:
    with (folder / "texts.jsonl").open(encoding="utf-8") as stream:
        yield from stream


def _stage(kind: str, folder: Path) -> dict[str, float]:
    begun = perf_counter(), 0.0
    from configs.stage import StageContext
    from data_pipeline.prepare import PrepareStage
    from data_pipeline.shards import ShardedDataset

    stage = PrepareStage.model_validate(
        {
            "tokenizer": {"name": "pretrained", "location": str(folder / kind)},
            "corpora": {
                "all": {"sources": [{"name": "jsonl", "path": str(folder / "texts.jsonl")}]}
            },
            "processes": PROCESSES,
        }
    )
    with tempfile.TemporaryDirectory(dir=folder) as out:
        stage.run(StageContext("prepare", Path(out), 1, "key", {}))
        tokens = ShardedDataset.open(Path(out) / "corpora" / "all" / "train").manifest.tokens
    return _taken(begun, tokens)


def _encode_batch(kind: str, folder: Path) -> dict[str, float]:
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(folder / kind / "tokenizer.json"))
    texts = [json.loads(line)["text"] for line in _lines(folder)]
    begun = perf_counter(), sum(os.times()[:4])
    batches = (texts[at : at + BATCH] for at in range(0, len(texts), BATCH))
    tokens = sum(
        len(one)
        for batch in batches
        for one in backend.encode_batch(batch, add_special_tokens=False)
    )
    # Only these calls count: reading and imports are none of the bound's business.
    return _taken(begun, tokens)


def _datasets(kind: str, folder: Path) -> dict[str, float]:
    begun = perf_counter(), 0.0
    from datasets import load_dataset
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder / kind))
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        data = load_dataset(
            "json", data_files=str(folder / "texts.jsonl"), cache_dir=cache, split="train"
        )
        done = data.map(
            lambda rows: {"input_ids": tokenizer(rows["text"], verbose=False)["input_ids"]},
            batched=True,
            remove_columns=["text"],
            num_proc=PROCESSES,
        )
        done.save_to_disk(f"{cache}/done")
        tokens = sum(map(len, done["input_ids"]))
    return _taken(begun, tokens)


def _taken(begun: tuple[float, float], tokens: int) -> dict[str, float]:
    wall, cpu = begun
    return {
        "tokens": tokens,
        "wall_s": perf_counter() - wall,
        "cpu_s": sum(os.times()[:4]) - cpu,
    }


def main() -> None:
    """One trial: prints tokens, CPU and wall seconds."""
    name, kind, folder = sys.argv[1:]
    work = {"stage": _stage, "encode_batch": _encode_batch, "datasets": _datasets}[name]
    print(json.dumps(work(kind, Path(folder))))


if __name__ == "__main__":
    main()
