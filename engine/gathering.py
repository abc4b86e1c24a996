"""What ZeRO stage 3 gathers in a forward and a backward pass, call by call.

A rehearsal of DeepSpeed 0.19.8's parameter coordinator once it knows the model's trace: what it
fetches for a module, what it fetches ahead, and what it keeps until its next use.
"""

from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from engine.layout import Layout, after, backward

_LONG_AGO = -(10**10)


@dataclass(frozen=True, slots=True)
class Gathering:
    """What the calls depend on.

    Attributes:
        layout: the model's modules.
        tensors: values in each tensor.
        persistent: of each tensor, whether it is never given back.
        ahead: values that are fetched ahead at once; ``live``: most that are there;
        reuse: values within which a tensor's next use keeps it.
    """

    layout: Layout
    tensors: tuple[int, ...]
    persistent: tuple[bool, ...]
    ahead: int
    live: int
    reuse: int


Call = tuple[int, ...]
"""The tensors that one call gathers."""


@lru_cache(maxsize=64)
def gathered(given: Gathering) -> tuple[tuple[Call, ...], tuple[Call, ...]]:
    """The calls of a forward pass, and of its backward pass."""
    rehearsal = _Rehearsal(given)
    forward = rehearsal.forward()
    return tuple(forward), tuple(rehearsal.backward())


class _Rehearsal:
    def __init__(self, given: Gathering) -> None:
        self._given = given
        layout = given.layout
        self._order = [*range(len(layout)), *backward(layout)]
        self._queue = deque(
            (tensor, step)
            for step, position in enumerate(self._order)
            for tensor in sorted(set(layout[position].tensors))
        )
        self._here = list(given.persistent)
        self._used: dict[int, set[int]] = defaultdict(set)
        self._fetched_for: dict[int, int] = defaultdict(lambda: _LONG_AGO)
        self._step = 0
        self._live = 0
        self._calls: list[Call] = []

    def forward(self) -> list[Call]:
        """Modules are entered in order, and left when all that they hold has been."""
        return self._pass(self._order[: len(self._given.layout)])

    def backward(self) -> list[Call]:
        """The same in reverse."""
        return self._pass(self._order[len(self._given.layout) :])

    def _pass(self, order: list[int]) -> list[Call]:
        self._calls = []
        open_modules: list[int] = []
        for position in order:
            while open_modules and not self._holds(open_modules[-1], position):
                self._leave(open_modules.pop())
            open_modules.append(position)
            self._enter(position)
        while open_modules:
            self._leave(open_modules.pop())
        return self._calls

    def _holds(self, outer: int, inner: int) -> bool:
        return outer < inner < after(self._given.layout, outer)

    def _gather(self, tensors: list[int]) -> None:
        missing = [tensor for tensor in tensors if not self._here[tensor]]
        if missing:
            self._calls.append(tuple(missing))
            for tensor in missing:
                self._here[tensor] = True
                self._live += self._given.tensors[tensor]

    def _enter(self, position: int) -> None:
        own = sorted(set(self._given.layout[position].tensors))
        self._gather(own)
        for tensor in own:
            self._used[tensor].add(position)
        due = {tensor for tensor in own if self._fetched_for[tensor] < self._step}
        taken: set[int] = set()
        while self._queue and len(taken) < len(due):
            tensor, step = self._queue.popleft()
            self._fetched_for[tensor] = step
            taken.add(tensor)
        self._gather(list(self._ahead()))
        self._step += 1

    def _ahead(self) -> Iterator[int]:
        """The next tensors of the trace that are not here, up to a bucket of them."""
        given, size, chosen = self._given, 0, set[int]()
        most = min(given.live - self._live, given.ahead)
        while self._queue and size < most:
            tensor, step = self._queue.popleft()
            self._fetched_for[tensor] = max(self._fetched_for[tensor], step)
            if not self._here[tensor] and tensor not in chosen:
                chosen.add(tensor)
                size += given.tensors[tensor]
                yield tensor

    def _leave(self, position: int) -> None:
        given = self._given
        own = set(given.layout[position].tensors)
        going = {t for t in own if not given.persistent[t] and self._fetched_for[t] <= self._step}
        going -= self._soon(going, position)
        for tensor in own:
            self._used[tensor].discard(position)
            if tensor in going and self._here[tensor] and not self._used[tensor]:
                self._here[tensor] = False
                self._live -= given.tensors[tensor]

    def _soon(self, candidates: set[int], leaving: int) -> set[int]:
        """Those of them that are used again within the distance, as DeepSpeed measures it."""
        found: set[int] = set()
        passed = 0
        for position in self._order[self._step :] if candidates else ():
            if passed >= self._given.reuse:
                break
            for tensor in self._seen_from(leaving, position):
                found.add(tensor)
                passed += self._given.tensors[tensor]
        return found & candidates

    def _seen_from(self, leaving: int, position: int) -> Iterator[int]:
        """A whole module looks into all others, and the others do not look into a whole one."""
        layout = self._given.layout
        if layout[leaving].is_whole:
            for inner in range(position, after(layout, position)):
                yield from layout[inner].tensors
        elif not layout[position].is_whole:
            yield from layout[position].tensors
