"""What is no checkpoint of this model, or no whole one, is refused by name; no pickle ever runs."""

import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.errors import CheckpointError, RecipeError
from engine.importing import Request, import_checkpoint
from tests.engine.checkpoint.import_deepspeed import handmade, place

Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stage's place, with checkpoints made by hand in the forms that DeepSpeed writes."""
    folder = place.make(tmp_path_factory.mktemp("refused"))
    handmade.write_all(folder)
    return folder


def run(at: Path, source: Path, folder: Path, **given: Any) -> dict[str, Any]:
    request = {key: given.pop(key) for key in ("step", "trust") if key in given}
    stage = place.stage(at, **given)
    return import_checkpoint(stage, place.context(folder), Request(source, **request))


def left_behind(folder: Path) -> list[str]:
    root = folder / "checkpoints"
    return sorted(path.name for path in root.iterdir()) if root.exists() else []


@pytest.mark.parametrize("kind", handmade.KINDS)
def test_handmade_ones_are_imported(at: Path, tmp_path: Path, kind: str) -> None:
    facts = run(at, at / kind, tmp_path)
    assert facts["adam_steps"] == handmade.ADAM_STEPS
    assert left_behind(tmp_path) == ["latest", f"step-{handmade.STEPS}"]
    if kind != "zero0":
        assert facts["losses"]["second_reading"] == facts["losses"]["imported"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """One bit of the largest tensor in it."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    content = bytearray(path.read_bytes())
    content[largest.header_offset + largest.file_size // 2] ^= 1
    path.write_bytes(content)


def swap(first: Path, second: Path) -> None:
    aside = first.with_name("aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


def tag(root: Path) -> Path:
    return root / "global_step3"


def optimizer(root: Path, rank: int) -> Path:
    return tag(root) / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"


def model(root: Path) -> Path:
    return tag(root) / "mp_rank_00_model_states.pt"


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    with handmade.deepspeed_classes():
        values = torch.load(path, weights_only=False)
        change(values)
        torch.save(values, path)


def rename(name: str, new: str) -> Callable[[dict[str, Any]], None]:
    def change(values: dict[str, Any]) -> None:
        for group in (values["module"], *values["param_shapes"]):
            if name in group:
                items = [(new if key == name else key, value) for key, value in group.items()]
                group.clear()
                group.update(items)

    return change


WEIGHT = "transformer.h.0.attn.c_proj.weight"
REFUSED: dict[str, tuple[Change, str]] = {
    "no folder": (shutil.rmtree, "nothing is there; give the folder"),
    "no checkpoint": (lambda r: (r / "latest").unlink(), r"no .*give one of.*global_step3"),
    "empty latest": (lambda r: (r / "latest").write_text(""), "latest: empty"),
    "latest leads out": (lambda r: (r / "latest").write_text("../zero1"), "leads out of"),
    "latest is no name": (lambda r: (r / "latest").write_bytes(b"\xff\x00"), "leads out of"),
    "latest without it": (
        lambda r: (r / "latest").write_text("global_step9"),
        "names global_step9",
    ),
    "missing model": (lambda r: model(r).unlink(), "holds no "),
    "missing shard": (lambda r: optimizer(r, 0).unlink(), "of rank 0 missing"),
    "missing last shard": (lambda r: optimizer(r, 1).unlink(), "one of 2 ranks' files, but 1 are"),
    "missing shards": (
        lambda r: (optimizer(r, 0).unlink(), optimizer(r, 1).unlink()),
        r"no \*_optim",
    ),
    "cut shard": (lambda r: cut(optimizer(r, 1)), "rank_1_mp.*: cut or damaged"),
    "cut model": (lambda r: cut(model(r)), "mp_rank_00_model_states.pt: cut or damaged"),
    "empty shard": (lambda r: optimizer(r, 1).write_bytes(b""), "rank_1_mp.*: cut or damaged"),
    "flipped shard": (lambda r: flip(optimizer(r, 0)), "rank_0.*: damaged: the checksum"),
    "flipped model": (lambda r: flip(model(r)), "model_states.pt: damaged: the checksum"),
    "swapped shards": (lambda r: swap(optimizer(r, 0), optimizer(r, 1)), "was written as zero_pp"),
    "a second model rank": (
        lambda r: shutil.copy(model(r), tag(r) / "mp_rank_01_model_states.pt"),
        "mp_rank_01.*model parallelism",
    ),
    "pipeline": (lambda r: (tag(r) / "layer_00-model_states.pt").touch(), "pipeline parallelism"),
    "experts": (
        lambda r: (tag(r) / "layer_0_expert_0_mp_rank_00_model_states.pt").touch(),
        "experts spread over ranks",
    ),
    "swap files": (lambda r: (tag(r) / "offloaded_tensors").mkdir(), "on NVMe"),
    "mixed stages": (
        lambda r: shutil.copy(model(r), tag(r) / "zero_pp_rank_0_mp_rank_00_model_states.pt"),
        "files of two checkpoints",
    ),
    "mixed precisions": (
        lambda r: shutil.copy(optimizer(r, 0), tag(r) / f"bf16_{optimizer(r, 0).name}"),
        "files of two checkpoints",
    ),
    "a link out": (
        lambda r: (optimizer(r, 0).rename(r / "x.pt"), optimizer(r, 0).symlink_to(r / "x.pt")),
        "a link that leads out",
    ),
    "tensor parallel": (
        lambda r: edit(model(r), lambda v: v.update(mp_world_size=2)),
        "model parallelism of 2",
    ),
    "world sizes": (
        lambda r: edit(model(r), lambda v: v.update(dp_world_size=4)),
        r"written by 4 ranks, but 2",
    ),
    "other sizes": (
        lambda r: edit(
            optimizer(r, 1),
            lambda v: v["optimizer_state_dict"]["single_partition_of_fp32_groups"].pop(),
        ),
        "cut otherwise than rank 0's",
    ),
    "another optimizer": (
        lambda r: edit(optimizer(r, 0), handmade.as_momentum),
        "only Adam's and AdamW's",
    ),
    "other step counts": (
        lambda r: edit(optimizer(r, 1), handmade.count_on),
        "has taken 2 steps for some",
    ),
    "extra": (
        lambda r: edit(model(r), rename(WEIGHT, "transformer.h.7.attn.c_proj.weight")),
        r"transformer.h.7.attn.c_proj.weight: not in the stage's model\n.*"
        r"transformer.h.0.attn.c_proj.weight: missing there",
    ),
    "another shape": (
        lambda r: edit(model(r), handmade.reshape),
        r"wte.weight: its shape is \(33, 64\) there, \(64, 33\) here",
    ),
    "other weights": (
        lambda r: edit(model(r), lambda v: v["module"][WEIGHT].add_(0.1)),
        f"{WEIGHT}: 1089 of 1089 values read from the optimizer's shards are not",
    ),
    "no moments": (lambda r: edit(optimizer(r, 1), handmade.damage_moment), "'exp_avg_sq' holds"),
    "not a mapping": (lambda r: torch.save([1], model(r)), "holds a list"),
    "no step": (lambda r: edit(model(r), lambda v: v.pop("global_steps")), "global_steps.*missing"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name_and_nothing_is_left(at: Path, tmp_path: Path, name: str) -> None:
    change, message = REFUSED[name]
    source = shutil.copytree(at / "zero1", tmp_path / "source")
    change(source)
    with pytest.raises(CheckpointError, match=message):
        run(at, source, tmp_path / "run")
    assert left_behind(tmp_path / "run") == []


class Canary:
    """Pickled, it would make a file where it is loaded."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def __reduce__(self) -> Any:
        return (open, (self._path, "w"))


FILES = [(kind, str(path)) for kind, paths in handmade.FILES.items() for path in paths]


@pytest.mark.parametrize(("kind", "file"), FILES)
def test_no_code_runs_from_any_file(at: Path, tmp_path: Path, kind: str, file: str) -> None:
    source = shutil.copytree(at / kind, tmp_path / "source")
    edit(source / file, lambda values: values.update(strange=Canary(tmp_path / "sang")))
    with pytest.raises(CheckpointError, match=r"not DeepSpeed's own: io.open.*--trust-checkpoint"):
        run(at, source, tmp_path / "run")
    assert not (tmp_path / "sang").exists()
    assert left_behind(tmp_path / "run") == []


def test_a_bare_pickle_does_not_run(at: Path, tmp_path: Path) -> None:
    source = shutil.copytree(at / "zero1", tmp_path / "source")
    model(source).write_bytes(pickle.dumps(Canary(tmp_path / "sang")))
    with pytest.raises(CheckpointError, match="not a whole file of torch"):
        run(at, source, tmp_path / "run", trust=True)
    assert not (tmp_path / "sang").exists()


class Harmless:
    """A class of somebody's program."""


def test_other_classes_are_loaded_if_trusted(at: Path, tmp_path: Path) -> None:
    source = shutil.copytree(at / "zero1", tmp_path / "source")
    edit(model(source), lambda values: values.update(client=Harmless()))
    with pytest.raises(CheckpointError, match=r"own: .*test_refusals.Harmless;"):
        run(at, source, tmp_path / "run")
    assert run(at, source, tmp_path / "run", trust=True)["step"] == handmade.STEPS


def test_names_of_wrappers_are_taken_off(at: Path, tmp_path: Path) -> None:
    source = shutil.copytree(at / "zero1", tmp_path / "source")
    edit(model(source), handmade.wrap)
    assert run(at, source, tmp_path / "run")["parameters"] == 28


def test_the_loss_scale_and_the_skipped_steps_come_along(at: Path, tmp_path: Path) -> None:
    from engine.checkpoint import open_checkpoint

    facts = run(at, at / "zero2_fp16", tmp_path)
    extra = open_checkpoint(Path(facts["folder"])).backend_state
    scale = {"cur_scale": 512.0, "cur_iter": 3, "last_overflow_iter": 1, "cur_hysteresis": 2}
    assert extra == {"skipped_steps": 1, "loss_scale": scale}


def test_it_can_be_another_step_here(at: Path, tmp_path: Path) -> None:
    from engine.checkpoint import open_checkpoint

    facts = run(at, at / "zero1", tmp_path, step=6)
    found = open_checkpoint(Path(facts["folder"]))
    assert (found.step, found.state["cursor"]["index"]) == (6, 48)
    assert found.backend_state["skipped_steps"] == 6 - handmade.ADAM_STEPS
    with pytest.raises(RecipeError, match="ends after step 8, the checkpoint stands at step 9"):
        run(at, at / "zero1", tmp_path / "other", step=9)


def test_a_stage_that_has_begun_is_left_alone(at: Path, tmp_path: Path) -> None:
    run(at, at / "zero1", tmp_path)
    with pytest.raises(CheckpointError, match="the stage has begun already"):
        run(at, at / "zero1", tmp_path, step=5)
    assert left_behind(tmp_path) == ["latest", f"step-{handmade.STEPS}"]


def test_a_penalty_has_no_state_there(at: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"they keep l2_sp.anchor for every weight"):
        run(at, at / "zero1", tmp_path, penalties=[{"name": "l2_sp", "strength": 0.1}])


def test_an_average_begins_at_the_imported_weights(at: Path, tmp_path: Path) -> None:
    from engine.checkpoint import FragmentStore

    facts = run(at, at / "zero1", tmp_path, averaging={"name": "ema", "decay": 0.9})
    store = FragmentStore(Path(facts["folder"]))
    assert all(torch.equal(store.whole(n, "ema"), store.whole(n)) for n in store.names)


def test_settings_that_differ_are_told(at: Path, tmp_path: Path) -> None:
    optimizer = {"name": "adamw", "lr": 1e-2, "beta2": 0.95}
    notes = run(at, at / "zero1", tmp_path, optimizer=optimizer)["notes"]
    assert "optimizer: betas was (0.9, 0.999) there, is (0.9, 0.95) here" in notes
