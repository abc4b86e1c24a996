"""Sentence pairs: a row is ``[CLS] A [SEP] B [SEP]``, and whether B follows A is to be told.

As in BERT (Devlin et al., 2019; ``create_pretraining_data``) A and B are runs of whole sentences
that fill the row, and half the rows have a B from another document; or, as in ALBERT (Lan et al.,
2020), half the rows have A and B exchanged. Unlike there, where a row is split, its label and its
negative are drawn afresh in every epoch.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from configs.errors import DataError, RecipeError
from data_pipeline.example import SENTENCE_START
from data_pipeline.packing.packer import PackingConfig
from data_pipeline.packing.plan import PackingPlan, RowShape, ShardText

Places = NDArray[np.int64]
CONSECUTIVE, NOT_CONSECUTIVE, NO_PAIR = 1, 0, -1
"""Labels of a row; a document of one sentence has no second part and no label."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """The two parts of rows of one shard, in tokens from the shard's first.

    Attributes:
        starts: int64 [n, 2].
        lengths: int64 [n, 2]; the second is 0 where there is no pair.
        labels: int64 [n]: CONSECUTIVE, NOT_CONSECUTIVE or NO_PAIR.
    """

    starts: Places
    lengths: Places
    labels: Places


@dataclass(frozen=True, slots=True)
class PackedShard:
    """A shard as pairs are taken from it.

    Attributes:
        plan: its rows.
        shape: of a row.
        starts: int64 [N], first token of each of its sequences.
        lengths: int32 [N].
    """

    plan: PackingPlan
    shape: RowShape
    starts: Places
    lengths: NDArray[np.int32]


class SentencePairsPacking(PackingConfig):
    """One pair a row: A and B see one another, positions run through both.

    A plan has one piece a row, whole sentences of one document; ``pairs`` splits it. With
    ``order`` every token is read once an epoch. With ``random_document`` a row with a random B
    leaves its own second part unread in that epoch. Sentences longer than half a row are cut.
    """

    VERSION: ClassVar[int] = 1
    SHARES_ROWS: ClassVar[bool] = False

    name: Literal["sentence_pairs"] = "sentence_pairs"
    negatives: Literal["random_document", "order"] = Field(
        "random_document",
        description="B from another document of the shard (NSP), or A and B exchanged (SOP)",
    )

    def plan(self, text: ShardText, shape: RowShape) -> PackingPlan:
        """Rows for a shard's sequences: runs of whole sentences that fill them; deterministic.

        Raises:
            RecipeError: the tokenizer has no token before and after a document, or no room for two.
            DataError: the shard knows no sentences, or has no other document to draw from.
        """
        room = pair_room(shape)
        lengths = text.lengths.astype(np.int64)
        stops = np.cumsum(lengths)
        filled = np.flatnonzero(lengths)
        if self.negatives == "random_document" and len(filled) < 2:
            msg = (
                f"{text.name}: holds {len(filled)} document, so that no row can have a second part "
                "from another one; give negatives: order, or prepare shards of more documents"
            )
            raise DataError(msg)
        begins = stops - lengths
        sentences = _units(text, begins[filled], stops, room // 2)
        first = np.searchsorted(sentences, begins[filled])
        last = np.searchsorted(sentences, stops[filled])
        row_first, row_stop = _fill(sentences, first, last, int(stops[-1]), room)
        bounds = np.append(sentences, stops[-1:])
        start, length = bounds[row_first], bounds[row_stop] - bounds[row_first]
        sequence = np.searchsorted(stops, start, "right")
        pieces = np.stack((sequence, start - begins[sequence], length), axis=1)
        offsets = np.arange(len(pieces) + 1, dtype=np.int64)
        return PackingPlan(offsets, pieces.astype(np.int32), sentences)

    def pairs(self, shard: "PackedShard", rows: Places, drawn: NDArray[np.uint64]) -> Pairs:
        """Both parts and the label of rows of one shard.

        Args:
            shard: where they lie.
            rows: int64 [n], in its plan.
            drawn: uint64 [4, n] of ``draws``: all that is random.
        """
        plan, starts, lengths = shard.plan, shard.starts, shard.lengths
        pieces = plan.pieces[plan.offsets[rows]].astype(np.int64)
        begin = starts[pieces[:, 0]] + pieces[:, 1]
        end = begin + pieces[:, 2]
        unit = np.searchsorted(plan.sentences, begin)
        units = np.searchsorted(plan.sentences, end) - unit
        single = units < 2
        inner = unit + np.where(single, 0, 1 + _below(drawn[0], np.maximum(units - 1, 1)))
        middle = np.where(single, end, plan.sentences[inner])
        first = np.stack((begin, middle - begin), axis=1)
        second = np.stack((middle, end - middle), axis=1)
        negative = ~single & (_below(drawn[1], np.full(len(rows), 2)) == 0)
        labels = np.where(single, NO_PAIR, np.where(negative, NOT_CONSECUTIVE, CONSECUTIVE))
        if self.negatives == "order":
            turned = negative[:, None]
            first, second = np.where(turned, second, first), np.where(turned, first, second)
        else:
            other = _others(pieces[:, 0], lengths, drawn[2])
            room = pair_room(shard.shape) - first[:, 1]
            stop = starts[other] + lengths[other]
            foreign = _run(plan.sentences, starts[other], stop, second[:, 1], room, drawn[3])
            second = np.where(negative[:, None], foreign, second)
        parts = np.stack((first, second), axis=1)
        return Pairs(parts[:, :, 0], parts[:, :, 1], labels)


def pair_room(shape: RowShape) -> int:
    """Text tokens of a pair: the row less what stands before A, and after A and B."""
    after = shape.overhead - shape.before
    if not shape.before or not after:
        msg = (
            f"data.packing sentence_pairs: the tokenizer puts {shape.before} special tokens before "
            f"and {after} after a text; expected one at least of each, as [CLS] and [SEP]"
        )
        raise RecipeError(msg)
    room = shape.length - shape.overhead - after
    if room < 2:
        msg = (
            f"data.length {shape.length}: a pair needs {shape.overhead + after} special tokens, "
            "which leaves no room for two texts; give more than that"
        )
        raise RecipeError(msg)
    return room


def draws(key: int, samples: Places, epochs: Places, count: int = 4) -> NDArray[np.uint64]:
    """64 random bits, uint64 [count, n], of key, sample and epoch alone (splitmix64).

    Args:
        key: of the run's seed and the source.
        samples: int64 [n], the rows' numbers in their source.
        epochs: int64 [n].
        count: numbers a row.
    """
    state = _mixed(np.uint64(key & (1 << 64) - 1) ^ _mixed(samples.astype(np.uint64)))
    state = _mixed(state ^ _mixed(~epochs.astype(np.uint64)))
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return _mixed(state[None] + steps[:, None])


def _units(text: ShardText, begins: Places, stops: Places, longest: int) -> Places:
    """Where sentences begin; those of more than ``longest`` tokens count as several."""
    marked = (text.annotations() & SENTENCE_START).astype(np.bool_)
    if not marked.any():
        msg = (
            f"{text.name}: no token is marked as the start of a sentence, which sentence_pairs "
            "go by; prepare the corpus with annotations, or choose another packing"
        )
        raise DataError(msg)
    marked[begins] = True
    sentences = np.flatnonzero(marked)
    sizes = np.diff(sentences, append=stops[-1:])
    counts = -(-sizes // longest)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    found: Places = np.repeat(sentences, counts) + number * longest
    return found


def _fill(
    sentences: Places, first: Places, last: Places, tokens: int, room: int
) -> tuple[Places, Places]:
    """Rows as ranges of sentences: as many as fit, document by document, never a lone last one.

    Where one sentence would be left over, the row before it gives up one of three or more.
    """
    bounds = np.append(sentences, tokens)
    document_stop = np.repeat(last, last - first)
    stop = np.searchsorted(bounds, sentences + room, "right") - 1
    stop = np.minimum(stop, document_stop)
    stop -= (document_stop - stop == 1) & (stop - np.arange(len(stop)) >= 3)
    rows = []
    now, until = first, last
    while len(now):
        rows.append(now)
        now = stop[now]
        going = now < until
        now, until = now[going], until[going]
    begun = np.sort(np.concatenate(rows))
    return begun, stop[begun]


def _others(own: Places, lengths: NDArray[np.int32], drawn: NDArray[np.uint64]) -> Places:
    """A document with text other than one's own, each equally likely: int64 [n]."""
    if lengths.all():
        chosen = _below(drawn, np.full(len(own), len(lengths) - 1))
        return chosen + (chosen >= own)
    filled = np.flatnonzero(lengths)
    chosen = _below(drawn, np.full(len(own), len(filled) - 1))
    found: Places = filled[chosen + (chosen >= np.searchsorted(filled, own))]
    return found


