"""Hosts make data together, to the byte as one does; a host with other software takes no part."""

import importlib.metadata
import json
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml

from data_pipeline.shards import ShardedDataset
from tests.cluster.hosts import Cluster, ClusterHost, cluster
from tests.cluster.jobs import LONGEST

pytestmark = pytest.mark.cluster
WORDS = ("adapt", "batch", "corpus", "domain", "epoch", "fine", "gap", "held", "index", "join")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(2, tmp_path_factory.mktemp("preparing")) as made:
        yield made


@pytest.fixture(scope="module")
def texts(two: Cluster) -> Path:
    """Four files of 200 documents each; every tenth document is in all of them."""
    folder = two.folder / "texts"
    folder.mkdir()
    rng = random.Random(5)
    for name in "abcd":
        same = random.Random(7)
        lines = [
            json.dumps({"text": " ".join((rng if number % 10 else same).choices(WORDS, k=60))})
            for number in range(200)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def prepare(
    two: Cluster, texts: Path, name: str, hosts: Sequence[ClusterHost]
) -> subprocess.CompletedProcess[str]:
    """Its run folder is ``name``."""
    place = two.folder / name
    place.mkdir()
    stage = {
        "kind": "prepare",
        "tokenizer": {"name": "wordpiece", "vocabulary_size": 300, "corpora": ["all"]},
        "corpora": {
            "all": {
                "sources": [{"name": "jsonl", "path": str(texts)}],
                "near_duplicates": {},
                "split": {"held_out": 0.1},
            }
        },
    }
    recipe = {"name": "together", "output": str(place / "run"), "seed": 3}
    (place / "r.yaml").write_text(yaml.safe_dump(recipe | {"stages": {"data": stage}}))
    words = ["run", str(place / "r.yaml"), "--hostfile", str(two.hostfile(hosts=hosts))]
    return hosts[0].run([sys.executable, "-m", "launcher", *words], LONGEST, cwd=place)


def corpora(two: Cluster, name: str) -> dict[str, bytes]:
    """The files of what was made, by their paths in the stage's folder."""
    root = two.folder / name / "run" / "data"
    kept = [*(root / "corpora").rglob("*"), *(root / "tokenizer").rglob("*")]
    return {str(path.relative_to(root)): path.read_bytes() for path in kept if path.is_file()}


def test_two_hosts_make_what_one_makes(two: Cluster, texts: Path) -> None:
    for name, hosts in (("alone", two.hosts[:1]), ("both", two.hosts)):
        done = prepare(two, texts, name, hosts)
        assert done.returncode == 0, done.stderr
    assert corpora(two, "both") == corpora(two, "alone")
    # Of the twenty documents that are in all four files one copy is left.
    rows = ShardedDataset.open(two.folder / "both/run/data/corpora/all/train")
    assert 600 < len(rows) < 740


def test_a_host_with_other_software_takes_no_part(two: Cluster, texts: Path) -> None:
    found = importlib.metadata.distribution("tokenizers")
    metadata = next(f for f in found.files or [] if f.name == "METADATA")
    other = two.folder / "METADATA"
    place = Path(str(found.locate_file(metadata)))
    other.write_text(place.read_text().replace(f"Version: {found.version}", "Version: 0.1.0"))
    two.hosts[1].overlay(place, other)
    done = prepare(two, texts, "mixed", two.hosts)
    assert done.returncode == 5, done.stderr
    assert f"tokenizers: {found.version} on node-1; 0.1.0 on node-2. Install" in done.stderr
