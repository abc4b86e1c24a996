"""The whole chain through the deepspeed launcher: uninterrupted, and killed at a random step."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.processes, pytest.mark.timeout(1200)]

Onward = Callable[..., subprocess.CompletedProcess[str]]
TRAINED = ("base", "dapt", "adapter")


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def timeless(value: object) -> object:
    """The same without wall times."""
    if isinstance(value, dict):
        return {name: timeless(inner) for name, inner in value.items() if "seconds" not in name}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


def kill_tree(process: subprocess.Popen[str]) -> int:
    """SIGKILL to the command and everything below it, at once; how many there were."""
    top = psutil.Process(process.pid)
    everybody = [*top.children(recursive=True), top]
    for one in everybody:
        one.suspend()
    for one in everybody:
        one.kill()
    psutil.wait_procs(everybody, timeout=30)
    process.wait(timeout=30)
    return len(everybody)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, write_recipe, onward: Onward) -> Path:
    output = tmp_path_factory.mktemp("control") / "run"
    done = onward("run", write_recipe(output))
    assert done.returncode == 0, done.stdout + done.stderr
    return output


@pytest.fixture(scope="module")
def killed(tmp_path_factory, write_recipe, environment, onward: Onward) -> Path:
    """The same recipe, every process killed at a random step of a random stage, then run again."""
    output = tmp_path_factory.mktemp("killed") / "run"
    path = write_recipe(output)
    stage, steps = random.choice([("base", 120), ("dapt", 60), ("adapter", 60)])
    at = random.randrange(22, steps - 25)
    command = [sys.executable, "-m", "launcher", "run", str(path)]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
    ) as process:
        metrics = output / stage / "metrics.jsonl"
        limit = time.monotonic() + 200
        while not (metrics.exists() and metrics.read_text().count("\n") >= at):
            assert process.poll() is None, f"ended by itself before step {at}"
            assert time.monotonic() < limit
            time.sleep(0.002)
        assert kill_tree(process) >= 3
    before = lines_that_survived(metrics)
    assert at <= before < steps, "the kill came too late to test anything"
    assert not (output / stage / "export").exists()
    done = onward("run", path)
    assert done.returncode == 0, f"{stage} killed at {before}: {done.stdout}{done.stderr}"
    return output


def lines_that_survived(metrics: Path) -> int:
    return metrics.read_bytes().count(b"\n")


@pytest.mark.parametrize("stage", TRAINED)
def test_a_killed_run_ends_with_the_same_losses_bit_for_bit(finished, killed, stage):
    control, resumed = (lines(run / stage / "metrics.jsonl") for run in (finished, killed))
    exact = ("step", "loss", "lr", "grad_norm", "tokens")
    assert [{k: line[k] for k in exact} for line in control] == [
        {k: line[k] for k in exact} for line in resumed
    ]
    assert [{n: s["tokens"] for n, s in line["sources"].items()} for line in control] == [
        {n: s["tokens"] for n, s in line["sources"].items()} for line in resumed
    ]
    assert [line["step"] for line in control] == list(range(1, len(control) + 1))


def test_a_killed_run_ends_with_the_same_model_and_answers(finished, killed):
    for stage in TRAINED:
        first, second = (
            (run / stage / "export" / "model.safetensors").read_bytes()
            for run in (finished, killed)
        )
        assert first == second
    first, second = (
        json.loads((run / "evaluate" / "results.json").read_text()) for run in (finished, killed)
    )
    assert timeless(first["arms"]) == timeless(second["arms"])
    assert set(first["arms"]) == {"base", "dapt"}


def test_validation_falls_and_is_the_same(finished, killed):
    control, resumed = (lines(run / "base" / "validation.jsonl") for run in (finished, killed))
    assert control == resumed
    assert control[-1]["sets"]["general"]["loss"] < control[0]["sets"]["general"]["loss"] - 0.3


def test_what_a_run_measures_and_decides_is_the_same_after_a_kill(finished, killed):
    for name in ("validation", "forgetting", "probes"):
        control, resumed = (lines(run / "dapt" / f"{name}.jsonl") for run in (finished, killed))
        assert timeless(control) == timeless(resumed)
    told = lines(finished / "dapt" / "forgetting.jsonl")
    assert [line["step"] for line in told] == [0, 15, 30, 45, 60]
    chosen = json.loads((finished / "dapt" / "choice.json").read_text())
    assert chosen["step"] in {30, 60}
    card = json.loads((finished / "dapt" / "export" / "onward.json").read_text())
    assert card["lineage"]["step"] == chosen["step"]
    averages = [
        (run / "dapt" / "export-average" / "model.safetensors").read_bytes()
        for run in (finished, killed)
    ]
    assert averages[0] == averages[1]
    importances = json.loads((finished / "fisher" / "fisher.json").read_text())
    assert min(importances["mean_importance"].values()) >= 0
    assert max(importances["mean_importance"].values()) > 0


def test_the_export_is_whole_for_transformers_alone(finished):
    code = """
