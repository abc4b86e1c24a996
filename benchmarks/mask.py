"""D4: masking rows of 512 tokens on one core, and the whole collation against transformers' own."""

import tempfile
import warnings
from pathlib import Path
from statistics import median
from time import process_time
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from data_pipeline.rows import Rows

LENGTH, ROWS, BATCH, SEED = 512, 2048, 64, 5
VOCABULARY = 30_000
WORDS = 0.7
"""Share of tokens that begin a word."""
ROUNDS = 5
TARGETS = {"dynamic": 20.0, "whole_word": 10.0}
FASTER = 10.0


def measure() -> dict[str, Any]:
    """Tokens a CPU second of the masking policies; then of collation against the collators.

    A policy's time holds its generators (one a row) and its choice. Collation holds what is shown
    in the targets' places and the tensors, too; the collators are given rows without padding, and
    where words begin as they ask for it.
    """
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        rows = _rows(Path(place))
        details = [_policy(name, rows) | _collation(name, rows) for name in TARGETS]
    reached = all(
        line["choose_mtok_per_s"] >= line["target"] and line["times_the_collator"] >= FASTER
        for line in details
    )
    told = (
        f"{line['policy']} {line['choose_mtok_per_s']} Mtok/s, "
        f"{line['times_the_collator']} times the collator"
        for line in details
    )
    return {
        "id": "D4",
        "value": "; ".join(told),
        "target": "dynamic 20 Mtok/s, whole word 10 Mtok/s, 10 times the collators",
        "reached": reached,
        "details": details,
    }


def _policy(name: str, rows: "Rows") -> dict[str, Any]:
    from data_pipeline.masking import DynamicMasking, WholeWordMasking
    from data_pipeline.randomness import generators

    policy = DynamicMasking() if name == "dynamic" else WholeWordMasking()
    seen = []
    for _ in range(ROUNDS):
        begun = process_time()
        for at in range(0, ROWS, BATCH):
            part = rows[at : at + BATCH]
            policy.choose(part, generators(SEED, part.keys))
        seen.append(process_time() - begun)
    speed = ROWS * LENGTH / median(seen) / 1e6
    return {"policy": name, "choose_mtok_per_s": round(speed, 1), "target": TARGETS[name]}


def _collation(name: str, rows: "Rows") -> dict[str, Any]:
    from engine.objectives.mlm import MaskedLanguageModelling

    special = rows_special()
    config = MaskedLanguageModelling.model_validate({"masking": {"name": name}})
    objective: Any = config.build(special, VOCABULARY)
    collator = _collator(name)
    samples = [_sample(rows, at, name) for at in range(ROWS)]
    seen: dict[str, list[float]] = {"ours": [], "theirs": []}
    for turn in range(ROUNDS):
        order = ("ours", "theirs") if turn % 2 else ("theirs", "ours")
        for who in order:
            begun = process_time()
            for at in range(0, ROWS, BATCH):
                if who == "ours":
                    objective.collate(rows[at : at + BATCH], SEED, 1)
                else:
                    collator(samples[at : at + BATCH])
            seen[who].append(process_time() - begun)
    ratios = [theirs / ours for ours, theirs in zip(seen["ours"], seen["theirs"], strict=True)]
    million = ROWS * LENGTH / 1e6
    return {
        "collate_mtok_per_s": round(million / median(seen["ours"]), 1),
        "collator_mtok_per_s": round(million / median(seen["theirs"]), 2),
        "times_the_collator": round(median(ratios), 1),
        "lowest": round(min(ratios), 1),
        "highest": round(max(ratios), 1),
    }


def rows_special() -> dict[str, int]:
    """Ids by role of the made-up tokenizer."""
    return {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


def _rows(folder: Path) -> "Rows":
    """Rows from shards of made-up documents."""
    from data_pipeline.shards import ShardWriter, TokenizerRecord
    from data_pipeline.streaming import DataConfig, TokenStream

    draw = np.random.default_rng(SEED)
    lengths = np.clip(draw.lognormal(5.2, 0.8, 8000), 4, 4000).astype(np.int32)
    total = int(lengths.sum())
    record = TokenizerRecord(
        name="made up",
        sha256="0" * 64,
        vocabulary_size=VOCABULARY,
        special=rows_special(),
        prefix=[2],
        suffix=[3],
    )
    with ShardWriter(folder / "shards", record) as writer:
        words = (draw.random(total) < WORDS).astype(np.uint8)
        writer.write(draw.integers(5, VOCABULARY, total), lengths, words)
        writer.finish({})
    config = DataConfig.model_validate(
        {"length": LENGTH, "sources": {"all": {"shards": str(folder / "shards")}}}
    )
    rows = TokenStream.open(config, Path, SEED).examples(0, ROWS)
    # Made when first asked for: neither side is to pay for it.
    rows.special, rows.annotations, rows.segments, rows.positions  # noqa: B018
    return rows


def _sample(rows: "Rows", at: int, name: str) -> dict[str, Any]:
    row = rows[at]
    sample = {"input_ids": row.tokens.tolist(), "special_tokens_mask": row.special.tolist()}
    if name == "whole_word":
        # A word goes on where its offset is the end of the one before.
        begins = np.cumsum(1 + (row.annotations & 1).astype(np.int64))
        sample["offset_mapping"] = [(int(b), int(b) + 1) for b in begins]
    return sample


def _collator(name: str) -> Any:
    from tokenizers import Tokenizer, models
    from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
    vocabulary |= {f"w{number}": number for number in range(5, VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]")),
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return DataCollatorForLanguageModeling(
            tokenizer=tokenizer, whole_word_mask=name == "whole_word"
        )
