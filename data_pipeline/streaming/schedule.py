"""Which weights hold when, and what becomes of a source's share once it may be read no more."""

from collections.abc import Mapping
from dataclasses import dataclass

from configs.errors import RecipeError
from data_pipeline.streaming.mixture import BLOCK, Mixture, Phase, apportion, quotas


@dataclass(frozen=True, slots=True)
class Turn:
    """Weights that hold from a block on, until the next turn; by the sources' names, in order."""

    first_block: int
    weights: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Raised:
    """More of one source: what a run decided while it was under way.

    Attributes:
        after: it holds from the first block that begins at or after this row, skipped ones counted.
        source: by name.
        factor: of its weight then, and of its weights in all later turns.
    """

    after: int
    source: str
    factor: float


@dataclass(frozen=True, slots=True)
class Schedule:
    """An append-only list of weights: what has been drawn stays as it was."""

    turns: tuple[Turn, ...]
    block: int = BLOCK

    @classmethod
    def of(cls, weights: Mapping[str, float], block: int = BLOCK) -> "Schedule":
        """These weights throughout; they need not sum to 1. RecipeError for a share too small."""
        quotas(weights, block)
        return cls((Turn(0, dict(weights)),), block)

    def changed(self, after: int, weights: Mapping[str, float]) -> "Schedule":
        """The same with other weights from the first block at or after row ``after`` on."""
        first = -(-after // self.block)
        begun = self.turns[-1].first_block
        if first <= begun:
            msg = (
                f"mixture: weights change after row {after}, which is block {first} of "
                f"{self.block} rows, but the weights before them begin at row "
                f"{begun * self.block}; changes lie at least one block apart, in order"
            )
            raise RecipeError(msg)
        quotas(weights, self.block)
        return Schedule((*self.turns, Turn(first, dict(weights))), self.block)

    def raised(self, more: Raised) -> "Schedule":
        """The same with more of one source; RecipeError if it has no part in the mixture then."""
        first = -(-more.after // self.block)
        begun = [turn for turn in self.turns if turn.first_block <= first]
        held = Turn(first, begun[-1].weights)
        later = [turn for turn in self.turns if turn.first_block > first]
        if not held.weights[more.source]:
            msg = (
                f"mixture: source '{more.source}' has weight 0 from row {first * self.block} on: "
                "there is nothing to raise; give it a weight there, or raise another source"
            )
            raise RecipeError(msg)
        grown = []
        for turn in (held, *later):
            factor = more.factor
            weights = {n: w * factor if n == more.source else w for n, w in turn.weights.items()}
            quotas(weights, self.block)
            grown.append(Turn(turn.first_block, weights))
        before = tuple(turn for turn in begun if turn.first_block < first)
        return Schedule((*before, *grown), self.block)

    def mixture(self, most: Mapping[str, int] | None = None) -> Mixture:
        """The schedule in whole rows.

        A source that may give no more than ``most`` rows gives them all, and then nothing: in the
        block where they end, and from the next block on, the other sources share what would have
        been its own in proportion to their weights. Where none is left the mixture ends.

        Args:
            most: rows that a source may give in all, by name; those not named are without end.
        """
        made = _Phases(self.block, dict(most or {}), [])
        for number, turn in enumerate(self.turns):
            later = self.turns[number + 1 :]
            stop = later[0].first_block if later else None
            end = made.extend(turn, stop)
            if end is not None:
                return Mixture(tuple(made.phases), self.block, end)
        return Mixture(tuple(made.phases), self.block)


@dataclass(slots=True)
class _Phases:
    """The phases so far, and what the limited sources have left after them."""

    block: int
    left: dict[str, int]
    phases: list[Phase]

    def extend(self, turn: Turn, stop: int | None) -> int | None:
        """Phases of one turn; the row at which the mixture ends, if it ends in it."""
        at = turn.first_block
        while stop is None or at < stop:
            alive = {
                name: weight if self.left.get(name, 1) else 0.0
                for name, weight in turn.weights.items()
            }
            if not any(alive.values()):
                return at * self.block
            share = dict(zip(alive, quotas(alive, self.block), strict=True))
            whole = [self.left[n] // share[n] for n in self.left if share[n]]
            run = min([*whole, *([] if stop is None else [stop - at])], default=None)
            if run == 0:
                share, run = self._last_rows(alive), 1
            self._append(at, share)
            if run is None:
                return None
            for name in self.left:
                self.left[name] -= run * share[name]
            at += run
            if (filled := sum(share.values())) < self.block:
                return (at - 1) * self.block + filled
        return None

    def _last_rows(self, weights: Mapping[str, float]) -> dict[str, int]:
        """A block in which a source ends: its last rows, and the others in proportion."""
        shares = dict.fromkeys(weights, 0)
        sharing = {name: weight for name, weight in weights.items() if weight}
        rows = self.block
        while sharing:
            asked = dict(zip(sharing, apportion(list(sharing.values()), rows), strict=True))
            short = [name for name in sharing if self.left.get(name, rows) < asked[name]]
            if not short:
                return shares | asked
            for name in short:
                shares[name] = self.left[name]
                rows -= self.left[name]
                del sharing[name]
        return shares

    def _append(self, at: int, share: Mapping[str, int]) -> None:
        phase = Phase(at, tuple(share.values()))
        if not self.phases or self.phases[-1].quotas != phase.quotas:
            self.phases.append(phase)
