"""A backend and ranks without torch, for tests that save often, in threads, or get killed."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.checkpoint import save
from engine.checkpoint.save import Alone
from engine.protocols import Fragment, Progress

SHAPES = {"embedding": (7, 5), "layer.weight": (5, 11), "layer.bias": (11,), "scale": (1,)}
KEYS = ("fp32", "exp_avg", "ema")


class FakeTensor:
    """As much of a tensor as a save needs; ``before_copy`` runs when it goes to the CPU."""

    def __init__(
        self, values: np.ndarray[Any, Any], before_copy: Callable[[], None] = lambda: None
    ) -> None:
        self._values = values
        self._before_copy = before_copy

    def numel(self) -> int:
        return int(self._values.size)

    @property
    def dtype(self) -> Any:
        return self._values.dtype

    @property
    def ndim(self) -> int:
        return self._values.ndim

    def detach(self) -> "FakeTensor":
        return self

    def contiguous(self) -> "FakeTensor":
        return self

    def cpu(self) -> "FakeTensor":
        self._before_copy()
        return self

    def numpy(self) -> np.ndarray[Any, Any]:
        return self._values


class FakeBackend:
    """Holds an equal share of every state; values are a function of name, key and ``seed``."""

    def __init__(
        self,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        before_copy: Callable[[], None] = lambda: None,
    ) -> None:
        self.seed = seed
        self.rank = rank
        self.world = world
        self._before_copy = before_copy

    def fragments(self) -> Iterator[Fragment]:
        for name, shape in SHAPES.items():
            for key in KEYS:
                flat = values_of(self.seed, name, key).reshape(-1)
                share = -(-flat.size // self.world)
                start = min(self.rank * share, flat.size)
                held: Any = FakeTensor(flat[start : start + share], self._before_copy)
                yield Fragment(name, key, shape, start, held)

    def extra_state(self) -> dict[str, Any]:
        return {"loss_scale": 2.0**self.seed}


class LiveBackend(FakeBackend):
    """Holds torch tensors that training can change under a save's hands."""

    def __init__(self, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        import torch

        super().__init__(seed, rank, world)
        self.state_keys = KEYS[1:]
        self.held = [
            Fragment(f.name, f.key, f.shape, f.start, torch.from_numpy(f.tensor.numpy().copy()))
            for f in super().fragments()
        ]

    def fragments(self) -> Iterator[Fragment]:
        return iter(self.held)

    def train(self, seed: int) -> None:
        """Write the values of another seed into the tensors, in place."""
        import torch

        self.seed = seed
        for mine, new in zip(self.held, super().fragments(), strict=True):
            mine.tensor.copy_(torch.from_numpy(new.tensor.numpy()))


def values_of(seed: int, name: str, key: str) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng([seed, *f"{name}|{key}".encode()])
    return rng.standard_normal(SHAPES[name], dtype=np.float32)


def save_step(
    root: Path, step: int, fingerprint: str = "recipe", *, due: bool = True, **backend: Any
) -> Path:
    """A one-rank checkpoint whose values are seeded by its step."""
    fake: Any = FakeBackend(seed=step, **backend)
    state = {"cursor": step * 8} | ({} if due else {"due": False})
    return save(root, Progress(step), fake, state, fingerprint, Alone())


class _Meeting:
    """Where the threads of one run leave and fetch values."""

    def __init__(self, world: int) -> None:
        self.values: list[Any] = [None] * world
        self.barrier = threading.Barrier(world, timeout=20)


class ThreadRank:
    """One rank of several in this process."""

    def __init__(self, number: int, meeting: _Meeting) -> None:
        self._number = number
        self._meeting = meeting

    def rank(self) -> int:
        return self._number

    def world(self) -> int:
        return len(self._meeting.values)

    def all_gather_object(self, value: Any, /) -> list[Any]:
        self._meeting.values[self._number] = value
        self._meeting.barrier.wait()
        gathered = list(self._meeting.values)
        self._meeting.barrier.wait()
        return gathered

    def broadcast_object(self, value: Any, /) -> Any:
        return self.all_gather_object(value)[0]


def on_ranks(world: int, action: Callable[[ThreadRank], Any]) -> Sequence[Any]:
    """What the action gave, or raised, on each of ``world`` ranks."""
    meeting = _Meeting(world)
    outcomes: dict[int, Any] = {}

    def work(number: int) -> None:
        try:
            outcomes[number] = action(ThreadRank(number, meeting))
        except Exception as error:
            outcomes[number] = error

    threads = [threading.Thread(target=work, args=(number,)) for number in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    return [outcomes[number] for number in range(world)]


def save_on_ranks(root: Path, step: int, world: int, state: Mapping[str, Any]) -> Sequence[Any]:
    """The same checkpoint as ``save_step``, written by several ranks."""

    def act(ranks: ThreadRank) -> Path:
        fake: Any = FakeBackend(step, ranks.rank(), world)
        return save(root, Progress(step), fake, state, "recipe", ranks)

    return on_ranks(world, act)
