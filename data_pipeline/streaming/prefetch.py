"""Shards at a URL are fetched before they are read, by a thread that ends when it is done."""

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate

from configs.errors import OnwardError, RecipeError
from data_pipeline.shards import CacheConfig, Shard, ShardedDataset
from data_pipeline.streaming.order import Order
from data_pipeline.streaming.shuffle import Shuffle

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class ShardPrefetch:
    """Fetches what rows from some index on will need. Safe to use from several threads.

    What cannot be fetched is told, and met again, as an error, by whoever reads it.

    Attributes:
        order: which shards those are.
        data: the sources of the order; those on this machine are passed over.
        room: bytes of the cache: nothing is fetched that would push out what is needed sooner.
    """

    order: Order
    data: tuple[ShardedDataset, ...]
    room: int
    _told: list[tuple[int, int]] = field(default_factory=list)
    _wanted: list[tuple[int, int]] = field(default_factory=list)
    _thread: threading.Thread | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def towards(self, index: int) -> None:
        """Begin to fetch what rows from a global index on need; returns at once."""
        nearest: dict[tuple[int, int], int] = {}
        for source, shards in enumerate(self.order.shards_from(index)):
            if self.data[source].remote:
                nearest |= {(source, shard): near for near, shard in enumerate(shards)}
        wanted = self._fitting(sorted(nearest, key=lambda each: (nearest[each], each)))
        with self._lock:
            if wanted == self._told:
                return
            self._told, self._wanted = wanted, list(wanted)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="shards", daemon=True)
                self._thread.start()

    def wait(self) -> None:
        """Until all that was begun is there."""
        thread = self._thread
        if thread is not None:
            thread.join()

    def _fitting(self, wanted: list[tuple[int, int]]) -> list[tuple[int, int]]:
        sizes = (shard_bytes(self.data[source].shards[shard]) for source, shard in wanted)
        total = accumulate(sizes)
        return [each for each, filled in zip(wanted, total, strict=True) if filled <= self.room]

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._wanted:
                    self._thread = None
                    return
                source, shard = self._wanted.pop(0)
            try:
                self.data[source].prefetch([shard])
            except (OnwardError, OSError) as error:
                _log.warning("a shard that will be needed is not fetched: %s", error)


def require_room(data: Mapping[str, ShardedDataset], shuffle: Shuffle, cache: CacheConfig) -> None:
    """RecipeError unless the cache holds all remote shards that the shuffle mixes at one time."""
    needed = {name: _mixed_bytes(each, shuffle) for name, each in data.items() if each.remote}
    total = sum(needed.values())
    if total > cache.bytes:
        told = ", ".join(f"{name} {count / 2**30:.2f}" for name, count in needed.items())
        msg = (
            f"data.cache.bytes: {cache.bytes / 2**30:.2f} GiB, but shuffle {shuffle.identity} "
            f"mixes {total / 2**30:.2f} GiB of remote shards at one time (GiB by source: {told}); "
            "give more, or shuffle: {name: window, shards: W} with a smaller W"
        )
        raise RecipeError(msg)


def shard_bytes(shard: Shard) -> int:
    """What a shard takes in the cache; its index is read when it is opened, and may go."""
    return sum(file.bytes for suffix, file in shard.record.files.items() if suffix != ".idx")


def _mixed_bytes(data: ShardedDataset, shuffle: Shuffle) -> int:
    """The largest shards, as many as are mixed with one another."""
    sizes = sorted(map(shard_bytes, data.shards))
    return sum(sizes[-shuffle.shards_at_once(len(sizes)) :])