import json, sys, torch, transformers
folder = sys.argv[1]
model = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
text = tokenizer("kalo miren tosva", return_tensors="pt")
with torch.no_grad():
    loss = float(model(**text, labels=text["input_ids"]).loss)
assert not any(name.split(".")[0] in {"engine", "configs", "launcher"} for name in sys.modules)
unknown = tokenizer.unk_token_id in text["input_ids"][0]
print(json.dumps({"tied": tied, "loss": loss, "unknown": unknown}))
"""
    folder = finished / "dapt" / "export"
    seen = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        cwd=finished,
    )
    answer = json.loads(seen.stdout)
    assert answer["tied"]
    assert not answer["unknown"]
    assert answer["loss"] < 6
    card = json.loads((folder / "onward.json").read_text())
    verified = card["verification"]
    assert verified["loss"] == pytest.approx(verified["trained_loss"], rel=1e-5)


def test_every_stage_is_done_and_the_report_says_so(finished):
    states = {
        path.parent.name: json.loads(path.read_text())["state"]
        for path in finished.glob("*/status.json")
    }
    assert set(states.values()) == {"done"}
    assert len(states) == 11
    html = (finished / "report" / "index.html").read_text()
    assert 'src="http' not in html
    assert (finished / "report" / "report.md").exists()
    assert json.loads((finished / "report" / "report.json").read_text())
    assert list((finished / "base" / "tensorboard").glob("events*"))
    kept = sorted(path.name for path in (finished / "base" / "checkpoints").glob("step-*"))
    assert kept == ["step-100", "step-120"]


def test_a_finished_chain_is_skipped_without_a_launch(finished, write_recipe, onward: Onward):
    before = {p: p.stat().st_mtime_ns for p in finished.glob("*/status.json")}
    done = onward("run", write_recipe(finished))
    assert done.returncode == 0
    assert {p: p.stat().st_mtime_ns for p in finished.glob("*/status.json")} == before


def test_a_changed_recipe_is_refused_and_says_how_to_go_on(finished, write_recipe, onward: Onward):
    done = onward("run", write_recipe(finished), "stages.base.optimizer.lr=0.5")
    assert done.returncode == 4
    assert "--redo" in done.stderr
    assert "lr" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_adapter_and_a_decoder_come_out_as_plain_models(finished):
    cards = {
        stage: json.loads((finished / stage / "export" / "onward.json").read_text())
        for stage in ("adapter", "decoder")
    }
    assert cards["adapter"]["verification"]["auto_class"] == "AutoModelForMaskedLM"
    assert cards["decoder"]["verification"]["auto_class"] == "AutoModelForCausalLM"
    weights = (finished / "adapter" / "export" / "model.safetensors").read_bytes()
    assert b"lora" not in weights
    assert weights != (finished / "base" / "export" / "model.safetensors").read_bytes()
    losses = [line["loss"] for line in lines(finished / "decoder" / "metrics.jsonl")]
    assert losses[-1] < losses[0] - 0.2


def test_order_and_inspect_answer_from_the_run(finished, write_recipe, onward: Onward):
    path = write_recipe(finished)
    tables = [
        json.loads(onward("order", path, "dapt", "--step", 7, "--world", w, "--json").stdout)
        for w in (1, 2, 4)
    ]
    bare = [
        sorted((row["index"], row["source"], row["sample"]) for row in table["rows"])
        for table in tables
    ]
    assert bare[0] == bare[1] == bare[2]
    assert len(bare[0]) == 16
    for place in ("prepare/corpora/domain/train", "base/checkpoints/step-120", "base/export", "."):
        seen = onward("inspect", finished / place)
        assert seen.returncode == 0, seen.stderr
