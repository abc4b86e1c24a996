"""Prepare shared by participants, killed and begun again: always the same bytes."""

import gzip
import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from configs.errors import DataError, LaunchError
from configs.stage import Share
from data_pipeline.preparing import crew
from data_pipeline.shards import ShardedDataset
from tests.data_pipeline.test_prepare import context, files, made, recipe, write_rows

__all__ = ["files"]
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def small_tasks(monkeypatch):
    """Many tasks of little text."""
    monkeypatch.setattr("data_pipeline.sources.lines.PART_BYTES", 1500)
    monkeypatch.setattr("data_pipeline.sources.lines.BLOCK", 700)
    monkeypatch.setattr("data_pipeline.spool.BLOCK_BYTES", 400)
    monkeypatch.setattr("data_pipeline.preparing.chunks.SMALLEST_CHUNK", 1000)


@pytest.fixture
def whole(files, tmp_path):
    """What one process makes of it without interruption."""
    folder = tmp_path / "whole"
    recipe(files).run(context(folder))
    found = made(folder)
    assert len(found) > 50
    return found


def together(stage, folder, count):
    """Each participant in a thread; what each answered or raised."""
    answers = [None] * count

    def take_part(index):
        try:
            answers[index] = stage.run(replace(context(folder), share=Share(index, count)))
        except BaseException as error:
            answers[index] = error

    threads = [threading.Thread(target=take_part, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=100)
    return answers


@pytest.mark.parametrize("count", [2, 3])
def test_any_number_of_participants_makes_the_same(files, tmp_path, whole, count):
    folder = tmp_path / "shared"
    answers = together(recipe(files), folder, count)
    assert len(set(answers)) == 1
    assert made(folder) == whole


SMALL = """
import os, random, signal, sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from configs.stage import Share
from data_pipeline import spool
from data_pipeline.preparing import board, chunks
from data_pipeline.sources import lines
from tests.data_pipeline import test_prepare as t
lines.PART_BYTES, lines.BLOCK, spool.BLOCK_BYTES, chunks.SMALLEST_CHUNK = 1500, 700, 400, 1000
"""
DIES = """
chunks.encode_block = lambda task: os.kill(os.getpid(), signal.SIGKILL)
second = replace(t.context(Path(sys.argv[2])), share=Share(1, 2))
t.recipe(Path(sys.argv[1])).run(second)
"""


def test_a_participant_that_never_comes_is_named(files, tmp_path, monkeypatch):
    monkeypatch.setattr(crew, "LOST_AFTER", 1.0)
    alone = replace(context(tmp_path / "run"), share=Share(1, 2))
    with pytest.raises(LaunchError, match=r"participant 0 of 2 never came up .*run again"):
        recipe(files).run(alone)


@pytest.mark.grid
def test_a_participant_that_dies_is_named_and_others_finish_its_work_later(
    files, tmp_path, whole, monkeypatch
):
    folder = tmp_path / "run"
    context(folder)
    monkeypatch.setattr(crew, "LOST_AFTER", 15.0)
    command = [sys.executable, "-c", SMALL + DIES, str(files), str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as dies:
        named = rf"participant 1 of 2 \(process {dies.pid} on .*gave no sign of life"
        with pytest.raises(LaunchError, match=named):
            recipe(files).run(replace(context(folder), share=Share(0, 2)))
        assert dies.wait() == -signal.SIGKILL
    recipe(files).run(context(folder))
    assert made(folder) == whole


def test_an_error_of_one_participant_is_everybodys(files, tmp_path):
    (files / "task.jsonl").write_text('{"text": "one"}\n{"txt": 1}\n')
    answers = together(recipe(files), tmp_path / "run", 2)
    for answer in answers:
        assert isinstance(answer, DataError)
        assert "no field 'text'" in str(answer)


KILLED_AGAIN_AND_AGAIN = """
note = board.Board.note
rng = random.Random(int(sys.argv[3]))
deaths = 0
while True:
    left, after = rng.randint(0, 6), rng.random() < 0.5
    pid = os.fork()
    if pid == 0:
        def counted(*given):
            global left
            if left == 0 and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            note(*given)
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
        board.Board.note = counted
        t.recipe(Path(sys.argv[1])).run(t.context(Path(sys.argv[2])))
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0:
        break
    deaths += 1
print(deaths)
"""


def test_killed_again_and_again_it_makes_the_same(files, tmp_path, whole):
    folder = tmp_path / "run"
    folder.mkdir()
    seed = "3"
    command = [sys.executable, "-c", SMALL + KILLED_AGAIN_AND_AGAIN]
    command += [str(files), str(folder), seed]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout.splitlines()[-1]) > 8
    assert made(folder) == whole


@pytest.mark.processes
def test_killed_with_its_processes_at_any_time_it_makes_the_same(files, tmp_path, whole):
    folder = tmp_path / "run"
    code = (
        "from pathlib import Path; from tests.data_pipeline import test_prepare as t;"
        "if __name__ == '__main__':"
        f" t.recipe(Path({str(files)!r}), processes=2).run(t.context(Path({str(folder)!r})))"
    ).replace(";if", "\nif")
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL) as run:
        while run.poll() is None and not any(folder.rglob("clean/*.json")):
            time.sleep(0.01)
        run.kill()
    recipe(files, processes=2).run(context(folder))
    assert made(folder) == whole


