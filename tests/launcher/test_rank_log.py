"""A rank's output is in its log whoever writes it; what is meant for a person goes on."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from launcher import environment
from launcher.rank_log import MARK, STAGE_MARK, Said, marked, read_line

RANK = """
import faulthandler, os, sys
from pathlib import Path
from launcher import rank_log
from launcher.rank_log import RankLog, MARK

log = RankLog(3, 4, "abc")
print("before")
log.enter(Path(sys.argv[1]) / "first")
print("from python")
os.write(1, b"from C\\n")
os.system("echo from a child")
log.say(MARK + "for the screen\\n")
faulthandler.dump_traceback(2)
log.enter(Path(sys.argv[1]) / "second")
print("after", file=sys.stderr)
"""
FULL = """
import sys
from pathlib import Path
from launcher.rank_log import RankLog, MARK

log = RankLog(0, 1, "")
log.enter(Path(sys.argv[1]))
print("x" * 100_000)
sys.stderr.write("no room\\n")
sys.stdout.flush()
log.keep_small()
log.say(MARK + "still here\\n")
"""
LARGE = """
import sys
from pathlib import Path
from launcher import rank_log

rank_log.LIMIT = 1000
log = rank_log.RankLog(0, 1, "")
log.enter(Path(sys.argv[1]))
for number in range(100):
    print(f"warning {number} " + "x" * 90)
    log.keep_small()
"""


def run(script: str, *words: str) -> str:
    env = {"PYTHONPATH": str(environment.PROJECT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_everything_is_in_the_log_of_the_stage_and_a_second_start_goes_on(tmp_path: Path) -> None:
    assert run(RANK, str(tmp_path)) == f"before\n{MARK}for the screen\n"
    first = (tmp_path / "first/logs/rank-3.log").read_text()
    head, *rest = first.splitlines()
    assert head.startswith("--- 20")
    assert "rank 3 of 4 on " in head
    assert head.endswith(", launch abc")
    assert rest[:3] == ["from python", "from C", "from a child"]
    assert "most recent call first" in rest[3]
    second = tmp_path / "second/logs/rank-3.log"
    assert second.read_text().splitlines()[1:] == ["after"]
    run(RANK, str(tmp_path))
    assert second.read_text().splitlines()[1::2] == ["after", "after"]


def test_a_full_disk_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/rank-0.log").symlink_to("/dev/full")
    assert run(FULL, str(tmp_path)) == f"{MARK}still here\n"
    # Nor a folder that cannot be made.
    (tmp_path / "file").write_text("")
    said = run(FULL, str(tmp_path / "file"))
    assert "this rank's output is not kept there" in said
    assert said.endswith(f"{MARK}still here\n")


def test_a_log_does_not_grow_without_bound(tmp_path: Path) -> None:
    run(LARGE, str(tmp_path))
    found = {path.name: path for path in (tmp_path / "logs").iterdir()}
    assert set(found) == {"rank-0.log", "rank-0.log.1"}
    assert all(path.stat().st_size < 1200 for path in found.values())
    both = found["rank-0.log.1"].read_text() + found["rank-0.log"].read_text()
    assert "warning 99 " in both
    assert "warning 50 " not in both


@pytest.mark.parametrize("before", ["", "node-1: ", "3: ", "[1,2]<stderr>:", "Loading 12%"])
def test_marked_lines_are_found_behind_whatever_stands_before_them(before: str) -> None:
    (line,) = marked("slow", 3, logging.WARNING)
    *noise, said = read_line(before + line)
    assert [each.text for each in noise] == [before] * bool(before)
    assert (said.kind, said.text, said.rank, said.is_warning) == ("rank", "slow", 3, True)
    assert said.host


def test_lines_that_ran_into_one_another_are_taken_apart() -> None:
    told, warned = marked("step 1", 0, logging.INFO), marked("a\nb", 0, logging.WARNING)
    assert len(warned) == 2
    line = f"x{told[0][:-1]}{STAGE_MARK}dapt {warned[1]}"
    noise, first, stage, second = read_line(line)
    assert (noise, first) == (Said("noise", "x"), Said("line", "step 1"))
    assert stage == Said("stage", "dapt")
    assert (second.text, second.rank, second.is_warning) == ("b", 0, True)
    # What another's output has cut in two is kept as it came.
    assert [each.kind for each in read_line("\x1erank 3 no")] == ["noise"]
    assert list(read_line("plain\n")) == [Said("noise", "plain")]
    assert list(read_line("\n")) == []
