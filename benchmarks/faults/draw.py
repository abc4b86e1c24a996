"""What a run of the campaign is, and what hits it: a pure function of the seed and its number."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

Model = Literal["bert", "gpt2"]
Extra = Literal["plain", "penalty", "lora", "average"]
EXTRAS: tuple[Extra, ...] = ("plain", "penalty", "lora", "average")
IN_STEP = ("data", "reduce", "forward", "backward", "optimizer")
SAVE_ANY_RANK = ("checkpoint.shard", "checkpoint.half", "checkpoint.gather")
SAVE_FIRST_RANK = (
    "checkpoint.begin",
    "checkpoint.manifest",
    "checkpoint.rename",
    "checkpoint.renamed",
    "checkpoint.prune",
)
DAMAGES = ("empty", "half", "one byte short", "flip", "delete", "rename", "swap", "extra")


@dataclass(frozen=True, slots=True)
class Setup:
    """A pretraining stage of the campaign.

    Attributes:
        world: ranks that it is begun with.
        batch: rows a step, on any number of ranks.
        micro: rows of a micro-batch; the same on any number of ranks, as dropout is keyed by it.
        every: steps between checkpoints; ``keep`` of them stay.
        mode: of checkpoints: written before training goes on, or behind it.
        guard: steps out of bounds are skipped, and rolled back after two in a row.
    """

    model: Model
    stage: int
    precision: Literal["fp32", "bf16"]
    world: int
    extra: Extra
    batch: int
    micro: int
    steps: int
    every: int
    keep: int
    mode: Literal["sync", "async"]
    guard: bool

    @property
    def worlds(self) -> tuple[int, ...]:
        """Numbers of ranks that the batch can be split over."""
        return tuple(n for n in (1, 2, 3, 4) if self.batch % (n * self.micro) == 0)

    @property
    def stages(self) -> tuple[int, ...]:
        """ZeRO stages that it could run at, too."""
        return (0, 1, 2, 3) if self.precision == "fp32" else (1, 2, 3)


@dataclass(frozen=True, slots=True)
class Fault:
    """What hits one attempt, and what is done before the next.

    Attributes:
        kind: its row in the table.
        inject: for ``ONWARD_FAULT`` of the attempt.
        damage: done to the newest checkpoint after the attempt; empty: nothing.
        draw: seeds which file and which place the damage hits.
        world: ranks of the attempts from then on; None: as before.
        stage: ZeRO stage from then on; None: as before.
        reading: how shards are read or checked from then on; None: as before.
    """

    kind: str
    inject: str
    damage: str = ""
    draw: int = 0
    world: int | None = None
    stage: int | None = None
    reading: str | None = None


@dataclass(frozen=True, slots=True)
class Drawn:
    """One run of the campaign.

    Attributes:
        standing: what is armed in every attempt and in the control, too: losses out of bounds.
    """

    number: int
    setup: Setup
    faults: tuple[Fault, ...]
    standing: str = ""

    @property
    def hang_after(self) -> float:
        """Seconds of silence after which ranks are to give up; long where none is stopped."""
        return 6.0 if any("stop@" in fault.inject for fault in self.faults) else 900.0

    @property
    def changes_sums(self) -> bool:
        """Whether sums are rounded otherwise than in the run that nothing hit."""
        return any(fault.world or fault.stage is not None for fault in self.faults)


def setups() -> list[Setup]:
    """Every model, ZeRO stage and precision, in three ways."""
    precisions = [(stage, "fp32") for stage in range(4)] + [(stage, "bf16") for stage in (1, 2, 3)]
    found = []
    for number, (variant, model, (stage, precision)) in enumerate(
        product(range(3), ("bert", "gpt2"), precisions)
    ):
        wide = variant == 2
        found.append(
            Setup(
                model,  # type: ignore[arg-type]  # product widens the literals
                stage,
                precision,  # type: ignore[arg-type]
                world=(3 if number % 2 else 4) if wide else 2,
                extra=EXTRAS[(variant + number) % len(EXTRAS)],
                batch=12 if wide else 8,
                micro=1 if wide else 2,
                steps=8 + number % 5,
                every=2 + number % 2,
                keep=1 + number // 2 % 2,
                mode="async" if variant == 1 or (wide and number % 4 < 2) else "sync",
                guard=variant == 1 or (wide and number % 3 == 0),
            )
        )
    return found


def draw(seed: int, number: int) -> Drawn:
    """Run ``number`` of the campaign with this seed."""
    rng = random.Random(f"{seed}/{number}")
    setup = rng.choice(setups())
    standing = _out_of_bounds(rng, setup) if setup.guard and rng.random() < 0.4 else ""
    faults: list[Fault] = []
    now, low = setup, 0
    # Where a loss is out of bounds on one rank, the same rank must be there in the control.
    kinds = {kind: often for kind, often in KINDS.items() if not (standing and kind in _REPLACING)}
    if ";" in standing:
        kinds |= {_kill_in_rollback: 12}
    for _ in range(rng.choice((1, 1, 2, 2, 3))):
        make = rng.choices(list(kinds), list(kinds.values()))[0]
        low = rng.randrange(low, setup.steps - 1)
        fault = make(rng, now, low)
        faults.append(fault)
        stage = now.stage if fault.stage is None else fault.stage
        now = replace(now, world=fault.world or now.world, stage=stage)
    return Drawn(number, setup, tuple(faults), standing)


def _out_of_bounds(rng: random.Random, setup: Setup) -> str:
    """A loss that is no number, or far too large; in two steps in a row it is rolled back."""
    action, rank = rng.choice(("nan", "inf", "spike")), rng.randrange(setup.world)
    # A spike is told from the steps before it: there must be some.
    first = rng.randrange(4, setup.steps - 1)
    steps = [first, first + 1][: rng.choice((1, 1, 2))]
    return ";".join(f"{action}@loss:rank={rank},step={step}" for step in steps)


def _in_step(rng: random.Random, now: Setup, step: int) -> str:
    """A point within a step, on any rank, at any of its micro-batches."""
    point, rank = rng.choice(IN_STEP), rng.randrange(now.world)
    each = now.batch // now.micro // now.world
    nth = rng.randint(1, each) if point in {"forward", "backward"} else 1
    return f"{point}:rank={rank},step={step},nth={nth}"


def _in_save(rng: random.Random, now: Setup, points: Sequence[str]) -> str:
    point = rng.choice(points)
    rank = rng.randrange(now.world) if point in SAVE_ANY_RANK else 0
    return f"{point}:rank={rank},nth={rng.randint(1, 2)}"


def _kill_in_step(rng: random.Random, now: Setup, step: int) -> Fault:
    return Fault("killed in a step", f"kill@{_in_step(rng, now, step)}")


def _kill_in_save(rng: random.Random, now: Setup, _: int) -> Fault:
    where = _in_save(rng, now, (*SAVE_ANY_RANK, *SAVE_FIRST_RANK))
    return Fault("killed in a save", f"kill@{where}")


def _kill_in_rollback(rng: random.Random, now: Setup, _: int) -> Fault:
    where = f"{rng.choice(('rollback', 'rolled_back'))}:rank={rng.randrange(now.world)}"
    return Fault("killed in a rollback", f"kill@{where}")


def _kill_elsewhere(rng: random.Random, now: Setup, _: int) -> Fault:
    point, nth = rng.choice((("start", 1), ("validation", 1), ("validation", 3)))
    return Fault(
        "killed at the start or in validation",
        f"kill@{point}:rank={rng.randrange(now.world)},nth={nth}",
    )


def _signal(rng: random.Random, now: Setup, step: int) -> Fault:
    """One rank is asked to stop: all shall save what they have and end."""
    in_save = _in_save(rng, now, (*SAVE_ANY_RANK, *SAVE_FIRST_RANK))
    in_validation = f"validation:rank={rng.randrange(now.world)},nth={rng.randint(1, 3)}"
    where = rng.choice((_in_step(rng, now, step), in_save, in_validation))
    return Fault("asked to stop", f"{rng.choice(('term', 'usr1', 'int'))}@{where}")


def _stopped(rng: random.Random, now: Setup, step: int) -> Fault:
    """A rank stands still, as on a host that hangs; alone it is killed, as nobody would notice."""
    where = _in_step(rng, now, step)
    if now.world == 1:
        return Fault("killed in a step", f"kill@{where}")
    return Fault("rank stands still", f"stop@{where}")


def _exception(rng: random.Random, now: Setup, step: int) -> Fault:
    return Fault("exception in a step", f"error@{_in_step(rng, now, step)}")


def _damaged(rng: random.Random, now: Setup, step: int) -> Fault:
    late = max(step, now.every)
    return Fault(
        "checkpoint damaged",
        f"kill@{_in_step(rng, now, late)}",
        damage=rng.choice(DAMAGES),
        draw=rng.randrange(1 << 30),
    )


def _disk(rng: random.Random, now: Setup, _: int) -> Fault:
    where = _in_save(rng, now, ("checkpoint.begin", "checkpoint.shard", "checkpoint.half"))
    return Fault("disk full or failing", f"{rng.choice(('full', 'eio'))}@{where}")


def _slow(rng: random.Random, now: Setup, step: int) -> Fault:
    """A slow disk, and a kill while the slow write may be under way."""
    where = _in_save(rng, now, ("checkpoint.half",))
    kill = _in_step(rng, now, min(now.steps - 1, step + 2))
    return Fault("slow disk", f"sleep@{where},seconds=1;kill@{kill}")


def _other_world(rng: random.Random, now: Setup, step: int) -> Fault:
    others = [n for n in now.worlds if n != now.world]
    return Fault(
        "other number of ranks", f"kill@{_in_step(rng, now, step)}", world=rng.choice(others)
    )


def _other_stage(rng: random.Random, now: Setup, step: int) -> Fault:
    others = [n for n in now.stages if n != now.stage]
    return Fault("other ZeRO stage", f"kill@{_in_step(rng, now, step)}", stage=rng.choice(others))


def _other_reading(rng: random.Random, now: Setup, step: int) -> Fault:
    return Fault(
        "read in another way",
        f"kill@{_in_step(rng, now, step)}",
        reading=rng.choice(("pread", "sizes")),
    )


KINDS: dict[Callable[[random.Random, Setup, int], Fault], int] = {
    _kill_in_step: 6,
    _kill_in_save: 7,
    _kill_elsewhere: 2,
    _signal: 4,
    _stopped: 1,
    _exception: 1,
    _damaged: 4,
    _disk: 2,
    _slow: 1,
    _other_world: 3,
    _other_stage: 2,
    _other_reading: 1,
}
"""Each kind of fault and how often it is drawn."""
_REPLACING = (_other_world, _other_stage)
