"""Checkpoints that a bare DeepSpeed loop wrote, taken over: the curve goes on as it would there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.errors import CheckpointError
from engine.assemble import assemble
from engine.checkpoint import FragmentStore, describe, open_checkpoint
from engine.importing import Request, import_checkpoint
from engine.loop import train_step
from engine.pretraining import PretrainStage
from engine.protocols import Run
from tests.engine.checkpoint.import_deepspeed import foreign, place
from tests.warm import WarmWorkers

pytestmark = pytest.mark.processes
HERE = "tests.engine.checkpoint.import_deepspeed.foreign"
SMALL = {"zero": {"sub_group_size": 5_000}}
FOUR = [{"name": f"fp32_{stage}", "stage": stage, "precision": "fp32"} for stage in range(4)]
TWO_RANKS: list[foreign.Plan] = [
    *FOUR,
    *({"name": f"bf16_{stage}", "stage": stage, "precision": "bf16"} for stage in range(4)),
    {"name": "sub_groups", "stage": 3, "precision": "bf16", **SMALL},
    {"name": "one_group", "stage": 0, "precision": "fp32", "groups": "one"},
    {
        "name": "round_robin",
        "stage": 2,
        "precision": "fp32",
        "zero": {"round_robin_gradients": True},
    },
    {"name": "lean", "stage": 1, "precision": "fp32", "zero": {"elastic_checkpoint": True}},
    {
        "name": "accumulated",
        "stage": 1,
        "precision": "bf16",
        "more": {"data_types": {"grad_accum_dtype": "fp32"}},
    },
    {"name": "frozen_2", "stage": 2, "precision": "fp32", "frozen": ["transformer.h.0.attn"]},
    {"name": "frozen_3", "stage": 3, "precision": "fp32", "frozen": ["transformer.h.0.attn"]},
]
ONE_RANK: list[foreign.Plan] = [
    {"name": f"alone_{stage}", "stage": stage, "precision": "fp32"} for stage in (1, 3)
]
UNIVERSAL = ["fp32_2", "bf16_3", "round_robin"]
CONSOLIDATED = ["fp32_1", "fp32_3", "bf16_3", "sub_groups"]
FLOAT32 = {"rtol": 2e-5, "atol": 2e-5}
BFLOAT16 = {"rtol": 1e-2, "atol": 1e-2}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, warm: WarmWorkers) -> Path:
    """The stage's place, and below ``foreign`` a checkpoint for every plan."""
    folder = place.make(tmp_path_factory.mktemp("import"))
    common = {
        "root": str(folder / "foreign"),
        "model": str(folder / "model"),
        "rows": str(place.write_rows(folder)),
    }
    for plans, world in ((TWO_RANKS, 2), (ONE_RANK, 1)):
        ended = warm.run(f"{HERE}:train", {**common, "plans": plans}, world=world, timeout=240)
        assert [e.code for e in ended] == [0] * world, ended[0].text[-3000:]
    asked = {"root": common["root"], "universal": UNIVERSAL, "consolidated": CONSOLIDATED}
    ended = warm.run(f"{HERE}:convert", asked, world=1, timeout=240)
    assert ended[0].code == 0, ended[0].text[-3000:]
    return folder


def backend(precision: str) -> dict[str, Any]:
    mixed = {} if precision == "fp32" else {precision: {"enabled": True}}
    config = {"train_batch_size": foreign.ROWS, "gradient_clipping": 1.0, **mixed}
    return {"name": "plain", "config": config}


def imported(
    made: Path, name: str, folder: Path, **changes: Any
) -> tuple[PretrainStage, dict[str, Any]]:
    precision = "fp32" if name.startswith(("fp32", "alone")) else "bf16"
    stage = place.stage(made, **{"backend": backend(precision)} | changes)
    source = Request(made / "foreign" / name)
    return stage, import_checkpoint(stage, place.context(folder), source)


def losses(folder: Path) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


GO_ON = [plan["name"] for plan in (*TWO_RANKS, *ONE_RANK) if "frozen" not in plan]


