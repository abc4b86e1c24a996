"""Chinese corpora are compared by the words their shards mark: jieba's, or characters."""

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from configs.stage import Artifact, StageContext
from data_pipeline.analysis.domain_gap import GapStage
from data_pipeline.shards import ShardWriter
from data_pipeline.tokenization import Encoder, WordPieceTokenizer, tokenizer_record

GENERAL = ["天气", "学校", "朋友", "音乐", "超市", "比赛"]
MEDICAL = ["患者", "血压", "治疗", "药物", "手术", "诊断"]
COMMON = ["我们", "今年", "可以", "因为", "医院", "问题"]


def texts(seed: int, own: Sequence[str], number: int = 150) -> list[str]:
    """Sentences of common words and a corpus's own; 医院 stands among its own."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(number):
        words = [str(word) for word in rng.choice([*own, *COMMON[:4], "问题", "，"], 18)]
        words[8:13] = [*rng.choice(own, 2).tolist(), "医院", *rng.choice(own, 2).tolist()]
        found.append("".join(words) + "。")
    return found


def measure(folder: Path, chinese_words: str) -> dict:
    corpora = {"general": texts(1, GENERAL), "medical": texts(2, MEDICAL)}
    tokenizer = WordPieceTokenizer(
        vocabulary_size=400, corpora=["all"], chinese_words=chinese_words
    )
    tokenizer.build(folder / "tokenizer", Path, lambda _: chain.from_iterable(corpora.values()))
    record, encoder = tokenizer_record(folder / "tokenizer"), Encoder(folder / "tokenizer")
    for name, own in corpora.items():
        with ShardWriter(folder / name, record) as writer:
            encoded = encoder.encode(own)
            writer.write(encoded.tokens, encoded.lengths, encoded.annotations)
            writer.finish({})
    (folder / "gap").mkdir()
    stage = GapStage.model_validate(
        {
            "corpora": {name: f"stage:prepare/{name}" for name in corpora},
            "tokenizer": "stage:prepare/tokenizer",
            "clusters": {"number": 2},
        }
    )
    made = {"prepare": Artifact(folder, "x")}
    stage.run(StageContext("gap", folder / "gap", 1, "key", made))
    return json.loads((folder / "gap" / "results.json").read_text())


def test_words_by_jieba(tmp_path):
    pytest.importorskip("rjieba")
    found = measure(tmp_path, "jieba")
    (pair,) = found["pairs"]
    words = [row["word"] for row in pair["distinctive_words"]["medical"]]
    assert {"患者", "血压", "治疗", "药物"} <= set(words)
    assert found["corpora"]["medical"]["fertility"] > 1.5
    assert pair["context"]["most_shifted"][0]["word"] == "医院"
    assert set(pair["context"]["most_shifted"][0]["neighbours"]["medical"]) <= set(MEDICAL)
    assert pair["coverage"]["common"] < 0.1
    clusters = [set(cluster["words"][:4]) for cluster in found["clusters"]["clusters"]]
    assert any(words <= set(MEDICAL) for words in clusters)


def test_words_by_characters(tmp_path):
    found = measure(tmp_path, "characters")
    (pair,) = found["pairs"]
    words = [row["word"] for row in pair["distinctive_words"]["medical"]]
    assert {"患", "者", "血", "压"} <= set(words)
    assert found["corpora"]["medical"]["fertility"] == 1
    assert {row["word"] for row in pair["context"]["most_shifted"][:2]} == {"医", "院"}
