"""Made-up rows on a disk, and the recipe stage that trains a model on them."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.models import Model

if TYPE_CHECKING:
    from configs.stage import StageContext
    from engine.pretraining import PretrainStage

SPECIAL = {"pad": 0, "cls": 1, "sep": 2, "mask": 3, "unk": 4}
_SKEW = 4.0
"""Low ids are common and high ones rare, so that there is something to learn in a few steps."""


def write_data(folder: Path, model: Model, rows: int) -> None:
    """A tokenizer, and shards of about so many rows: documents of log-normal lengths, packed."""
    import numpy as np

    from data_pipeline.example import WORD_START
    from data_pipeline.shards import ShardWriter
    from data_pipeline.tokenization import tokenizer_record

    _write_tokenizer(folder / "tokenizer", model.vocabulary)
    record = tokenizer_record(folder / "tokenizer")
    ends = {"prefix": [SPECIAL["cls"]], "suffix": [SPECIAL["sep"]]}
    record = record.model_copy(update={"special": SPECIAL, **ends})
    draw = np.random.default_rng(0)
    wanted = int(1.2 * rows * model.length) + 10 * model.length
    with ShardWriter(folder / "shards", record, 8_000_000) as writer:
        while wanted > 0:
            drawn = draw.lognormal(np.log(model.length / 3), 0.8, 256)
            lengths = np.clip(drawn, 3, 4 * model.length).astype(np.int32)
            total = int(lengths.sum())
            usual = model.vocabulary - len(SPECIAL)
            tokens = len(SPECIAL) + (usual * draw.random(total) ** _SKEW).astype(np.int64)
            writer.write(tokens, lengths, np.full(total, WORD_START, np.uint8))
            wanted -= total
        writer.finish({})


def _write_tokenizer(folder: Path, size: int) -> None:
    """A word-level one: nothing is tokenised with it, but the engine compares its digest."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    names = {f"[{role.upper()}]": index for role, index in SPECIAL.items()}
    words = {f"w{index}": index for index in range(len(names), size)}
    backend = Tokenizer(WordLevel(names | words, unk_token="[UNK]"))
    roles = {f"{role}_token": f"[{role.upper()}]" for role in SPECIAL}
    PreTrainedTokenizerFast(tokenizer_object=backend, **roles).save_pretrained(folder)


def deepspeed(
    rows: int, precision: str = "bf16", accumulation: int = 1, **changes: Any
) -> dict[str, Any]:
    """A DeepSpeed JSON for one rank, with torch's AdamW: nothing is compiled."""
    values: dict[str, Any] = {
        "train_batch_size": rows * accumulation,
        "train_micro_batch_size_per_gpu": rows,
        "gradient_clipping": 1.0,
        "zero_optimization": "auto",
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if precision == "fp16":
        # Low enough to grow and high enough to overflow once within a short run.
        values["fp16"] = {"enabled": True, "initial_scale_power": 24, "loss_scale_window": 8}
    elif precision == "bf16":
        values["bf16"] = {"enabled": True}
    return values | changes


def stage_of(
    model: Model, folder: Path, steps: int, values: Mapping[str, Any], **changes: Any
) -> "PretrainStage":
    """As a recipe would have it; dropout is off, so that runs can be compared."""
    from engine.pretraining import PretrainStage

    rates = {
        "bert": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
        "gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    }
    quiet = dict.fromkeys(rates.get(str(model.shape["model_type"]), ()), 0.0)
    given = {
        "kind": "pretrain",
        "model": {
            "name": "random",
            "shape": model.shape | quiet,
            "tokenizer": str(folder / "tokenizer"),
        },
        "data": {
            "length": model.length,
            "sources": {"made up": {"shards": str(folder / "shards")}},
        },
        "objective": {"name": model.objective},
        "optimizer": {"name": "adamw", "lr": 1e-3 if model.goal == 0 else 1e-4},
        "schedule": {"name": "linear", "warmup": 0.1, "end": 0.5},
        "steps": steps,
        "backend": {"name": "deepspeed", "config": dict(values)},
        "checkpoint": {"every": max(1, steps)},
        "log_every": 5,
    }
    return PretrainStage.model_validate(given | changes)


def context_in(folder: Path) -> "StageContext":
    """Of a stage by itself."""
    from configs.stage import StageContext

    folder.mkdir(parents=True, exist_ok=True)
    return StageContext("benchmark", folder, 1, "key", {})