@pytest.mark.grid
@pytest.mark.parametrize("name", [*GO_ON, "fp32_2_universal", "bf16_3_universal"])
def test_the_curve_goes_on_as_it_would_there(made: Path, tmp_path: Path, name: str) -> None:
    plan = next(p for p in (*TWO_RANKS, *ONE_RANK) if p["name"] == name.removesuffix("_universal"))
    stage = place.stage(made, backend=backend(plan["precision"]))
    facts = import_checkpoint(stage, place.context(tmp_path), Request(made / "foreign" / name))
    assert facts["step"] == facts["their_step"] == foreign.SAVED_AT
    assert facts["losses"]["imported"] < facts["losses"]["model_of_the_recipe"]
    stage.run(place.context(tmp_path))
    theirs = json.loads((made / "foreign" / plan["name"] / "losses.json").read_text())
    tolerance = FLOAT32 if plan["precision"] == "fp32" else BFLOAT16
    np.testing.assert_allclose(losses(tmp_path), theirs, **tolerance)


def test_without_the_moments_the_curve_is_another(made: Path, tmp_path: Path) -> None:
    """That the tolerance above could tell: the first loss is right, the second is not."""
    stage, _ = imported(made, "fp32_2", tmp_path / "a")
    store = FragmentStore(tmp_path / "a" / "checkpoints" / f"step-{foreign.SAVED_AT}")
    found = open_checkpoint(store.folder)
    parts = assemble(stage, place.context(tmp_path / "b"))

    def without(name: str, key: str, start: int, length: int) -> torch.Tensor:
        values = store.read(name, key, start, length)
        return values if key == "fp32" else torch.zeros_like(values)

    parts.backend.load_extra_state(found.backend_state)
    parts.backend.load_fragments(without, store.state_keys, foreign.SAVED_AT)
    seen: list[float] = []

    steps = range(foreign.SAVED_AT, place.STEPS)
    batches = iter([parts.make(step) for step in steps])
    run = Run(parts.backend, batches, stage.schedule, foreign.LR, place.STEPS, seed=0)
    for step in steps:
        record = train_step(run, step)
        seen.append(float(record.losses[0] / record.counts[0]))
    theirs = json.loads((made / "foreign" / "fp32_2" / "losses.json").read_text())
    np.testing.assert_allclose(seen[0], theirs[0], **FLOAT32)
    assert not np.allclose(seen[1:], theirs[1:], **FLOAT32)


@pytest.mark.parametrize("name", CONSOLIDATED)
def test_the_weights_are_those_of_deepspeeds_own_conversion(
    made: Path, tmp_path: Path, name: str
) -> None:
    _, facts = imported(made, name, tmp_path)
    store = FragmentStore(Path(facts["folder"]))
    reference = torch.load(made / "foreign" / name / "consolidated.pt", weights_only=True)
    for own in store.names:
        theirs = reference[own.removeprefix("backbone.")]
        assert torch.equal(store.whole(own), theirs.float()), own
    assert len(store.names) == facts["parameters"]


@pytest.mark.parametrize("name", ["frozen_2", "frozen_3"])
def test_frozen_weights_must_be_those_of_the_recipes_model(
    made: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(CheckpointError, match=r"c_attn.weight: frozen there, trains here"):
        imported(made, name, tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_deepspeeds_wrong_conversion_is_found_out(made: Path, tmp_path: Path) -> None:
    """With round_robin_gradients ds_to_universal takes the parameters' order for another one."""
    with pytest.raises(CheckpointError, match=r"values read from the optimizer's shards are not"):
        imported(made, "round_robin_universal", tmp_path, backend=backend("fp32"))


def test_inspect_tells_where_it_comes_from(made: Path, tmp_path: Path) -> None:
    _, facts = imported(made, "fp32_3", tmp_path)
    told = describe(Path(facts["folder"]))["origin"]
    assert told["kind"] == "ZeRO stage 3"
    assert told["from"] == str(made / "foreign" / "fp32_3" / f"global_step{foreign.SAVED_AT}")
    assert len(told["files"]) == 4
    assert all(len(each["sha256"]) == 64 for each in told["files"].values())
