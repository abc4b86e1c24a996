"""Tokenizers, and files as Megatron-LM's builder lays them out."""

import json
import struct

import numpy as np
import pytest

from data_pipeline.tokenization import Encoder, load_backend

WORDS = [
    "the",
    "model",
    "of",
    "a",
    "layer",
    "trains",
    "tensors",
    "gradients",
    "and",
    "parameters",
    "don't",
    "isn't",
    "模型",
    "训练",
]


def texts(count=30, seed=0):
    rng = np.random.default_rng(seed)
    return [
        ". ".join("The " + " ".join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(3)) + "."
        for _ in range(count)
    ]


@pytest.fixture(scope="session")
def causal(tmp_path_factory):
    """A byte-level BPE tokenizer that ends documents with <eos>, as those of causal models do."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("causal")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<eos>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(texts(), trainer)
    backend.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def encoded(folder, *, eos=True, count=30, seed=0):
    """Ids of documents, by the tokenizer in ``folder``."""
    found = Encoder(folder).encode(texts(count, seed))
    ends = np.cumsum(found.lengths)[:-1]
    last = [load_backend(folder).token_to_id("<eos>")] if eos else []
    return [np.concatenate([each, last]) for each in np.split(found.tokens.astype(int), ends)]


def write_pair(stem, sequences, *, marks=None, dtype="<u2", code=8, modes=b""):
    """Files by the format's description; ``marks``: first sequence of each document, then all."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    lengths = np.array([len(each) for each in sequences], "<i4")
    size = np.dtype(dtype).itemsize
    pointers = (np.cumsum(lengths, dtype="<i8") - lengths) * size
    marks = np.array(marks if marks is not None else range(len(sequences) + 1), "<i8")
    header = struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, code, len(lengths), len(marks))
    body = lengths.tobytes() + pointers.astype("<i8").tobytes() + marks.tobytes() + modes
    stem.with_name(f"{stem.name}.idx").write_bytes(header + body)
    tokens = np.concatenate([np.zeros(0), *sequences]).astype(dtype)
    stem.with_name(f"{stem.name}.bin").write_bytes(tokens.tobytes())
