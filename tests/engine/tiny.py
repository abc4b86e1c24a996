"""Tiny examples, tokenizers and learners for the engine's tests."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from data_pipeline.example import WORD_START, Example, ExampleKey
from engine.adaptation import FullTraining
from engine.learner import Learner
from engine.models import RandomModel
from engine.objectives import CausalLanguageModelling, MaskedLanguageModelling
from engine.protocols import Adaptation, Batch, Objective

VOCABULARY = 64
SPECIAL = {"pad": 0, "cls": 1, "sep": 2, "mask": 3, "unk": 4}
LENGTH = 24
SHAPES = (
    "bert_tiny",
    "roberta_tiny",
    "modernbert_tiny",
    "gpt2_tiny",
    "llama_tiny",
    "mixtral_tiny",
)
ENCODERS = SHAPES[:3]
DECODERS = SHAPES[3:]


def tokenizer_folder(folder: Path, size: int = VOCABULARY) -> Path:
    """A word-level tokenizer of ``size`` tokens, saved as transformers does."""
    names = {f"[{role.upper()}]": index for role, index in SPECIAL.items()}
    words = {f"w{index}": index for index in range(len(names), size)}
    backend = Tokenizer(WordLevel(names | words, unk_token="[UNK]"))
    roles = {f"{role}_token": f"[{role.upper()}]" for role in SPECIAL}
    PreTrainedTokenizerFast(tokenizer_object=backend, **roles).save_pretrained(folder)
    return folder


def example(sample: int, source: int = 0, lengths: Sequence[int] = (9, 7)) -> Example:
    """Random documents of these lengths in one row, then padding."""
    rng = np.random.default_rng((sample, source))
    tokens = np.zeros(LENGTH, np.int32)
    segments, positions = np.zeros_like(tokens), np.zeros_like(tokens)
    special = np.ones(LENGTH, np.bool_)
    start = 0
    for number, length in enumerate(lengths, start=1):
        here = slice(start, start + length)
        tokens[here] = [1, *rng.integers(5, VOCABULARY, length - 2), 2]
        segments[here], positions[here] = number, np.arange(length)
        special[start + 1 : start + length - 1] = False
        start += length
    annotations = np.where(special, 0, WORD_START).astype(np.uint8)
    key = ExampleKey(source=source, digest=17 + source, sample=sample, epoch=0)
    return Example(tokens, segments, positions, special, annotations, key)


def examples(first: int, count: int) -> list[Example]:
    """Rows of unequal document counts and lengths, from two sources in turn."""
    shapes = ((9, 7), (24,), (5,), (8, 8, 8))
    return [example(i, i % 2, shapes[i % len(shapes)]) for i in range(first, first + count)]


def learner(
    folder: Path,
    shape: str = "bert_tiny",
    adaptation: Adaptation | None = None,
    **changes: Any,
) -> Learner:
    """A tiny random model without dropout, and its objective."""
    from engine.models import read_shape

    tokenizer = tokenizer_folder(folder / "tokenizer")
    quiet = dict.fromkeys(dropouts(shape), 0.0)
    values = read_shape(shape) | quiet | changes
    goal = objective(shape)
    config = RandomModel(shape=values, tokenizer=str(tokenizer))
    model = config.build(Path, goal.architecture, seed=3).model
    return Learner((adaptation or FullTraining()).apply(model), goal)


def dropouts(shape: str) -> tuple[str, ...]:
    """The dropout rates in that architecture's config."""
    if shape.startswith("gpt2"):
        return ("attn_pdrop", "embd_pdrop", "resid_pdrop")
    if shape.startswith(("bert", "roberta")):
        return ("hidden_dropout_prob", "attention_probs_dropout_prob")
    return ()


def objective(shape: str) -> Objective:
    """The objective that fits the architecture."""
    if shape in DECODERS:
        return CausalLanguageModelling().build(SPECIAL, VOCABULARY)
    return MaskedLanguageModelling().build(SPECIAL, VOCABULARY)


def step_batches(
    goal: Objective, step: int, rank: int, world: int, accumulation: int, rows: int = 8
) -> list[Batch]:
    """This rank's micro-batches of a step: contiguous slices of one global batch."""
    mine = examples(step * rows, rows)[rank * rows // world : (rank + 1) * rows // world]
    size = len(mine) // accumulation
    return [
        goal.collate(mine[i * size : (i + 1) * size], seed=5, sources=2)
        for i in range(accumulation)
    ]


def seeded(seed: int = 0) -> None:
    torch.manual_seed(seed)
