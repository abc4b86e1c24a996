"""`onward plan`: what stages need, from the recipe alone."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.devices import find_device
from configs.errors import RecipeError
from launcher.environment import PROJECT
from launcher.plan_text import plan_lines
from launcher.planning import Cluster, plan
from launcher.recipe import RECIPES, load_recipe

QUICKSTART = RECIPES / "quickstart.yaml"


def entries(tmp_path: Path, *settings: str, world: int = 1, names: Any = ()) -> list[Any]:
    recipe = load_recipe(QUICKSTART, [f"output={tmp_path / 'run'}", *settings])
    return plan(recipe, names, Cluster(1, world, find_device("h100")))


def test_models_that_are_not_made_yet_have_the_shape_they_will_have(tmp_path: Path) -> None:
    base, dapt, tapt, alone = entries(tmp_path)
    assert [base["stage"], dapt["stage"], tapt["stage"]] == ["base", "dapt", "tapt"]
    assert len({e["parameters"] for e in (base, dapt, tapt, alone)}) == 1
    assert base["notes"] == ["the vocabulary has the 8192 tokens that stage prepare may make"]
    assert (base["steps"], base["tokens"]) == (480, 480 * 32 * 128)
    assert "steps" not in tapt
    # fp32 weights and two moments; one more than are kept while the next is written.
    assert base["checkpoint"]["bytes"] == 12 * base["trained"]
    assert base["checkpoint"]["disk"] == 3 * base["checkpoint"]["bytes"]
    picked = [row["zero"] for row in base["memory"] if row["picked"]]
    assert picked == ["ZeRO stage 1"]
    assert {row["fits"] for row in base["memory"]} == {True}


def test_auto_is_picked_and_explained(tmp_path: Path) -> None:
    (base,) = entries(tmp_path, "stages.base.backend.config=auto", names=["base"], world=2)
    assert base["batch"] == {"rows": 256, "micro_batch": 8, "accumulation": 16, "ranks": 2}
    assert "auto is ZeRO stage 1: the first that fits, with " in base["pick"]
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
    with pytest.raises(RecipeError, match="stage base: DeepSpeed config: ") as caught:
        entries(tmp_path, f"stages.base.backend.config={json.dumps(given)}", names=["base"])
    assert message in str(caught.value)


def test_what_does_not_fit_says_what_would(tmp_path: Path) -> None:
    shape = {"model_type": "llama", "max_position_embeddings": 4096}
    settings = [
        f"stages.base.model.shape={json.dumps(shape)}",
        'stages.base.objective={"name": "clm"}',
    ]
    (asked,) = entries(tmp_path, *settings, "stages.base.backend.config=zero1_bf16", names=["base"])
    assert "ZeRO stage 1 needs" in asked["error"]
    assert asked["error"].endswith("on the host fits")
    states = "stages.base.backend.config=zero3_bf16_states"
    (low,) = entries(tmp_path, *settings, states, names=["base"])
    assert low["checkpoint"]["bytes"] == 6 * low["trained"]


def test_a_needless_stage_3_is_warned_of(tmp_path: Path) -> None:
    (base,) = entries(tmp_path, "stages.base.backend.config=zero3_bf16", names=["base"])
    assert "ZeRO stage 1 fits, too" in base["warning"]


def test_a_hub_name_that_is_not_here_cannot_be_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    recipe = load_recipe(RECIPES / "dapt_tapt.yaml", [f"output={tmp_path / 'run'}"])
    told = plan(recipe, ["tapt"], Cluster(1, 8, find_device("h100")))[0]
    assert "memory cannot be told: answerdotai/ModernBERT-base is on the hub" in told["error"]
    assert told["batch"]["ranks"] == 8


def test_a_batch_that_does_not_divide_names_the_numbers_that_would(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"stage base: .* over 3 ranks; .* over 1, 2 ranks"):
        entries(tmp_path, world=3)
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
