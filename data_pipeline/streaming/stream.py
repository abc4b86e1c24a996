"""The token stream of a run: any rows of its order at once, with no state but an index."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from configs.errors import DataError, RecipeError
from data_pipeline.packing import BestFitPacking, Packing
from data_pipeline.randomness import keyed
from data_pipeline.rows import Rows
from data_pipeline.shards import CacheConfig, ShardedDataset, TokenizerRecord, Verify, find_shards
from data_pipeline.streaming.blocks import FoundBlocks, ReadAhead, rows_ahead
from data_pipeline.streaming.config import DataConfig
from data_pipeline.streaming.cursor import Cursor, SourceState
from data_pipeline.streaming.order import ORDER_VERSION, Order, Picks
from data_pipeline.streaming.packed import PackedSource
from data_pipeline.streaming.permutation import permute
from data_pipeline.streaming.prefetch import ShardPrefetch, require_room
from data_pipeline.streaming.rows import RowReader
from data_pipeline.streaming.schedule import Raised
from data_pipeline.streaming.shuffle import SourceRows


@dataclass(frozen=True, slots=True)
class TokenStream:
    """Packed rows of a mixture, addressed by global index. Safe to read from several threads.

    Attributes:
        config: what the recipe says.
        order: which row is at a global index.
        reader: rows -> examples.
        ahead: reads rows in the order's own sequence.
        prefetch: fetches shards at URLs before they are read; None: all are on this machine.
        more: what a run has raised while it was under way.
    """

    config: DataConfig
    order: Order
    reader: RowReader
    ahead: ReadAhead
    prefetch: ShardPrefetch | None = None
    more: tuple[Raised, ...] = ()

    @classmethod
    def open(
        cls,
        config: DataConfig,
        locate: Callable[[str], Path],
        seed: int,
        cache: Path | None = None,
        verify: Verify = "sizes",
        share: slice = slice(None),
    ) -> "TokenStream":
        """Open and check every source.

        Args:
            config: sources, weights, row length, packing.
            locate: location of a shard folder -> its path; URLs are opened as they are.
            seed: of the order.
            cache: folder of packing plans; None makes them afresh.
            verify: ``digests`` hashes every byte of the shards before one is used.
            share: of each source's shards, those that this process hashes.

        Raises:
            DataError: a damaged shard, or sources made by different tokenizers.
            RecipeError: the same data twice, or rows too short for the special tokens.
        """
        data = {
            name: ShardedDataset.open(
                find_shards(source.shards, locate),
                verify,
                share,
                mode=config.mode,
                cache=config.cache,
            )
            for name, source in config.sources.items()
        }
        _require_one_tokenizer(data)
        _require_distinct(data)
        require_room(data, config.shuffle, config.cache)
        packed = tuple(
            PackedSource.open(each, config.packing, config.length, cache) for each in data.values()
        )
        return cls._of(config, RowReader.of(packed, config.length, seed), seed)

    @classmethod
    def _of(
        cls, config: DataConfig, reader: RowReader, seed: int, more: Sequence[Raised] = ()
    ) -> "TokenStream":
        """The stream over sources that are open."""
        packed = reader.sources
        rows = {name: len(each) for name, each in zip(config.sources, packed, strict=True)}
        schedule = config.schedule()
        for raised in more:
            schedule = schedule.raised(raised)
        order = Order(
            seed,
            # Contents alone: data that was moved is still read in the same order, and resumed.
            tuple(SourceRows(source.data.content, source.row_starts) for source in packed),
            schedule.mixture(config.most_rows(rows)),
            config.shuffle,
            config.skipped(),
        )
        data = tuple(source.data for source in packed)
        remote = any(each.remote for each in data)
        prefetch = ShardPrefetch(order, data, int(config.cache.bytes)) if remote else None
        blocks = FoundBlocks(lambda indices: reader.index.find(order(indices)), order.rows)
        ahead = ReadAhead(blocks, reader.fill, rows_ahead(config.length))
        return cls(config, order, reader, ahead, prefetch, tuple(more))

    def following(self, cursor: Cursor) -> "TokenStream":
        """The stream with what the run of a cursor has raised, and nothing else."""
        return self._raised(cursor.raised)

    def raising(self, source: str, factor: float, index: int, rows: int) -> "TokenStream":
        """More of a source from the first block that begins at or after a global index.

        What lies before stays as it is.

        Args:
            source: by name.
            factor: of its weight, relative to the others'.
            index: global index, 1 at least: the rows before it have been read.
            rows: of the whole run.

        Raises:
            RecipeError: the source was raised before and nothing has been read under that, no
                block begins before the run ends, or the sources would not last.
        """
        after = self.order.unskipped(index)
        block = self.order.mixture.block
        begun = [-(-each.after // block) * block for each in self.more if each.source == source]
        if begun and begun[-1] >= after:
            msg = f"the weight of '{source}' was raised before, which holds from row {begun[-1]} on"
            raise RecipeError(msg)
        stream = self._raised((*self.more, Raised(after, source, factor)))
        first, end = -(-after // block) * block, stream.order.unskipped(rows)
        there = stream.order.rows
        if first >= end:
            msg = (
                f"more of '{source}' would hold from row {first} on, where a block of {block} "
                f"begins, but the run ends at row {end}"
            )
            raise RecipeError(msg)
        if there is not None and there < rows:
            msg = (
                f"with more of '{source}' there would be {there} rows within most_epochs, but the "
                f"run asks for {rows}"
            )
            raise RecipeError(msg)
        return stream

    def _raised(self, more: tuple[Raised, ...]) -> "TokenStream":
        if more == self.more:
            return self
        return self._of(self.config, self.reader, self.order.seed, more)

    @property
    def sources(self) -> list[str]:
        """Names, in the recipe's order: what ``ExampleKey.source`` counts."""
        return list(self.config.sources)

    @property
    def rows(self) -> list[int]:
        """Rows of each source: one epoch of it."""
        return [source.rows for source in self.order.sources]

    @property
    def length(self) -> int:
        """Tokens a row."""
        return self.reader.length

    @property
    def tokenizer(self) -> TokenizerRecord:
        """The tokenizer behind all sources."""
        return self.reader.tokenizer

    @property
    def vocabulary_size(self) -> int:
        """Largest id + 1."""
        return self.tokenizer.vocabulary_size

    @property
    def tokenizer_sha256(self) -> str:
        """Digest of the tokenizer that made the shards."""
        return self.tokenizer.sha256

    @property
    def special(self) -> dict[str, int]:
        """Ids by role: mask, pad, cls, sep, unk, bos, eos, as far as the tokenizer has them."""
        return dict(self.tokenizer.special)

    @property
    def fingerprint(self) -> str:
        """Hex digest of all that decides which row stands where: data, packing, seed, mixture."""
        values = self.cursor(0).to_json()
        # The phases tell of it, as they do of changes that the recipe names.
        del values["raised"]
        for source in values["sources"]:
            del source["name"]
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def examples(self, start: int, stop: int) -> Rows:
        """The rows at global indices start up to, not including, stop.

        Shards at URLs that these rows and those after them need are fetched beside it.
        """
        if self.prefetch is not None:
            self.prefetch.towards(start)
        end = self.order.rows
        if not 0 <= start < stop or (end is not None and stop > end):
            return self.examples_at(np.arange(start, stop))
        return self.ahead.rows(start, stop)

    def examples_at(self, indices: ArrayLike) -> Rows:
        """The rows at any global indices, int [n]."""
        return self.reader.read(self.order(indices))

    def shares(self, index: int) -> list[float]:
        """Which share of the rows around a global index the mixture asks of each source."""
        return self.order.mixture.shares(self.order.unskipped(index + 1) - 1)

    def cursor(self, index: int) -> Cursor:
        """The place where the rows before global index ``index`` have been consumed."""
        states = [
            SourceState(name, source.digest, source.rows)
            for name, source in zip(self.sources, self.order.sources, strict=True)
        ]
        return Cursor(
            index=index,
            order_version=ORDER_VERSION,
            seed=self.order.seed,
            length=self.length,
            packing=self.config.packing.identity,
            shuffle=self.order.shuffle.identity,
            block=self.order.mixture.block,
            sources=tuple(states),
            phases=self.order.mixture.phases,
            skip=self.order.skip,
            raised=self.more,
        )

    def require_rows(self, rows: int) -> None:
        """Whether a run may have so many rows.

        Raises:
            RecipeError: it would read a source more often than it may, or end before the weights
                change.
        """
        self._require_changes_before(rows)
        there = self.order.rows
        if there is None or rows <= there:
            return
        limits = ", ".join(
            f"{name}: {source.most_epochs} of {size} rows"
            for (name, source), size in zip(self.config.sources.items(), self.rows, strict=True)
            if source.most_epochs is not None
        )
        msg = (
            f"data: the run asks for {rows} rows, but there are {there} within most_epochs "
            f"({limits}); take fewer steps, raise most_epochs, or add data"
        )
        raise RecipeError(msg)

    def _require_changes_before(self, rows: int) -> None:
        end = self.order.unskipped(rows)
        schedule = self.config.schedule()
        for change, turn in zip(self.config.changes, schedule.turns[1:], strict=True):
            first = turn.first_block * schedule.block
            if first >= end:
                msg = (
                    f"data.changes: the weights after row {change.after} would hold from row "
                    f"{first} on, where a block of {schedule.block} begins, but the run ends at "
                    f"row {end}; take more steps, change the weights earlier, or leave it out"
                )
                raise RecipeError(msg)

    def resume(self, cursor: Cursor) -> int:
        """The global index to go on from; CheckpointError naming what differs from this stream."""
        cursor.require_same_order(self.cursor(cursor.index))
        return cursor.index


