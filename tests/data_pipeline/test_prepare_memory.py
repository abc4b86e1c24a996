"""Memory does not grow with the corpus, and little with a document."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.shards import ShardedDataset

ROOT = Path(__file__).parents[2]
RUNS = """
import json, resource, sys
from pathlib import Path
from data_pipeline.prepare import PrepareStage
from tests.data_pipeline import test_prepare as t
folder = Path(sys.argv[1])
def run(name, **more):
    file = folder / name
    kind = "text" if file.suffix == ".txt" else "jsonl"
    corpora = {
        "few": {"sources": [{"name": "jsonl", "path": str(folder / "few.jsonl")}]},
        "all": {"sources": [{"name": kind, "path": str(file)} | more]},
    }
    tokenizer = {"name": "wordpiece", "vocabulary_size": 300, "corpora": ["few"]}
    stage = PrepareStage.model_validate({"tokenizer": tokenizer, "corpora": corpora})
    stage.run(t.context(folder / f"run-{name}"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
first = run("few.jsonl")
peaks = [run("many.jsonl"), run("empty.jsonl")]
peaks.append(run("overlong.jsonl", longest_record=100_000, max_rejected=1))
peaks.append(run("giant.jsonl"))
print(json.dumps([peak - first for peak in peaks]))
"""


def lines(path, texts):
    with path.open("w") as stream:
        stream.writelines(json.dumps({"text": text}) + "\n" for text in texts)


@pytest.fixture
def corpora(tmp_path):
    rng = random.Random(0)
    words = ["".join(rng.choices("aeiounrst", k=rng.randint(2, 7))) for _ in range(3000)]
    text = " ".join(rng.choices(words, k=500_000))
    few = [" ".join(rng.choices(words, k=150)) for _ in range(300)]
    lines(tmp_path / "few.jsonl", few)
    lines(tmp_path / "many.jsonl", (f"{i} {few[i % 300]}" for i in range(4000)))
    lines(tmp_path / "empty.jsonl", ("" if i % 10 else f"a{i}" for i in range(100_000)))
    lines(tmp_path / "giant.jsonl", [text])
    with (tmp_path / "overlong.jsonl").open("w") as stream:
        stream.write('{"text": "short"}\n{"text": "')
        for _ in range(20):
            stream.write(text)
        stream.write('"}\n{"text": "short too"}\n')
    return tmp_path


def test_peaks_are_bounded(corpora):
    """MiB above a run over a few texts: of 3 MB of documents, of a line of 55 MB, and so on."""
    env = os.environ | {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUNS, str(corpora)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    many, empty, overlong, giant = json.loads(done.stdout.splitlines()[-1])
    assert many < 40
    assert empty < 40
    assert overlong < 40
    assert giant < 120

    def shards(name):
        return ShardedDataset.open(corpora / f"run-{name}" / "corpora" / "all" / "train")

    assert len(shards("many.jsonl")) == 4000
    counts = shards("empty.jsonl").manifest.provenance["counts"]
    assert (counts["documents_read"], counts["empty"]) == (100_000, 90_000)
    assert len(shards("overlong.jsonl")) == 2
    (said,) = (corpora / "run-overlong.jsonl" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(said)["where"].endswith("overlong.jsonl:2")
    assert "longest_record is 100,000" in json.loads(said)["reason"]
    # No piece of a text that is longer than the library is given at once is lost.
    text = json.loads((corpora / "giant.jsonl").read_text())["text"]
    data = shards("giant.jsonl")
    words = sum(int((data.annotations(i) & 1).sum()) for i in range(len(data)))
    assert (len(data), words) == (1, len(text.split()))
