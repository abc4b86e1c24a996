"""Small stages that do what a test asks; as a module it is a worker for them."""

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from configs.errors import DataError, RecipeError
from configs.stage import Runs, StageConfig, StageContext
from launcher.links import ChainRecipe, load_chain


class Write(StageConfig):
    """Writes its text and that of its inputs, in this process."""

    kind: Literal["write"] = "write"
    text: str
    inputs: tuple[str, ...] = ()
    needs: Path | None = None

    def run(self, context: StageContext) -> str:
        if self.text == "break":
            msg = "a broken stage"
            raise KeyError(msg)
        parts = [context.locate(location).read_text() for location in self.inputs]
        whole = self.text + "".join(parts)
        with (context.folder / "runs").open("a") as file:
            file.write("once\n")
        (context.folder / "out.txt").write_text(whole)
        return hashlib.sha256(whole.encode()).hexdigest()

    def check(self, context: StageContext) -> None:
        for location in self.inputs:
            if context.is_made(location):
                context.locate(location)
        if self.needs and not self.needs.exists():
            msg = f"stage {context.name}: needs: nothing at {self.needs}"
            raise DataError(msg)


class Crew(StageConfig):
    """Something that all ranks do together, and one of them differently."""

    RUNS: ClassVar[Runs] = "ranks"

    kind: Literal["crew"] = "crew"
    act: Literal["work", "refuse", "crash", "die", "wait"] = "work"
    on: int = 1
    inputs: tuple[str, ...] = ()

    def run(self, context: StageContext) -> str:
        from engine import distributed

        if self.act != "work" and distributed.rank() == self.on:
            self._misbehave(context)
        pids = distributed.all_gather_object(os.getpid())
        (context.folder / f"pid-{distributed.rank()}").write_text(str(os.getpid()))
        if self.act == "wait":
            time.sleep(120)
        return str(len(pids))

    def _misbehave(self, context: StageContext) -> None:
        if self.act == "refuse":
            msg = f"stage {context.name}: what rank {self.on} says"
            raise RecipeError(msg)
        if self.act == "crash":
            msg = "unforeseen"
            raise ZeroDivisionError(msg)
        if self.act == "die":
            os.kill(os.getpid(), signal.SIGKILL)


class Spread(StageConfig):
    """Something that hosts share, each by itself."""

    RUNS: ClassVar[Runs] = "hosts"

    kind: Literal["spread"] = "spread"
    inputs: tuple[str, ...] = ()
    fails_on: int | None = None

    def run(self, context: StageContext) -> str:
        index, count = context.share.index, context.share.count
        if index == self.fails_on:
            msg = f"host {index} has no such file"
            raise DataError(msg)
        facts = {"count": count, "torch": "torch" in sys.modules, "key": context.key}
        (context.folder / f"host-{index}.json").write_text(json.dumps(facts))
        end = time.monotonic() + 60
        while len(list(context.folder.glob("host-*.json"))) < count and time.monotonic() < end:
            time.sleep(0.05)
        return f"made by {count}"


class Toy(ChainRecipe):
    """A recipe of such stages."""

    stages: dict[str, Annotated[Write | Crew | Spread, Field(discriminator="kind")]]


def load_toy(path: Path) -> Toy:
    return load_chain(path, Toy)


if __name__ == "__main__":
    from launcher.worker import main

    main(load=load_toy)
