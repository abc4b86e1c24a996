"""Which steps are taken over the cable, and the model that takes them."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

RATES = ("200mbit", "400mbit", "1gbit")
"""At these the cable takes most of a step, but never all of it."""
FREE = "free"
"""The cable without a limit: what is left of a step there is not the cable's."""
LARGE = 1_000_000
"""Values in fp32 that the cable is gauged with."""
ROWS, LENGTH = 2, 32
SHAPE = {
    "model_type": "bert",
    "vocab_size": 2048,
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 768,
    "max_position_embeddings": LENGTH,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
"""2.3 million parameters: one exchange of them in fp32 is 9 MB."""
SPECIAL = {"pad": 0, "cls": 1, "sep": 2, "mask": 3}
_BUCKET = 1_000_000
"""Values: two reductions a step and more, not one of everything."""


@dataclass(frozen=True, slots=True)
class Case:
    """Settings of one engine."""

    stage: int
    precision: Literal["fp32", "bf16"]
    accumulation: int

    def deepspeed(self, world: int) -> dict[str, Any]:
        """Its JSON on so many ranks."""
        bucket = {"reduce_bucket_size": _BUCKET} if self.stage else {}
        values: dict[str, Any] = {
            "train_batch_size": ROWS * self.accumulation * world,
            "train_micro_batch_size_per_gpu": ROWS,
            "zero_optimization": {"stage": self.stage, **bucket},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 1_000_000_000,
        }
        if self.precision == "bf16":
            values["bf16"] = {"enabled": True}
        return values

    def to_json(self) -> dict[str, Any]:
        """For the other process."""
        return asdict(self)


CASES = (
    Case(0, "fp32", 1),
    Case(0, "fp32", 2),
    Case(1, "fp32", 1),
    Case(1, "bf16", 2),
    Case(2, "fp32", 1),
    Case(2, "bf16", 2),
    Case(3, "fp32", 1),
    Case(3, "bf16", 2),
)


def learner() -> Any:
    """The model with its objective, the same on both ranks; fp32, on the CPU."""
    import torch
    from transformers import AutoConfig, AutoModelForMaskedLM

    from engine.isolation import check_isolation
    from engine.learner import Learner
    from engine.objectives import MaskedLanguageModelling

    torch.manual_seed(0)
    values = dict(SHAPE)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    model: Any = AutoModelForMaskedLM.from_config(config, attn_implementation="sdpa")
    model.train()
    check_isolation(model)
    goal = MaskedLanguageModelling().build(SPECIAL, int(SHAPE["vocab_size"]))  # type: ignore[call-overload]
    return Learner(model, goal)


def micro_batch(goal: Any, number: int) -> Any:
    """Rows of made-up tokens, one document each."""
    import numpy as np

    from data_pipeline.example import WORD_START, Example, ExampleKey

    draw = np.random.default_rng(number)
    rows = [
        Example(
            tokens=draw.integers(4, int(SHAPE["vocab_size"]), LENGTH).astype(np.int32),  # type: ignore[call-overload]
            segments=np.ones(LENGTH, np.int32),
            positions=np.arange(LENGTH, dtype=np.int32),
            special=np.zeros(LENGTH, np.bool_),
            annotations=np.full(LENGTH, WORD_START, np.uint8),
            key=ExampleKey(0, 1, number * ROWS + row, 0),
        )
        for row in range(ROWS)
    ]
    return goal.collate(rows, 1, 1)
