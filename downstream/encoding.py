"""Labelled rows as examples: one text a row, cut at a length, with its tokenizer's own specials."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from configs.errors import DataError
from data_pipeline.example import Example, ExampleKey
from downstream.tasks.rows import SIDES, Side, TaskData

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode(
    data: TaskData,
    tokenizer: "PreTrainedTokenizerBase",
    length: int,
    fingerprint: str,
    sides: Sequence[Side] = SIDES,
) -> dict[Side, list[Example]]:
    """Sides of a task as examples of at most ``length`` tokens, not padded."""
    digest = int(fingerprint[:16], 16) >> 1
    return {side: _encode_side(data, side, tokenizer, (length, digest)) for side in sides}


def padding_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The id for padding: the tokenizer's own, or 0, which nothing attends to."""
    own = tokenizer.pad_token_id
    return 0 if own is None else int(own)


def _encode_side(
    data: TaskData,
    side: Side,
    tokenizer: "PreTrainedTokenizerBase",
    limits: tuple[int, int],
) -> list[Example]:
    length, digest = limits
    rows = data.sides[side]
    encoded = tokenizer(
        [row.text for row in rows],
        truncation=True,
        max_length=length,
        return_special_tokens_mask=True,
        return_attention_mask=False,
    )
    examples = []
    for index, label in enumerate(data.label_ids(side)):
        tokens = encoded["input_ids"][index]
        if not tokens:
            msg = f"task: {side} row {rows[index].id!r} has no tokens; remove empty texts"
            raise DataError(msg)
        special = encoded["special_tokens_mask"][index]
        key = ExampleKey(source=0, digest=digest, sample=index, epoch=0)
        examples.append(_example(tokens, special, key, label))
    return examples


def _example(tokens: Sequence[int], special: Sequence[int], key: ExampleKey, label: int) -> Example:
    count = len(tokens)
    return Example(
        tokens=np.array(tokens, np.int32),
        segments=np.ones(count, np.int32),
        positions=np.arange(count, dtype=np.int32),
        special=np.array(special, np.bool_),
        annotations=np.zeros(count, np.uint8),
        key=key,
        label=label,
    )
