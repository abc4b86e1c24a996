"""transformers' Trainer with DeepSpeed, on rows and documents that are in memory already."""

import os
import socket
from collections import deque
from pathlib import Path
from typing import Any

from serving import serve
from stepping import Stepping

_running: list[Stepping] = []
PADDED = "padded"
LEARNER = "learner"


def start(work: dict[str, Any], config: dict[str, Any], settings: dict[str, Any]) -> int:
    """Put everything together and begin; no step is taken yet.

    ``work``: ``kind`` is ``rows`` (packed rows, the model's own head), ``padded`` (single
    documents, padded to the longest of a batch; ``grouped``: see ``_grouped``) or ``learner``
    (Onward's own module and collation); ``folder``, ``shape`` and ``length`` as for Onward.
    ``settings``: further TrainingArguments.
    """
    from engine.kernels.memory import keep_freed_memory

    # As for Onward: torch's advice for a CPU is an allocator that does so.
    keep_freed_memory()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update(names | {"MASTER_PORT": str(port)})
    _running.append(Stepping(lambda: _train(work, config, settings)))
    return 0


def steps(count: int) -> int:
    """So many steps; the real tokens in them."""
    return _running[0].take(count)


def _train(work: dict[str, Any], config: dict[str, Any], settings: dict[str, Any]) -> None:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    made = _learner(work, config) if work["kind"] == LEARNER else _plain(work)
    model, rows, collate, real = made
    tokens: deque[int] = deque()

    def collated(features: list[Any]) -> Any:
        tokens.append(real(features))
        return collate(features)

    class Gate(TrainerCallback):
        """A step begins when it is asked for, the batch after it is not made before."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            _running[0].waits()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            _running[0].passed(tokens.popleft())
            _running[0].waits()

    arguments = TrainingArguments(
        output_dir=str(Path(work["folder"]) / f"trainer-{os.getpid()}"),
        per_device_train_batch_size=config["train_micro_batch_size_per_gpu"],
        max_steps=1000,
        learning_rate=1e-4,
        weight_decay=0.01,
        max_grad_norm=config["gradient_clipping"],
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        bf16=True,
        use_cpu=True,
        deepspeed=config,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        **settings,
    )
    Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=collated,
        callbacks=[Gate()],
    ).train()


def _plain(work: dict[str, Any]) -> tuple[Any, Any, Any, Any]:
    """A model of transformers, rows in memory, its own collator."""
    import torch
    from transformers import AutoConfig, AutoModelForMaskedLM, DataCollatorForLanguageModeling

    from engine.models import load_tokenizer

    folder = Path(work["folder"])
    tokenizer = load_tokenizer(str(folder / "tokenizer"), Path)
    rows = _rows(folder, work)
    if "grouped" in work:
        rows = _grouped(rows, **work["grouped"])
    values = dict(work["shape"])
    shape = AutoConfig.for_model(
        values.pop("model_type"), **values, vocab_size=len(tokenizer), pad_token_id=0
    )
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(shape, attn_implementation="sdpa")
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    return model, rows, collator, lambda features: sum(sum(f["attention_mask"]) for f in features)


def _rows(folder: Path, work: dict[str, Any]) -> list[dict[str, list[int]]]:
    """Onward's rows of packed documents, or its rows of one document without their padding."""
    from benchmarks import training_stage

    is_padded = work["kind"] == PADDED
    changes = {"packing": {"name": "single"}} if is_padded else {}
    found = []
    for row in training_stage.rows(folder, work["shape"], work["length"], work["count"], changes):
        real = int((row.segments > 0).sum())
        end = real if is_padded else len(row.tokens)
        found.append(
            {
                "input_ids": row.tokens[:end].tolist(),
                "attention_mask": [1] * real + [0] * (end - real),
                "special_tokens_mask": row.special[:end].astype(int).tolist(),
            }
        )
    return found


def _grouped(
    rows: list[dict[str, list[int]]], documents: int, batches: int, taken: list[int]
) -> list[dict[str, list[int]]]:
    """Some batches of so many documents, of the first group that transformers would sort."""
    import torch
    from transformers.trainer_pt_utils import get_length_grouped_indices

    lengths = [len(row["input_ids"]) for row in rows]
    draw = torch.Generator().manual_seed(0)
    order = get_length_grouped_indices(lengths, documents, batches, generator=draw)
    return [
        rows[at] for batch in taken for at in order[batch * documents : (batch + 1) * documents]
    ]


def _learner(work: dict[str, Any], config: dict[str, Any]) -> tuple[Any, Any, Any, Any]:
    """Onward's learner as a model, its examples, and its collation."""
    import torch
    from torch import nn

    from benchmarks import training_stage
    from engine.assemble import build_learner
    from engine.kernels.choice import quicken

    folder = Path(work["folder"])
    asked = training_stage.stage(folder, work["shape"], work["length"], config)
    rows = training_stage.rows(folder, work["shape"], work["length"], work["count"], {})
    objective = training_stage.objective(asked)
    context = training_stage.context(folder / f"learner-{os.getpid()}")
    learner, _, _ = build_learner(asked, context, objective)
    quicken(learner.backbone, torch.device("cpu"), "bf16", work["length"])

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.learner = learner

        def forward(self, count: int, **tensors: torch.Tensor) -> dict[str, torch.Tensor]:
            total, _ = self.learner(tensors)
            return {"loss": total / count}

    def collate(features: list[Any]) -> dict[str, Any]:
        batch = objective.collate(features, 1, 1)
        # The targets go by another name: of ``labels`` the Trainer makes sums of its own.
        return dict(batch.tensors) | {"count": torch.tensor(float(batch.count))}

    def real(features: list[Any]) -> int:
        return sum(int((row.segments > 0).sum()) for row in features)

    return Model(), rows, collate, real


if __name__ == "__main__":
    serve({"start": start, "steps": steps})
