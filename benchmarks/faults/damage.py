"""Ways in which a checkpoint is spoiled while nobody runs."""

import random
from pathlib import Path


def newest(root: Path) -> Path | None:
    """The checkpoint of the highest step, intact or not; None if there is none."""
    found = [path for path in root.glob("step-*") if path.name.removeprefix("step-").isdecimal()]
    return max(found, key=lambda path: int(path.name.removeprefix("step-")), default=None)


def spoil(root: Path, kind: str, draw: int) -> dict[str, object] | None:
    """Damage the newest checkpoint in ``root``; what was done, or None if there is none."""
    folder = newest(root)
    if folder is None:
        return None
    rng = random.Random(draw)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    path = rng.choice(files)
    _DAMAGES[kind](rng, path, files)
    return {"step": int(folder.name.removeprefix("step-")), "damage": kind, "file": path.name}


def _cut(path: Path, length: int) -> None:
    with path.open("r+b") as file:
        file.truncate(max(0, length))


def _flip(rng: random.Random, path: Path) -> None:
    at = rng.randrange(path.stat().st_size)
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ (1 << rng.randrange(8))]))


def _swap(path: Path, files: list[Path]) -> None:
    """Two ranks' files change places; with one rank alone, it and the index do."""
    ranks = [file for file in files if file.name.startswith("rank-")]
    one, other = (ranks + [file for file in files if file not in ranks])[:2]
    aside = path.parent / "aside"
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


_DAMAGES = {
    "empty": lambda rng, path, files: _cut(path, 0),
    "half": lambda rng, path, files: _cut(path, path.stat().st_size // 2),
    "one byte short": lambda rng, path, files: _cut(path, path.stat().st_size - 1),
    "flip": lambda rng, path, files: _flip(rng, path),
    "delete": lambda rng, path, files: path.unlink(),
    "rename": lambda rng, path, files: path.rename(path.with_name(f"old-{path.name}")),
    "swap": lambda rng, path, files: _swap(path, files),
    "extra": lambda rng, path, files: path.with_name(f"other-{path.name}").write_bytes(b"{}"),
}