def _run(
    sentences: Places,
    begin: Places,
    stop: Places,
    wanted: Places,
    room: Places,
    drawn: NDArray[np.uint64],
) -> Places:
    """Whole sentences of documents, about as many tokens as wanted: int64 [n, 2], start and length.

    From a sentence behind which enough is left, if there is one. As long as the second part that
    it replaces, so that a row's length does not tell its label.
    """
    first = np.searchsorted(sentences, begin)
    last = np.maximum(np.searchsorted(sentences, stop - wanted, "right") - 1, first)
    start = sentences[first + _below(drawn, last - first + 1)]
    after = np.searchsorted(sentences, start + wanted)
    # Behind the last sentence of all the document ends as well.
    next_one = np.where(after < len(sentences), sentences.take(after, mode="clip"), stop)
    more = np.minimum(next_one, stop) - start
    less = np.minimum(sentences[after - 1], stop) - start
    take_more = (more <= room) & ((less <= 0) | (more - wanted <= wanted - less))
    # A sentence that does not fit by itself is cut.
    length = np.where(take_more, more, np.where(less > 0, less, np.minimum(more, room)))
    return np.stack((start, length), axis=1)


def _mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    found: NDArray[np.uint64] = words ^ (words >> np.uint64(31))
    return found


def _below(words: NDArray[np.uint64], limit: Places) -> Places:
    """Numbers in [0, limit), each equally likely but for 2**-32."""
    drawn = (words >> np.uint64(32)) * limit.astype(np.uint64) >> np.uint64(32)
    return drawn.astype(np.int64)
