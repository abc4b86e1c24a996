"""``python -m benchmarks.faults --runs N --seed S``: play runs, append results, write the table."""

import argparse
import json
import os
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

from benchmarks.faults import operators, report
from benchmarks.faults.campaign import Campaign, drawn_facts
from benchmarks.faults.draw import draw
from configs.places import cache_folder
from tests.warm import WarmWorkers


def main() -> None:
    """Play what is asked and is not in the results yet."""
    given = _parse()
    results = given.results or given.place / f"results-{given.seed}.jsonl"
    if given.report:
        report.write(results)
        return
    wanted = [given.only] if given.only is not None else list(range(given.runs))
    done = set() if given.only is not None else _done(report.read(results), given.seed)
    left = [number for number in wanted if number not in done]
    with operators():
        failed = play(given.place, given.seed, left, results, given.lanes)
    for number in failed:
        print(f"FAILED: python -m benchmarks.faults --seed {given.seed} --only {number}")
    sys.exit(1 if failed else 0)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="play this run alone, whatever is there already")
    parser.add_argument("--lanes", type=int, default=2, help="runs side by side")
    parser.add_argument("--place", type=Path, default=cache_folder() / "faults")
    parser.add_argument("--results", type=Path, help="JSON lines; what is in it is not run again")
    parser.add_argument("--report", action="store_true", help="only write the table")
    return parser.parse_args()


def _done(results: list[dict[str, Any]], seed: int) -> set[int]:
    """Runs that need not be played: one that failed is, as what was wrong may be mended by now.

    So is one that was something else when it was played.
    """
    return {
        told["run"]
        for told in results
        if told["passed"] and drawn_facts(draw(seed, told["run"])).items() <= told.items()
    }


def play(place: Path, seed: int, numbers: list[int], results: Path, lanes: int) -> list[int]:
    """Play runs in several lanes, each with warm workers of its own; the numbers that failed."""
    campaign = Campaign(place, seed)
    left, failed = iter(numbers), list[int]()
    lock = threading.Lock()

    def work(lane: int) -> None:
        folder = place / f"warm-{os.getpid()}-{lane}"
        with WarmWorkers({}, folder) as workers:
            while True:
                with lock:
                    number = next(left, None)
                if number is None:
                    break
                told = campaign.run(number, workers)
                with lock:
                    _append(results, told)
                    print(report.line(told), flush=True)
                    if not told["passed"]:
                        failed.append(number)
        shutil.rmtree(folder, ignore_errors=True)

    threads = [threading.Thread(target=work, args=(lane,)) for lane in range(lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failed


def _append(path: Path, told: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
