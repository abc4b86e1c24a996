"""What looks secret is known by its name or its form, and masked; what does not is left alone."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest

from configs.errors import RecipeError
from launcher.exports import exports, own_environment
from launcher.placement import Placement
from launcher.provenance import command_line
from launcher.recipe import RECIPES, load_recipe
from launcher.secrecy import holds_secret, is_secret_name, mask, mask_word

SECRET = [
    *("HF_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD"),
    *("GITHUB_PAT", "OPENAI_APIKEY", "SLURM_JWT", "DB_PASSWD", "HTTP_AUTH", "api-key", "MV2_PASS"),
]
HARMLESS = [
    *("TOKENIZERS_PARALLELISM", "MAX_TOKENS", "NCCL_IB_PKEY", "PATH", "MONKEY", "KEYBOARD"),
    *("stages.base.steps", "count_tokens", "tokenizer", "AUTHOR", "COMPASS"),
]


def test_names() -> None:
    assert [name for name in SECRET if not is_secret_name(name)] == []
    assert [name for name in HARMLESS if is_secret_name(name)] == []


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("see https://me:pw1@host/x", "see https://me:***@host/x"),
        ("s3://bucket/key?X-Amz-Signature=abc&b=1", "s3://bucket/key?X-Amz-Signature=***&b=1"),
        ("hf_abcdefghijklmnopqrst", "***"),
        ("a.b.api_key=pw, more", "a.b.api_key=***, more"),
        ("AKIAABCDEFGHIJKLMNOP", "***"),
        ("http://host:8080/a@b", "http://host:8080/a@b"),
        ("user@host:/path", "user@host:/path"),
        ("token=3", "token=3"),
        ("--export=ALL,X=1,HF_TOKEN=pw", "--export=ALL,X=1,HF_TOKEN=***"),
        ("--export=HF_TOKEN=pw", "--export=HF_TOKEN=***"),
        ('{"a": 1, "api_key": "x y", "b": 2}', '{"a": 1, "api_key": ***, "b": 2}'),
        ("x={a: 1, password: pw}", "x={a: 1, password: ***}"),
        ("no stage; password: where", "no stage; password: where"),
        ("step=3, tokens=1e9", "step=3, tokens=1e9"),
    ],
)
def test_texts(text: str, masked: str) -> None:
    assert mask(text) == masked


def test_words_of_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mask_word("--password=a b c") == "--password=***"
    assert mask_word("stages.base.steps=3") == "stages.base.steps=3"
    monkeypatch.setattr(sys, "argv", ["/bin/onward", "run", "r.yaml", "x.secret_key=a, b"])
    assert command_line() == ["onward", "run", "r.yaml", "x.secret_key=***"]


@pytest.mark.parametrize(
    "setting",
    [
        "output=https://me:canary@host/x",
        'stages.base.backend.config={"comet": {"api_key": "canary"}}',
        "stages.prepare.corpora.general.sources=[{name: jsonl, path: 's3://b?token=canary'}]",
    ],
)
def test_a_recipe_with_a_secret_is_refused_without_telling_it(setting: str) -> None:
    with pytest.raises(RecipeError, match="does not belong in a recipe") as caught:
        load_recipe(RECIPES / "quickstart.yaml", [setting])
    assert "canary" not in mask(str(caught.value))


@pytest.mark.parametrize("words", ["-x WANDB_API_KEY=canary", "--export=HF_TOKEN=canary"])
def test_the_launchers_own_words_hold_none(words: str, fakes_on_path: Path) -> None:
    placement = Placement(hostfile=fakes_on_path, launcher="pdsh", launcher_args=words)
    with pytest.raises(RecipeError, match=r"--launcher-args .*looks secret") as told:
        placement.require()
    assert "canary" not in str(told.value)
    with pytest.raises(RecipeError, match="No closing quotation"):
        dataclasses.replace(placement, launcher_args="-t '3").require()


@pytest.fixture
def fakes_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shutil, "which", lambda name, path=None: f"/bin/{name}")
    hostfile = tmp_path / "hosts"
    hostfile.write_text("node-1 slots=1\n")
    return hostfile


def test_a_file_of_variables_that_is_no_text_is_named(tmp_path: Path) -> None:
    own = tmp_path / ".deepspeed_env"
    own.write_bytes(b"A=\xff\n")
    with pytest.raises(RecipeError, match="deepspeed_env: cannot be read"):
        exports({}, [own])


def test_other_hosts_get_no_secret_by_any_way(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="HF_TOKEN is not handed to other hosts: its name"):
        exports({"HF_TOKEN": "x"}, [], ["HF_TOKEN"])
    with pytest.raises(RecipeError, match="UCX_X is not handed to other hosts: its value") as told:
        exports({"UCX_X": "https://me:canary@host"}, [])
    assert "canary" not in str(told.value)
    own = tmp_path / ".deepspeed_env"
    own.write_text("WANDB_API_KEY=canary\n")
    with pytest.raises(RecipeError, match="WANDB_API_KEY is not handed") as told:
        exports({}, [own])
    assert "canary" not in str(told.value)
    with pytest.raises(RecipeError, match="--env MINE: not set here"):
        exports({}, [], ["MINE"])
    assert exports({"MINE": "1", "OTHER": "2"}, [], ["MINE"]) == {"MINE": "1"}


def test_the_launcher_gets_what_it_lives_on() -> None:
    needed = {
        "PATH": "/bin",
        "SSH_AUTH_SOCK": "/s",
        "SLURM_JOB_ID": "1",
        "OMPI_X": "1",
        "LC_ALL": "C",
    }
    given = {**needed, **dict.fromkeys(SECRET[:6], "x"), "MV2_X": "1", "PYTHONSTARTUP": "x"}
    assert own_environment(given) == needed
    assert not holds_secret(json.dumps(needed))
