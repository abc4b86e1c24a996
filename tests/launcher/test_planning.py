"""`onward plan`: what stages need, from the recipe alone."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.devices import GIB, find_device
from configs.errors import RecipeError, ResourceError
from launcher.environment import PROJECT
from launcher.plan_text import plan_lines
from launcher.plan_times import Cluster
from launcher.planning import Plan, plan
from launcher.recipe import RECIPES, load_recipe

QUICKSTART = RECIPES / "quickstart.yaml"


def planned(tmp_path: Path, *settings: str, cluster: Cluster, names: Any = ("base",)) -> Plan:
    recipe = load_recipe(QUICKSTART, [f"output={tmp_path / 'run'}", *settings])
    return plan(recipe, names, cluster)


def entries(tmp_path: Path, *settings: str, world: int = 1, names: Any = ()) -> list[Any]:
    cluster = Cluster(1, world, find_device("h100"))
    return planned(tmp_path, *settings, cluster=cluster, names=names).stages


def test_models_that_are_not_made_yet_have_the_shape_they_will_have(tmp_path: Path) -> None:
    base, dapt, tapt, alone = entries(tmp_path)
    assert [base["stage"], dapt["stage"], tapt["stage"]] == ["base", "dapt", "tapt"]
    assert len({e["parameters"] for e in (base, dapt, tapt, alone)}) == 1
    assert base["notes"] == ["the vocabulary has the 8192 tokens that stage prepare may make"]
    assert (base["steps"], base["tokens"]) == (480, 480 * 32 * 128)
    assert "steps" not in tapt
    # fp32 weights and two moments; one more than are kept while the next is written.
    assert base["disk"]["checkpoint"] == 12 * base["trained"]
    assert base["disk"]["checkpoints"] == 3 * base["disk"]["checkpoint"]
    assert base["disk"]["export"] == 4 * base["parameters"]
    picked = [row["zero"] for row in base["memory"] if row["picked"]]
    assert picked == ["ZeRO stage 1"]
    assert {row["fits"] for row in base["memory"]} == {True}


def test_auto_is_picked_and_explained(tmp_path: Path) -> None:
    (base,) = entries(tmp_path, "stages.base.backend.config=auto", names=["base"], world=2)
    assert base["batch"] == {"rows": 256, "micro_batch": 8, "accumulation": 16, "ranks": 2}
    assert "auto is ZeRO stage 1: the least of ZeRO that fits, with " in base["pick"]
    assert [row["zero"] for row in base["memory"] if row["picked"]] == ["ZeRO stage 1"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"zero_optimization": {"stag": 3}}, "zero_optimization.stag: unknown key"),
        ({"zero_optimization": {"stage": 2, "reduce_bucket_size": "x"}}, "given: 'x'"),
        ({"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 2}}, "over 2, 4, 8, 16, 32"),
    ],
)
def test_settings_that_cannot_be_honoured_are_told(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    given = {"train_batch_size": 32, "zero_allow_untested_optimizer": True, **changes}
    setting = f"stages.base.backend.config={json.dumps(given)}"
    made = planned(tmp_path, setting, cluster=Cluster(1, 1, find_device("h100")))
    (error,) = made.errors
    assert isinstance(error, RecipeError)
    assert str(error).startswith("stage base: DeepSpeed config: ")
    assert message in str(error)
    assert message in made.stages[0]["error"]


def test_what_does_not_fit_says_what_would(tmp_path: Path) -> None:
    shape = {"model_type": "llama", "max_position_embeddings": 4096}
    settings = [
        f"stages.base.model.shape={json.dumps(shape)}",
        'stages.base.objective={"name": "clm"}',
    ]
    (asked,) = entries(tmp_path, *settings, "stages.base.backend.config=zero1_bf16", names=["base"])
    assert "ZeRO stage 1 needs" in asked["error"]
    assert "on the host fits" in asked["error"]
    made = planned(tmp_path, *settings, cluster=Cluster(1, 1, find_device("rtx4090")))
    assert isinstance(made.errors[0], ResourceError)
    assert "on the host fits" in str(made.errors[0])
    states = "stages.base.backend.config=zero3_bf16_states"
    (low,) = entries(tmp_path, *settings, states, names=["base"])
    assert low["disk"]["checkpoint"] == 6 * low["trained"]


def needing_the_host(zero: Any) -> tuple[str, ...]:
    """Settings that fit 24 GB neither without the host nor without recomputing."""
    values = {"train_batch_size": 16, "train_micro_batch_size_per_gpu": 8}
    values |= {"bf16": {"enabled": True}, "zero_optimization": zero}
    values |= {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    return (
        f"stages.base.model.shape={json.dumps({**LLAMA, 'num_hidden_layers': 16})}",
        BILLION[1],
        "stages.base.data.length=1024",
        f"stages.base.backend.config={json.dumps(values)}",
    )


def test_before_the_host_is_used_recomputing_is_named(tmp_path: Path) -> None:
    cluster = Cluster(1, 1, find_device("rtx4090"))

    def entry(zero: Any, *more: str) -> Any:
        (made,) = planned(tmp_path, *needing_the_host(zero), *more, cluster=cluster).stages
        return made

    wanted = "with activation_checkpointing: {every: 1} ZeRO stage 1 fits on the device"
    for zero in ("auto", {"stage": 1, "offload_optimizer": {"device": "cpu"}}):
        assert entry(zero)["pick"].endswith(wanted)
    assert entry({"stage": 1})["error"].endswith(wanted)
    recomputing = 'stages.base.activation_checkpointing={"every": 1}'
    assert "auto is ZeRO stage 1:" in entry("auto", recomputing)["pick"]


def test_the_hosts_memory_is_checked_where_it_is_told(tmp_path: Path) -> None:
    def entry(host_gib: float | None) -> Any:
        cluster = Cluster(1, 2, find_device("rtx4090", 2, host_gib))
        away = {"stage": 1, "offload_optimizer": {"device": "cpu"}}
        (made,) = planned(tmp_path, *needing_the_host(away), cluster=cluster).stages
        return made

    free = entry(None)
    needed = 2 * next(row["host"] for row in free["memory"] if row["picked"]) / GIB
    said = f"{needed:.3g} GiB of each host's memory is needed; how much there is has not been che"
    assert free["notes"][-1].startswith(said)
    enough = entry(needed / 0.8 + 1)
    assert enough["pick"] == free["pick"]
    assert not any("has not been checked" in note for note in enough["notes"])
    assert "of its host's memory" in entry(1)["error"]
    with pytest.raises(RecipeError, match="--host-memory goes with GPUs"):
        find_device("cpu", 1, 9)


def test_a_needless_stage_3_is_warned_of(tmp_path: Path) -> None:
    (base,) = entries(tmp_path, "stages.base.backend.config=zero3_bf16", names=["base"])
    assert "ZeRO stage 1 fits, too" in base["warning"]


def test_a_hub_name_that_is_not_here_cannot_be_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    recipe = load_recipe(RECIPES / "dapt_tapt.yaml", [f"output={tmp_path / 'run'}"])
    made = plan(recipe, ["tapt"], Cluster(1, 8, find_device("h100")))
    (told,) = made.stages
    assert made.errors == []
    assert (
        "memory and time cannot be told: answerdotai/ModernBERT-base is on the hub" in told["error"]
    )
    assert told["batch"]["ranks"] == 8


def test_a_batch_that_does_not_divide_names_the_numbers_that_would(tmp_path: Path) -> None:
    made = planned(tmp_path, cluster=Cluster(1, 3, find_device("h100")), names=())
    assert len(made.errors) == len(made.stages) == 4
    assert re.match(
        r"stage base: .* over 3 ranks: .*; it can be over 1, 2 ranks", str(made.errors[0])
    )
    with pytest.raises(RecipeError, match="no pretraining stage 'rows' in this recipe; it has b"):
        entries(tmp_path, names=["rows"])


def test_a_trained_tokenizer_is_counted_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    vocabulary = {f"w{number}": number for number in range(100)}
    values = {"model": {"vocab": vocabulary}, "added_tokens": [{"id": 104}]}
    (folder / "tokenizer.json").write_text(json.dumps(values))
    setting = f"stages.base.model.tokenizer={folder}"
    (here,) = entries(tmp_path, setting, names=["base"])
    (there,) = entries(tmp_path, names=["base"])
    # The embeddings' rows, and the head's biases.
    width = 128
    assert there["parameters"] - here["parameters"] == (8192 - 105) * (width + 1)


def test_it_imports_no_heavy_library_and_speaks_json(tmp_path: Path) -> None:
    words = ["plan", str(QUICKSTART), f"output={tmp_path / 'run'}", "base", "--json"]
    program = (
        "import atexit, sys\n"
        "heavy = ('torch', 'transformers', 'deepspeed', 'datasets', 'tokenizers')\n"
        "atexit.register(lambda: print([n for n in heavy if n in sys.modules], file=sys.stderr))\n"
        f"sys.argv = ['onward', *{words!r}]\n"
        "from launcher.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"
    assert json.loads(done.stdout)["stages"][0]["stage"] == "base"


def test_a_plan_in_words(tmp_path: Path) -> None:
    text = "\n".join(plan_lines(entries(tmp_path, names=["base"]), "1 x 1 H100 80GB", "a margin"))
    assert "32 rows = 16 a micro-batch x 2 accumulated x 1 rank" in text
    assert "480 steps, 1.97M tokens with padding" in text
    assert "fits  <" in text
    assert yaml.safe_load(text.split("\n", maxsplit=1)[0])


LLAMA = {
    "model_type": "llama",
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 5632,
    "max_position_embeddings": 2048,
}
BILLION = (
    f"stages.base.model.shape={json.dumps(LLAMA)}",
    'stages.base.objective={"name": "clm"}',
    "stages.base.data.length=2048",
    "stages.base.backend.config=auto",
)


def test_times_stand_on_the_data_sheet_or_on_what_was_measured(tmp_path: Path) -> None:
    h100 = find_device("h100")
    (entry,) = planned(tmp_path, *BILLION, cluster=Cluster(1, 8, h100)).stages
    told = entry["time"]
    rate = 0.5 * 989.4e12
    assert told["step"]["compute"] == pytest.approx(told["flops_step"] / 8 / rate)
    assert told["tokens_day"] == pytest.approx(256 * 2048 / told["step"]["seconds"] * 86_400)
    assert told["seconds"] == pytest.approx(480 * told["step"]["seconds"])
    assert told["device_hours"] == pytest.approx(8 * told["seconds"] / 3600)
    assert 0.4 < told["mfu"] < 0.5
    assert (
        "50% of the data sheet's 989 in bf16 in forward and backward passes, recomputing included"
        in told["assumed"][0]
    )
    slow = Cluster(4, 2, h100, rate=100e12, link=1e9, latency=1e-3)
    (entry,) = planned(tmp_path, *BILLION, cluster=slow).stages
    slower = entry["time"]
    assert slower["step"]["compute"] == pytest.approx(told["flops_step"] / 8 / 100e12)
    # 8 values of 7 pass, of two bytes each, thrice: reduced, and gathered.
    values = 3 * 2 * entry["parameters"] * 7 / 8
    assert slower["step"]["communication"] == pytest.approx(values / 1e9, rel=0.01)
    assert slower["assumed"][0].startswith("100 TFLOP/s a rank, as given: FLOPs of the model")
    # A rate over whole steps has the update in it; what goes over links is added.
    assert (slower["step"]["update"], told["step"]["update"] > 0) == (0.0, True)
    whole = slower["step"]["compute"] + slower["step"]["communication"]
    assert slower["step"]["seconds"] == pytest.approx(whole)


def test_a_given_rate_is_of_the_model_and_an_assumed_one_of_the_passes(tmp_path: Path) -> None:
    h100 = find_device("h100")
    recomputing = 'stages.base.activation_checkpointing={"every": 1}'

    def computing(cluster: Cluster, *more: str) -> float:
        (entry,) = planned(tmp_path, *BILLION, *more, cluster=cluster).stages
        return float(entry["time"]["step"]["compute"])

    given, assumed = Cluster(1, 8, h100, rate=100e12), Cluster(1, 8, h100)
    assert computing(given, recomputing) == computing(given)
    assert 1.2 < computing(assumed, recomputing) / computing(assumed) < 1.4
    # Nor is it held back by what the host is assumed to need.
    fast = planned(tmp_path, cluster=Cluster(1, 1, h100, rate=1e18)).stages[0]["time"]
    assert fast["step"]["compute"] == fast["flops_step"] / 1e18


def test_what_a_rank_sends_is_told_without_votes(tmp_path: Path) -> None:
    cluster = Cluster(1, 8, find_device("h100"))
    (entry,) = planned(tmp_path, *BILLION, cluster=cluster).stages
    (picked,) = (row for row in entry["memory"] if row["picked"])
    # Two bytes a value, reduced (twice around) and gathered; 7/8 of them pass.
    assert picked["sent"] == pytest.approx(3 * 2 * entry["parameters"] * 7 / 8, rel=0.001)
    assert picked["sent"] != picked["communicated"]
    text = "\n".join(plan_lines([entry], str(cluster), "a margin"))
    assert f"{picked['sent'] / GIB:.2f}" in text
    assert "   sends" in text


def test_a_host_with_fewer_devices_has_fewer_cards() -> None:
    h100, l40s = find_device("h100"), find_device("l40s")
    gbit = 1e9 / 8
    for devices, card in ((8, 3200), (4, 1600), (1, 400), (16, 3200)):
        cluster = Cluster(2, devices, h100)
        assert cluster.network(cluster.world).between.bandwidth == card * gbit
        assert replace(cluster, link=1e9).network(cluster.world).between.bandwidth == 1e9
        shared = Cluster(2, devices, l40s).network(2 * devices).between.bandwidth
        assert shared == 200 * gbit


def test_links_are_told_to_be_those_of_the_data_sheet(tmp_path: Path) -> None:
    for link, said in ((None, "data sheet, all of it"), (1e9, "as given")):
        cluster = Cluster(2, 8, find_device("h100"), link=link)
        (entry,) = planned(tmp_path, *BILLION, cluster=cluster).stages
        within, between = (line for line in entry["time"]["assumed"] if "microseconds" in line)
        assert within.endswith("between ranks of a host, data sheet, all of it")
        assert said in between


def test_of_a_cpu_no_time_is_told_unless_its_rate_is(tmp_path: Path) -> None:
    cpu = find_device("cpu")
    (entry,) = planned(tmp_path, cluster=Cluster(1, 1, cpu)).stages
    assert "step" not in entry["time"]
    assert "no time is told for a CPU unless --rate" in entry["time"]["assumed"][0]
    assert "step_seconds" not in entry["memory"][0]
    (entry,) = planned(tmp_path, cluster=Cluster(1, 1, cpu, rate=0.1e12)).stages
    assert entry["time"]["step"]["seconds"] == pytest.approx(entry["time"]["flops_step"] / 0.1e12)
    assert "mfu" not in entry["time"]


def test_no_time_is_told_where_states_lie_on_the_host(tmp_path: Path) -> None:
    preset = "stages.base.backend.config=zero1_bf16_offload"
    cluster = Cluster(1, 8, find_device("h100"))
    (entry,) = planned(tmp_path, *BILLION[:3], preset, cluster=cluster).stages
    (picked,) = (row for row in entry["memory"] if row["picked"])
    assert "step_seconds" not in picked
    assert entry["time"]["assumed"] == [
        "no time is told where the optimizer or the weights lie on the host"
    ]
    text = "\n".join(plan_lines([entry], str(cluster), "a margin"))
    assert "?  fits  <" in text


@pytest.mark.parametrize(
    ("preset", "said"),
    [("zero3_bf16_hpz", "gathers within"), ("zero3_bf16_quantized", "fewer bits")],
)
def test_what_is_counted_too_high_is_said(preset: str, said: str, tmp_path: Path) -> None:
    setting = f"stages.base.backend.config={preset}"
    cluster = Cluster(2, 8, find_device("h100"))
    (entry,) = planned(tmp_path, *BILLION[:3], setting, cluster=cluster).stages
    assert any(said in line for line in entry["time"]["assumed"])


def test_a_small_model_is_no_faster_than_its_host(tmp_path: Path) -> None:
    (entry,) = planned(tmp_path, cluster=Cluster(1, 1, find_device("h100"))).stages
    micro_batches, layers = 2, 3
    assert entry["time"]["step"]["compute"] == 1e-3 * micro_batches * layers
    by_zero = {row["zero"]: row["step_seconds"] for row in entry["memory"]}
    assert by_zero["ZeRO stage 3"] > by_zero["ZeRO stage 1"] + 0.01


def test_scaling_is_marked_as_simulated(tmp_path: Path) -> None:
    recipe = load_recipe(QUICKSTART, [f"output={tmp_path / 'run'}", *BILLION])
    cluster = Cluster(2, 8, find_device("h100"))
    (entry,) = plan(recipe, ["base"], cluster, is_scaled=True).stages
    same, more = entry["scaling"]["same_batch"], entry["scaling"]["same_rows_a_rank"]
    assert all(line["simulated"] for line in (*same, *more))
    assert [line["ranks"] for line in same] == [2**n for n in range(9)]
    assert {line["rows"] for line in same} == {256}
    assert [line["ranks"] for line in more][-1] == 4096
    assert {line["rows"] // line["ranks"] for line in more} == {16}
    for line in (*same, *more):
        assert line["micro_batch"] * line["accumulation"] * line["ranks"] == line["rows"]
        assert line["hosts"] == -(-line["ranks"] // 8)
    (at_size,) = (line for line in same if line["ranks"] == 16)
    assert at_size["step_seconds"] == pytest.approx(entry["time"]["step"]["seconds"])
    assert same[0]["rank_speed"] == 1.0
    assert same[-1]["rank_speed"] < more[8]["rank_speed"] < 1.0
    text = "\n".join(plan_lines([entry], str(cluster), "a margin"))
    assert text.count("  simulated: ") == 2
    cpu = Cluster(1, 1, find_device("cpu"))
    (entry,) = plan(recipe, ["base"], cpu, is_scaled=True).stages
    text = "\n".join(plan_lines([entry], str(cpu), "a margin"))
    after = text[text.index("simulated") :].splitlines()
    assert "         ?         ?         ?" in after[2]


@pytest.mark.parametrize("as_json", [True, False])
def test_what_fits_nowhere_is_told_in_full_and_exits_with_7(
    as_json: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large = {**LLAMA, "hidden_size": 8192, "num_hidden_layers": 80}
    words = [
        *("plan", str(QUICKSTART), "base", "dapt", f"output={tmp_path / 'run'}"),
        *BILLION[1:],
        f"stages.base.model.shape={json.dumps(large)}",
        *("--device", "rtx4090", *(["--json"] if as_json else [])),
    ]
    code = exit_code(words)
    assert code == 7
    said = capsys.readouterr()
    if as_json:
        told = json.loads(said.out)
        assert [stage["stage"] for stage in told["stages"]] == ["base", "dapt"]
        assert "stage base: " in told["errors"][0]
    else:
        assert "\ndapt\n" in said.out
        assert "error: stage base: it does not fit RTX 4090 24GB" in said.err


def exit_code(words: list[str]) -> object:
    from launcher import cli

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["onward", *words])
        with pytest.raises(SystemExit) as left:
            cli.main()
    return left.value.code


def distilled(*more: str) -> tuple[str, ...]:
    asked = json.dumps([{"name": "distillation", "teacher": "stage:base"}])
    return (f"stages.dapt.penalties={asked}", *more)


def test_a_teacher_is_counted(tmp_path: Path) -> None:
    (plain,) = entries(tmp_path, names=["dapt"])
    (taught,) = entries(tmp_path, *distilled(), names=["dapt"])
    assert taught["parameters"] == plain["parameters"] == taught["teacher"]
    assert (taught["trained"], taught["disk"]) == (plain["trained"], plain["disk"])
    assert taught["time"]["flops_step"] == plain["time"]["flops_step"]
    assert taught["time"]["step"]["compute"] > plain["time"]["step"]["compute"]
    assert any("teacher's forward passes" in line for line in taught["time"]["assumed"])
    for one, other in zip(taught["memory"], plain["memory"], strict=True):
        assert one["zero"] == other["zero"]
        # In bf16 or fp32, whole on the one rank.
        assert one["rest"] - other["rest"] in {2 * taught["teacher"], 4 * taught["teacher"]}
    text = "\n".join(plan_lines([taught], "a cluster", ""))
    assert "; beside a teacher of " in text


def test_a_teacher_that_is_not_here_counts_as_the_model(tmp_path: Path) -> None:
    elsewhere = json.dumps([{"name": "distillation", "teacher": "nobody/has-this-model"}])
    (dapt,) = entries(tmp_path, f"stages.dapt.penalties={elsewhere}", names=["dapt"])
    assert dapt["teacher"] == dapt["parameters"]
    assert any("taken to be as large as the model: nobody/" in note for note in dapt["notes"])


def test_states_are_those_of_the_optimizer(tmp_path: Path) -> None:
    sizes = {}
    for name in ("adamw", "lion", "muon"):
        asked = f'stages.base.optimizer={{"name": "{name}", "lr": 0.001}}'
        (base,) = entries(tmp_path, asked, names=["base"])
        sizes[name] = base["disk"]["checkpoint"] / base["trained"]
    assert (sizes["adamw"], sizes["lion"]) == (12, 8)
    assert 8 < sizes["muon"] < 12


def test_what_choose_and_forgetting_keep_is_counted(tmp_path: Path) -> None:
    choosing = 'stages.dapt.choose={"by": "validation/general/loss"}'
    forgetting = 'stages.dapt.forgetting={"set": "general"}'
    for settings in ((), (choosing,), (forgetting,), (choosing, forgetting)):
        (dapt,) = entries(tmp_path, "stages.dapt.steps=2000", *settings, names=["dapt"])
        assert dapt["disk"]["most"] == 3 + len(settings)
        assert dapt["disk"]["checkpoints"] == (3 + len(settings)) * dapt["disk"]["checkpoint"]


def test_rates_of_what_is_not_counted_are_told(tmp_path: Path) -> None:
    rates = 'stages.base.optimizer.rates={"heads.": 2.0}'
    (base,) = entries(tmp_path, rates, names=["base"])
    assert any(
        "optimizer.rates: no weight that is counted begins with heads." in n for n in base["notes"]
    )


def test_an_optimizer_that_does_not_fit_is_told(tmp_path: Path) -> None:
    settings = (
        'stages.base.optimizer={"name": "muon", "lr": 0.001}',
        'stages.base.adaptation={"name": "bitfit"}',
    )
    made = planned(tmp_path, *settings, cluster=Cluster(1, 1, find_device("h100")))
    assert "no matrix of the model's layers is trained" in str(made.errors[0])
