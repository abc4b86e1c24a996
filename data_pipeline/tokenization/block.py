"""One block of spooled texts, tokenised: what one process does at a time."""

import os
from dataclasses import dataclass
from functools import lru_cache
from itertools import compress
from pathlib import Path

import numpy as np

from data_pipeline.spool import Block
from data_pipeline.tokenization.encode import Encoded, Encoder


@dataclass(frozen=True, slots=True)
class EncodeTask:
    """What is to be done.

    Attributes:
        block: the texts.
        kept: one byte a text; 0 for those that are left out.
        tokenizer: its folder.
    """

    block: Block
    kept: bytes
    tokenizer: Path


@dataclass(frozen=True, slots=True)
class EncodedBlock:
    """What came of a block.

    Attributes:
        encoded: its texts in order, those without a token left out.
        texts: how many texts were kept.
        characters: how many those have.
    """

    encoded: Encoded
    texts: int
    characters: int


def encode_block(task: EncodeTask) -> EncodedBlock:
    """Tokenise the texts of a block that are kept."""
    texts = list(compress(task.block.read(), task.kept))
    encoded = _encoder(task.tokenizer).encode(texts)
    seen = encoded.lengths[encoded.lengths > 0].astype(np.int32)
    whole = Encoded(encoded.tokens, seen, encoded.annotations)
    return EncodedBlock(whole, len(texts), sum(map(len, texts)))


def one_thread() -> None:
    """Keep the tokenizers library to one thread, for a process that shares the work with others."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


@lru_cache(maxsize=1)
def _encoder(folder: Path) -> Encoder:
    return Encoder(folder)
