"""Code that comes with a model runs only when the recipe says so and pins what it read."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from configs.errors import DataError, RecipeError
from engine import remote_code
from engine.checkpoint.export import export_untrained, read_card
from engine.models import PretrainedModel, RandomModel
from tests.engine import tiny

CODE = """
import os
from pathlib import Path
from transformers import BertConfig, BertForMaskedLM
Path(os.environ["CANARY"]).touch()
class CanaryConfig(BertConfig):
    model_type = "our_own"
class CanaryModel(BertForMaskedLM):
    config_class = CanaryConfig
"""


@pytest.fixture
def canary(tmp_path, monkeypatch):
    monkeypatch.setenv("CANARY", str(tmp_path / "canary"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    return tmp_path / "canary"


@pytest.fixture
def folder(tmp_path, canary):
    """A model that only its own code can load."""
    tokenizer = str(tiny.tokenizer_folder(tmp_path / "tokenizer"))
    made = RandomModel(shape="bert_tiny", tokenizer=tokenizer).build(Path, "masked_lm", 0)
    made.model.save_pretrained(path := tmp_path / "model")
    made.tokenizer.save_pretrained(path)
    change(
        path / "config.json",
        model_type="our_own",
        auto_map={
            "AutoConfig": "modeling_canary.CanaryConfig",
            "AutoModelForMaskedLM": "modeling_canary.CanaryModel",
        },
    )
    (path / "modeling_canary.py").write_text(CODE)
    return path


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def build(folder: Path, **more: object):
    model = PretrainedModel(location=str(folder), **more)  # type: ignore[arg-type]
    model.check(lambda _: True, Path)
    return model.build(Path, "masked_lm", 0)


def test_without_being_asked_for_nothing_runs_and_the_error_says_what_to_do(folder, canary):
    digest = remote_code.code_digest(folder)
    with pytest.raises(RecipeError, match=f"trust_remote_code: true and revision: {digest}"):
        build(folder)
    assert not canary.exists()


@pytest.mark.parametrize("revision", [None, "main", "v1.0", "abc1234", "sha256:00", "0" * 39])
def test_what_pins_nothing_is_refused(revision):
    with pytest.raises(ValidationError, match="revision"):
        PretrainedModel(location="a/b", trust_remote_code=True, revision=revision)


@pytest.mark.parametrize("revision", ["0" * 40, f"sha256:{'0' * 64}"])
def test_another_pin_is_refused(folder, canary, revision):
    with pytest.raises(RecipeError, match="is not the one that the recipe trusts"):
        build(folder, trust_remote_code=True, revision=revision)
    assert not canary.exists()


def test_the_right_pin_loads_and_the_export_carries_the_code(folder, canary, tmp_path):
    digest = remote_code.code_digest(folder)
    loaded = build(folder, trust_remote_code=True, revision=digest)
    assert canary.exists()
    assert type(loaded.model).__name__ == "CanaryModel"
    export_untrained(loaded.model, loaded.tokenizer, tmp_path / "out", {}, torch.tensor([[5, 6]]))
    card = read_card(tmp_path / "out")
    assert card["remote_code"] == remote_code.code_digest(tmp_path / "out")
    assert card["verification"]["auto_class"] == "AutoModelForMaskedLM"
    canary.unlink()
    with pytest.raises(RecipeError, match=card["remote_code"]):
        build(tmp_path / "out")
    assert not canary.exists()


def test_code_that_was_changed_or_added_is_another(folder, canary):
    digest = remote_code.code_digest(folder)
    (folder / "sub").mkdir()
    (folder / "sub" / "more.py").write_text("x = 1\n")
    with pytest.raises(RecipeError, match="not the one"):
        build(folder, trust_remote_code=True, revision=digest)
    (folder / "sub" / "more.py").unlink()
    (folder / "sub" / "more.py").symlink_to("/etc/passwd")
    with pytest.raises(RecipeError, match="a link"):
        build(folder, trust_remote_code=True, revision=digest)
    assert not canary.exists()


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_of_another_repository_is_refused_though_the_folder_is_pinned(folder, canary, file):
    change(folder / file, auto_map={"AutoTokenizer": ["else/where--code.Tokenizer", None]})
    digest = remote_code.code_digest(folder)
    with pytest.raises(RecipeError, match="another repository, else/where"):
        build(folder, trust_remote_code=True, revision=digest)
    assert not canary.exists()


def test_compiled_code_that_a_config_asks_for_is_refused(folder):
    change(folder / "config.json", model_type="bert", attn_implementation="kernels/evil:fast")
    with pytest.raises(RecipeError, match="attn_implementation: kernels/evil:fast"):
        build(folder)


def test_a_revision_of_a_folder_is_refused_without_trust(folder):
    with pytest.raises(RecipeError, match="a folder, not on the hub"):
        build(folder, revision="main")


def test_a_known_kind_of_model_is_loaded_without_the_code_beside_it(folder, canary):
    change(folder / "config.json", model_type="bert")
    assert type(build(folder).model).__module__.startswith("transformers.models.bert")
    assert not canary.exists()


def test_on_the_hub_model_and_code_are_asked_for_at_the_commit():
    commit = "0123456789abcdef" * 2 + "01234567"
    trust = remote_code.Trust(code=True, revision=commit)
    assert trust.arguments("who/what") == {
        "trust_remote_code": True,
        "revision": commit,
        "code_revision": commit,
    }
    assert remote_code.Trust().arguments("who/what") == {"trust_remote_code": False}
    with pytest.raises(RecipeError, match=r"on the hub.*whole commit"):
        remote_code.require("who/what", remote_code.Trust(True, f"sha256:{'0' * 64}"))


class Hostile:
    def __reduce__(self):
        return Path.touch, (Path(os.environ["CANARY"]),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_in_the_weights_place_does_not_run(folder, canary, zipped):
    change(folder / "config.json", model_type="bert", auto_map={})
    (folder / "model.safetensors").unlink()
    if zipped:
        torch.save({"weight": Hostile()}, folder / "pytorch_model.bin")
    else:
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Hostile()}, protocol=2))
    with pytest.raises(DataError, match=r"pickle|cannot load"):
        build(folder)
    assert not canary.exists()