def test_what_was_left_out_is_listed(files, tmp_path, monkeypatch):
    rows = [{"text": t} for t in ("one two", "three four", "one two", "", "six", "held", "six")]
    write_rows(files / "task.jsonl", rows)
    write_rows(
        files / "domain.jsonl",
        [{"id": "h", "text": "held", "group": "file1"}, {"id": "k", "text": "kept", "group": "x"}],
    )
    folder = tmp_path / "run"
    recipe(files).run(context(folder))
    with gzip.open(folder / "removed.jsonl.gz", "rt") as stream:
        lines = [json.loads(line) for line in stream]
    found = [(r["id"], r["reason"], r["detail"]) for r in lines if r["corpus"] == "task"]
    assert found == [
        ("task.jsonl:3", "equal", "task.jsonl:1"),
        ("task.jsonl:6", "held_out", "h"),
        ("task.jsonl:7", "equal", "task.jsonl:5"),
    ]
    data = ShardedDataset.open(folder / "corpora/task/train")
    provenance = data.manifest.provenance
    assert provenance["removed"] == {"exact_duplicates": {"equal": 2, "held_out": 1}}
    assert provenance["counts"]["empty"] == 1


LIMITED = """
import resource, sys
from importlib.util import find_spec
from pathlib import Path
from configs.errors import ResourceError
from tests.data_pipeline import test_prepare as t
from data_pipeline import spool
limit = int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    t.recipe(Path(sys.argv[1])).run(t.context(Path(sys.argv[2])))
except ResourceError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [600, 6000])
def test_no_room_leaves_no_file_under_a_final_name_and_the_work_can_go_on(
    files, tmp_path, limit, monkeypatch
):
    monkeypatch.undo()
    folder = tmp_path / "run"
    folder.mkdir()
    command = [sys.executable, "-c", LIMITED, str(files), str(folder), str(limit)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "File too large" in done.stdout, done
    assert str(folder) in done.stdout
    left = [path for path in folder.rglob("*") if path.is_file() and ".prepare" not in path.parts]
    assert [path for path in left if path.parent.name in {"train", "held_out"}] == []
    recipe(files).run(context(folder))
    assert not (folder / ".prepare").exists()


def test_a_changed_input_is_noticed(files, tmp_path):
    stage, folder = recipe(files), tmp_path / "run"
    stage.run(context(folder))
    assert stage.outdated(context(folder)) is None
    path = files / "general.jsonl"
    text = path.read_text()
    path.write_text(text)
    assert stage.outdated(context(folder)) is None
    path.write_text(text.replace("a", "e", 1))
    assert stage.outdated(context(folder)) == f"{path}: its content has changed"
    path.unlink()
    assert stage.outdated(context(folder)) is None
    path.write_text(text)
    (files / "groups.json").write_text('{"held_out": ["file1"]}')
    changed = stage.outdated(context(folder))
    assert changed is not None
    assert "groups.json" in changed


def test_a_new_and_a_lost_file_of_a_folder_are_noticed(files, tmp_path):
    corpora = recipe(files).model_dump()["corpora"]
    (files / "many").mkdir()
    for name in "ab":
        write_rows(files / "many" / f"{name}.jsonl", [{"text": f"text {name}"}])
    corpora["task"]["sources"][0]["path"] = str(files / "many")
    stage, folder = recipe(files, corpora=corpora), tmp_path / "run"
    stage.run(context(folder))
    write_rows(files / "many" / "c.jsonl", [{"text": "more"}])
    assert stage.outdated(context(folder)) == "corpora.task.sources.0: c.jsonl is new"
    (files / "many" / "c.jsonl").unlink()
    (files / "many" / "a.jsonl").unlink()
    assert stage.outdated(context(folder)) == "corpora.task.sources.0: a.jsonl is gone"


def task_corpus(files, texts, **settings):
    """The recipe with other texts for ``task``, and settings of that corpus."""
    (files / "task.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    corpora = recipe(files).model_dump()["corpora"]
    sources = [corpora["task"]["sources"][0] | settings.pop("source", {})]
    corpora["task"] |= {"sources": sources} | settings
    return recipe(files, corpora=corpora)


@pytest.mark.skipif(find_spec("rensa") is None, reason="the extra 'cleaning'")
def test_near_duplicates_are_left_out_and_listed(files, tmp_path):
    letters = "abcdefghijklmnopqrstuvw"
    long = " ".join(f"{a}{b}" for a in letters for b in "aeiou")
    texts = [long, "short", f"{long} and more", long, "other"]
    folder = tmp_path / "run"
    task_corpus(files, texts, near_duplicates={"threshold": 0.7}).run(context(folder))
    data = ShardedDataset.open(folder / "corpora/task/train")
    provenance = data.manifest.provenance
    assert len(data) == 3
    assert provenance["removed"] == {
        "exact_duplicates": {"equal": 1},
        "near_duplicates": {"near": 1},
    }
    assert provenance["near_duplicates"]["threshold"] == 0.7
    with gzip.open(folder / "removed.jsonl.gz", "rt") as stream:
        lines = [json.loads(line) for line in stream]
    near = [line for line in lines if line["step"] == "near_duplicates"]
    assert [(r["corpus"], r["id"], r["detail"]) for r in near] == [
        ("task", "task.jsonl:3", "task.jsonl:1")
    ]


def test_a_strict_guard_refuses_before_anything_is_tokenised(files, tmp_path, monkeypatch):
    write_rows(files / "test.jsonl", [{"text": "a row of the test"}])
    against = {"against": [str(files / "test.jsonl")], "strict": True}
    texts = ["fine", "A row, of the test.", "fine too"]
    monkeypatch.setattr("data_pipeline.preparing.chunks.encode_block", None)
    with pytest.raises(DataError, match=r"corpus task: .*task\.jsonl:2 .*test\.jsonl"):
        task_corpus(files, texts, decontaminate=against).run(context(tmp_path / "run"))
    assert made(tmp_path / "run") == {}


@pytest.mark.parametrize("share", [0.2, 0.3])
def test_a_share_may_be_rejected(files, tmp_path, share):
    stage = task_corpus(files, ["one", "two", "three"], source={"max_rejected": share})
    with (files / "task.jsonl").open("a") as stream:
        stream.write('{"txt": 1}\n')
    if share < 0.25:
        with pytest.raises(DataError, match=r"last of 1 rejected among 4; max_rejected is 0\.2"):
            stage.run(context(tmp_path / "run"))
    else:
        stage.run(context(tmp_path / "run"))
        assert (tmp_path / "run" / "rejected.jsonl").read_text().count("\n") == 1
