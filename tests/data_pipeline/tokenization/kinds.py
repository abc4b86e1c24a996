"""One small tokenizer of each kind that a recipe can make."""

import io
import random
from pathlib import Path

from data_pipeline.tokenization import (
    BPETokenizer,
    ModelFileTokenizer,
    PretrainedTokenizer,
    UnigramTokenizer,
    WordPieceTokenizer,
)

ENGLISH = (
    "the model of a layer trains wörld tensors, gradients and 3.14 parameters "
    "(see: loss_scale) don't isn't The Model"
)
CHINESE = "我们 在 北京大学 学习 自然语言 处理 。 模型 的 训练 数据 ， 很 重要 ！"
KINDS = ("wordpiece", "bpe", "roberta", "unigram", "folding", "llama", "pretrained")


def documents(count=150, seed=0):
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        texts.append(" ".join(rng.choices(ENGLISH.split(), k=30)) + ".")
        texts.append("".join(rng.choices(CHINESE.split(), k=20)))
        texts.append(texts[-2][:40] + texts[-1][:12] + "\n" + texts[-2][40:] + " 😀")
    return texts


def train_model(path, **values):
    """A .model file, as somebody else made it."""
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("\n".join(documents()).split("\n")),
        model_writer=written,
        minloglevel=2,
        num_threads=1,
        hard_vocab_limit=False,
        **values,
    )
    path.write_bytes(written.getvalue())


LLAMA = {
    "model_type": "bpe",
    "vocab_size": 500,
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
}


def config_of(kind, place):
    """A tokenizer's config; what it reads is made in the folder ``place``."""
    place.mkdir(parents=True, exist_ok=True)
    model = place / "a.model"
    if kind == "llama":
        train_model(model, **LLAMA)
    if kind == "pretrained":
        config_of("wordpiece", place).build(place / "a", Path, texts)
    return {
        "wordpiece": lambda: WordPieceTokenizer(vocabulary_size=220, corpora=["x"]),
        "bpe": lambda: BPETokenizer(vocabulary_size=420, corpora=["x"]),
        "roberta": lambda: BPETokenizer(vocabulary_size=420, style="encoder", corpora=["x"]),
        "unigram": lambda: UnigramTokenizer(vocabulary_size=450, corpora=["x"]),
        "folding": lambda: UnigramTokenizer(
            vocabulary_size=200,
            style="encoder",
            normalisation="nmt_nfkc",
            byte_fallback=False,
            corpora=["x"],
        ),
        "llama": lambda: ModelFileTokenizer(location=str(model), style="llama", corpora=["x"]),
        "pretrained": lambda: PretrainedTokenizer(location=str(place / "a")),
    }[kind]()


def texts(names):
    return iter(documents())
