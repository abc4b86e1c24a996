"""One rank of the two-process test: a table by plain torch and by DeepSpeed, an evaluation."""

import os
import sys
from pathlib import Path
from typing import Any

from downstream.evaluate import EvaluateStage
from downstream.finetune import FinetuneStage
from engine import distributed
from tests.downstream import tiny


def zero(stage: int) -> dict[str, Any]:
    return {
        "name": "deepspeed",
        "config": {
            "train_batch_size": 8,
            "train_micro_batch_size_per_gpu": 2,
            "gradient_clipping": 1.0,
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 10**9,
        },
    }


def finetune(folder: Path, name: str, names: str = "ab", **changes: Any) -> None:
    arms = {arm: str(folder / arm) for arm in names}
    stage = FinetuneStage.model_validate(tiny.finetune_config(arms, epochs=2, **changes))
    stage.run(tiny.context(name, folder / name, rows=folder / "rows"))


def evaluate(folder: Path, name: str) -> None:
    stage = EvaluateStage.model_validate(
        {
            "kind": "evaluate",
            "finetune": "stage:plain",
            "baseline": "a",
            "resamples": 200,
            "language_model": {
                "arms": {arm: str(folder / arm) for arm in "ab"},
                "sets": {name: str(folder / name) for name in ("general", "domain")},
                "length": 32,
                "rows": 6,
                "objective": {"name": "mlm"},
            },
        }
    )
    stage.run(tiny.context("evaluate", folder / name, plain=folder / "plain"))


def main(folder: Path) -> None:
    with distributed.joined():
        finetune(folder, "plain")
        # Stage 3 is the one that needs all ranks to run the model equally often.
        finetune(folder, "zero3", names="a", backend=zero(3))
        evaluate(folder, "evaluate")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    # As the product's worker: the teardown of threads now and then aborts on a CPU.
    sys.stdout.flush()
    os._exit(0)
