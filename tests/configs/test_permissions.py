"""Files are as the umask says: the user's own, or the one asked for."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs.errors import RecipeError
from configs.permissions import apply_umask
from data_pipeline.packing.cache import keep_arrays
from data_pipeline.whole_file import write_whole
from engine.checkpoint import commit
from launcher.run_folder import RunFolder


@pytest.fixture(autouse=True)
def umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


def modes(folder: Path) -> set[tuple[bool, int]]:
    return {(p.is_dir(), stat.S_IMODE(p.stat().st_mode)) for p in folder.rglob("*")}


@pytest.mark.parametrize(
    ("given", "files", "folders"),
    [("077", 0o600, 0o700), ("027", 0o640, 0o750), ("0022", 0o644, 0o755), ("", 0o644, 0o755)],
)
def test_every_writer_keeps_to_it(tmp_path, given, files, folders):
    apply_umask({"ONWARD_UMASK": given})
    run = RunFolder(tmp_path / "run")
    with run.lock():
        run.write_recipe({"a": 1})
        write_whole(run.stage("s") / "results.json", b"{}")
        keep_arrays({"a": np.arange(3)}, run.root / "cache" / "plan")
        commit.make_folder(aside := run.root / "checkpoints")
        commit.write_json(commit.aside(aside / "step-1") / "x.json", {})
    assert modes(tmp_path) == {(False, files), (True, folders)}


@pytest.mark.parametrize("given", ["7", "77", "0o77", "rwx", "177", "400", "-77", "0777", "088"])
def test_nonsense_is_refused(given):
    with pytest.raises(RecipeError, match="ONWARD_UMASK"):
        apply_umask({"ONWARD_UMASK": given})


def test_the_command_refuses_it_too_and_needs_no_library_for_that():
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "check", "x.yaml"],
        env=os.environ | {"ONWARD_UMASK": "rw"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "ONWARD_UMASK=rw: expected three octal digits" in done.stderr
