"""A program that knows nothing of ours: trains a transformers model in a bare DeepSpeed loop."""

import json
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch

SAVED_AT = 5
MORE = 3
ROWS = 8
LR = 1e-2

Plan = dict[str, Any]


def settings(plan: Plan, world: int) -> dict[str, Any]:
    """DeepSpeed's JSON."""
    mixed = {} if plan["precision"] == "fp32" else {plan["precision"]: {"enabled": True}}
    return {
        "train_batch_size": ROWS,
        "train_micro_batch_size_per_gpu": ROWS // world,
        "zero_optimization": {"stage": plan["stage"], **plan.get("zero", {})},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": 1.0,
        "steps_per_print": 10**9,
        **mixed,
        **plan.get("more", {}),
    }


def groups(model: torch.nn.Module, plan: Plan) -> list[dict[str, Any]]:
    """Decayed parameters and the others; or all in one."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if plan.get("groups") == "one":
        return [{"params": [p for _, p in trained], "weight_decay": 0.01}]
    decayed = [p for _, p in trained if p.ndim > 1]
    return [
        {"params": [p for _, p in trained if p.ndim == 1], "weight_decay": 0.0},
        {"params": decayed, "weight_decay": 0.01},
    ]


def train(root: str, model: str, rows: str, plans: list[Plan]) -> None:
    """For each plan: 5 steps, a checkpoint, 3 steps more; rank 0 writes the 3 losses."""
    from engine import distributed

    distributed.start()
    tokens = torch.from_numpy(np.load(rows))
    for plan in plans:
        losses = _one(Path(root) / plan["name"], model, tokens, plan)
        if distributed.rank() == 0:
            (Path(root) / plan["name"] / "losses.json").write_text(json.dumps(losses))


def _one(folder: Path, location: str, tokens: torch.Tensor, plan: Plan) -> list[float]:
    import deepspeed
    from transformers import AutoModelForCausalLM

    from engine import distributed

    rank, world = distributed.rank(), distributed.world()
    model: Any = AutoModelForCausalLM.from_pretrained(location, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(tuple(plan.get("frozen", ()))))
    optimizer = torch.optim.AdamW(groups(model, plan), lr=LR, fused=True)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=settings(plan, world)
    )
    losses = []
    for step in range(SAVED_AT + MORE):
        if step == SAVED_AT:
            engine.save_checkpoint(str(folder))
        mine = tokens[step * ROWS : (step + 1) * ROWS].tensor_split(world)[rank]
        loss = engine(input_ids=mine.contiguous(), labels=mine.contiguous()).loss
        engine.backward(loss)
        engine.step()
        losses.append(float(distributed.all_reduce(loss.detach().float().clone())) / world)
    return losses[SAVED_AT:]


def convert(root: str, universal: list[str], consolidated: list[str]) -> None:
    """DeepSpeed's own conversions, on one rank: to universal checkpoints, and to fp32 weights."""
    from deepspeed.checkpoint.ds_to_universal import main
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    for name in universal:
        folder = Path(root) / name
        made = folder.with_name(f"{name}_universal") / f"global_step{SAVED_AT}"
        main(
            Namespace(
                input_folder=str(folder / f"global_step{SAVED_AT}"),
                output_folder=str(made),
                num_extract_workers=1,
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                inject_missing_state=True,
            )
        )
    for name in consolidated:
        state = get_fp32_state_dict_from_zero_checkpoint(str(Path(root) / name))
        whole = {key: value.detach().clone() for key, value in state.items()}
        torch.save(whole, Path(root) / name / "consolidated.pt")
    os.sync()
