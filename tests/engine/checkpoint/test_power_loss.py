"""A loss of power at any moment of a save: what was not synced is gone, whole or in part."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.checkpoint import newest, prune
from tests.engine.checkpoint.fakes import KEYS, SHAPES, save_step, values_of


@dataclass
class Disk:
    """Which inodes a file system would still have after a loss of power.

    Attributes:
        contents: of files, as last synced.
        entries: of folders, as last synced: name -> inode.
    """

    root: Path
    contents: dict[int, bytes] = field(default_factory=dict)
    entries: dict[int, dict[str, int]] = field(default_factory=dict)
    _open: dict[int, int] = field(default_factory=dict)

    def close(self) -> None:
        for handle in self._open.values():
            os.close(handle)

    def synced(self, handle: int) -> None:
        """What an fsync brings to the disk: a file's bytes or a folder's names."""
        path = Path(f"/proc/self/fd/{handle}").readlink()
        number = self.number(path)
        if path.is_dir():
            self.entries[number] = {name.name: self.number(name) for name in path.iterdir()}
        else:
            self.contents[number] = path.read_bytes()

    def number(self, path: Path) -> int:
        """Its inode, held open so that the number is not given away again."""
        number = path.lstat().st_ino
        if number not in self._open:
            self._open[number] = os.open(path, os.O_RDONLY)
        return number

    def images(self, folder: Path, rng: np.random.Generator) -> Iterator[Path]:
        """What may be found afterwards: only the synced; all names with the synced bytes or with
        holes; everything; and mixtures."""
        choices: list[Callable[[], Any]] = [
            lambda: (False, 0.0),
            lambda: (True, 0.0),
            lambda: (True, -1.0),
            lambda: (True, 1.0),
            lambda: (rng.random() < 0.5, rng.choice([-1.0, 0.0, 0.5, 1.0])),
            lambda: (rng.random() < 0.5, rng.choice([-1.0, 0.0, 0.5, 1.0])),
        ]
        for number, choose in enumerate(choices):
            image = folder / str(number)
            self._lay_out(self.number(self.root), self.root, image, choose)
            yield image
            shutil.rmtree(image, ignore_errors=True)

    def _lay_out(
        self, number: int, live: Path | None, image: Path, choose: Callable[[], Any]
    ) -> None:
        """Write the inode as the disk has it (``live``: where it is now, if anywhere)."""
        keeps_new, share = choose()
        if not Path(f"/proc/self/fd/{self._open[number]}").is_dir():
            image.write_bytes(self._bytes(number, live, share))
            return
        image.mkdir()
        names = dict(self.entries.get(number, {}))
        if keeps_new and live is not None:
            names = {entry.name: self.number(entry) for entry in live.iterdir()}
        where = {self.number(path): path for path in self.root.rglob("*")}
        for name, inside in names.items():
            self._lay_out(inside, where.get(inside), image / name, choose)

    def _bytes(self, number: int, live: Path | None, share: float) -> bytes:
        """Bytes of a file: of those that were not synced a share is there, or (-1) zeros are."""
        synced = self.contents.get(number)
        now = live.read_bytes() if live is not None else synced
        if synced is not None and synced == now:
            return synced
        if share < 0:
            return bytes(len(now or b""))
        return (now or b"")[: int(len(now or b"") * share)] if share else synced or b""


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """[disk, what to do before each operation]; every call that changes files tells them."""
    root = tmp_path / "stage" / "checkpoints"
    save_step(root, 4)
    disk = Disk(root)
    held: list[Any] = [disk, lambda: None]
    for folder in (root, root / "step-4"):
        for path in (folder, *(each for each in folder.iterdir() if each.is_file())):
            handle = os.open(path, os.O_RDONLY)
            disk.synced(handle)
            os.close(handle)

    def before(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            held[1]()
            if name == "fsync":
                disk.synced(arguments[0])
            return real(*arguments, **keywords)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir"):
        before(name)
    yield held
    disk.close()


def found_in(image: Path) -> int | None:
    """The step that a reader finds, its values checked."""
    found = newest(image, "recipe")
    if found is None:
        return None
    store = found.store()
    for name in SHAPES:
        for key in KEYS:
            np.testing.assert_array_equal(store.whole(name, key), values_of(found.step, name, key))
    assert found.state == {"cursor": found.step * 8}
    return found.step


def test_no_prefix_of_the_operations_leaves_a_wrong_checkpoint(
    watched: list[Any], tmp_path: Path
) -> None:
    disk, rng = watched[0], np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    steps: list[int | None] = []

    def lose_power() -> None:
        watched[1] = lambda: None
        steps.extend(found_in(image) for image in disk.images(folder, rng))
        watched[1] = lose_power

    watched[1] = lose_power
    save_step(disk.root, 8)
    kept = len(steps)
    prune(disk.root, keep=1, newest=8)
    watched[1] = lambda: None
    lasting = [found_in(image) for image in disk.images(folder, rng)]

    # There is always one to go on from, and what save has returned for stays.
    assert set(steps[:kept]) == {4, 8}
    assert set(steps[kept:]) == {8}
    assert set(lasting) == {8}
    assert len(steps) > 100


def test_the_model_of_the_disk_forgets_what_was_not_synced(
    watched: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a writer that syncs nothing a save is lost: the test above would see that."""
    disk = watched[0]
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    save_step(disk.root, 8)
    (tmp_path / "images").mkdir()
    images = disk.images(tmp_path / "images", np.random.default_rng(0))
    assert [found_in(image) for image in images][:4] == [4, 4, 4, 8]
