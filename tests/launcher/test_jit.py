"""A lock that a killed build left is reported, not waited for; a living one is waited for."""

import os
import threading
import time
from pathlib import Path

import pytest

from configs.errors import ResourceError
from launcher import jit


def lock_in(folder: Path, age: float) -> Path:
    lock = folder / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    then = time.time() - age
    os.utime(lock, (then, then))
    return lock


def test_a_stale_lock_is_named_with_its_remedy(tmp_path: Path) -> None:
    lock = lock_in(tmp_path, age=60)
    with pytest.raises(ResourceError) as caught:
        jit.refuse_stale_locks(tmp_path)
    assert f"rm {lock}" in str(caught.value)
    assert caught.value.exit_code == 7
    assert lock.exists()


def test_a_stale_lock_of_a_built_operator_is_removed(tmp_path: Path) -> None:
    lock = tmp_path / "op" / "lock"
    lock.parent.mkdir()
    lock.touch()
    (tmp_path / jit._stamp_name()).touch()
    os.utime(lock, (0, 0))
    jit.refuse_stale_locks(tmp_path)
    assert not lock.exists()


def test_a_lock_that_a_process_holds_is_waited_for(tmp_path: Path) -> None:
    lock = lock_in(tmp_path, age=60)
    with lock.open():
        release = threading.Timer(0.3, lock.unlink)
        release.start()
        jit.refuse_stale_locks(tmp_path, settle=0.0)
        release.join()
    assert not lock.exists()


def test_a_young_lock_is_given_time(tmp_path: Path) -> None:
    lock = lock_in(tmp_path, age=0)
    release = threading.Timer(0.3, lock.unlink)
    release.start()
    jit.refuse_stale_locks(tmp_path, settle=30.0)
    release.join()


def test_no_lock_is_no_trouble(tmp_path: Path) -> None:
    jit.refuse_stale_locks(tmp_path / "absent")


def test_a_build_is_done_once_and_never_past_a_stale_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Path] = []
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(jit, "_build", built.append)
    lock = lock_in(tmp_path, age=60)
    with pytest.raises(ResourceError):
        jit.build_operators()
    assert not built
    lock.unlink()
    assert jit.build_operators() == tmp_path
    jit.build_operators()
    assert built == [tmp_path]
    assert jit.is_built(tmp_path)