@dataclass(frozen=True, slots=True)
class FixedRows:
    """A fixed sample of a set's rows, for validation: always the same, in epoch 0, as source 0.

    Attributes:
        reader: rows -> examples.
        picks: the sample, spread over the whole set by a permutation of its own.
    """

    reader: RowReader
    picks: Picks

    @classmethod
    def open(
        cls,
        folder: Path | str,
        length: int,
        rows: int,
        packing: Packing = BestFitPacking(),  # noqa: B008 -- frozen
        cache: Path | None = None,
        *,
        shards: CacheConfig = CacheConfig(),  # noqa: B008 -- frozen
    ) -> "FixedRows":
        """Choose ``rows`` rows of a shard folder, or all when it has no more than that.

        Args:
            folder: its path or URL.
            length: tokens a row.
            rows: how many.
            packing: how rows are filled.
            cache: folder of packing plans; None makes them afresh.
            shards: where shards at a URL are kept.

        Raises:
            DataError: a damaged shard; every byte is hashed, as held-out sets are small.
        """
        # Few rows are read, so they need no map, which some file systems refuse.
        data = ShardedDataset.open(folder, verify="digests", mode="pread", cache=shards)
        source = PackedSource.open(data, packing, length, cache)
        count = min(rows, len(source))
        sample = permute(np.arange(count), len(source), keyed(0, "fixed", source.data.content))
        nought = np.zeros(count, np.int64)
        return cls(RowReader.of((source,), length), Picks(nought, nought, sample))

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.picks.sample)

    @property
    def tokenizer(self) -> TokenizerRecord:
        """The tokenizer that made the set."""
        return self.reader.tokenizer

    @property
    def fingerprint(self) -> str:
        """Hex digest of the contents of the set it is taken from."""
        return self.reader.sources[0].data.content

    def examples(self, start: int, stop: int) -> Rows:
        """The rows from number start up to, not including, stop."""
        part = slice(start, stop)
        picks = self.picks
        return self.reader.read(Picks(picks.source[part], picks.epoch[part], picks.sample[part]))


def _require_one_tokenizer(data: dict[str, ShardedDataset]) -> None:
    first, *others = data
    known = data[first].manifest.tokenizer
    for name in others:
        data[name].require_tokenizer(known.sha256, f"that of source '{first}'")
        # The digest covers which ids a text gets, not what stands around it.
        own = data[name].manifest.tokenizer
        for part in ("special", "prefix", "suffix"):
            if getattr(own, part) != getattr(known, part):
                msg = (
                    f"{data[name].folder}: {part} tokens of source '{name}' are "
                    f"{getattr(own, part)}, those of source '{first}' {getattr(known, part)}; "
                    "prepare both with the same tokenizer"
                )
                raise DataError(msg)


def _require_distinct(data: dict[str, ShardedDataset]) -> None:
    seen: dict[str, str] = {}
    for name, each in data.items():
        twin = seen.setdefault(each.content, name)
        if twin != name:
            msg = (
                f"data.sources: '{twin}' and '{name}' are the same data ({each.folder}, digest "
                f"{each.content[:16]}): it would be read twice; give one of them both weights"
            )
            raise RecipeError(msg)
