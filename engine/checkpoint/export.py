"""Export: a checkpoint as a Hugging Face folder that has been loaded back and compared."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import isclose
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import CheckpointError, DataError
from data_pipeline.tokenization import tokenizer_sha256
from engine.checkpoint import commit, disk
from engine.checkpoint.store import WEIGHT, FragmentStore
from engine.quiet import quiet_transformers

if TYPE_CHECKING:
    from torch import Tensor, nn

    from engine.protocols import Adaptation, LearnerModule

CARD = "onward.json"
FORMAT = "onward-export-1"
# Logits may move by this share of the largest one, the loss by this share of itself: a merge adds
# in another order than LoRA ran.
_TOLERANCE = 1e-4
_BLOCK = 1 << 22


@dataclass(frozen=True, slots=True)
class Verification:
    """What was seen when the folder was loaded back by transformers' Auto classes.

    By these alone, unless the model carries additions, which are put back then.

    Attributes:
        auto_class: the class that loaded it.
        parameters: how many values the model has, tied ones once.
        ties: names of parameters that are one tensor, in groups.
        largest_logit_difference: over the probe, between the trained model before any merge and
            the loaded one.
        largest_logit: its scale.
        loss: of the loaded model on the probe; None for an encoder without a head.
        trained_loss: of the trained model on the probe.
    """

    auto_class: str
    parameters: int
    ties: tuple[tuple[str, ...], ...]
    largest_logit_difference: float
    largest_logit: float
    loss: float | None
    trained_loss: float | None


@dataclass(frozen=True, slots=True)
class Export:
    """A finished export: its folder, the digest of its files, and what was verified."""

    folder: Path
    fingerprint: str
    verification: Verification


@dataclass(frozen=True, slots=True)
class _Answer:
    """Logits [B, L, V] (hidden states [B, L, D] without a head) and the loss on the probe."""

    logits: "Tensor"
    loss: float | None


def export_model(  # noqa: PLR0913, PLR0917 -- what the caller has in hand after training, no more
    store: FragmentStore,
    learner: "nn.Module",
    adaptation: "Adaptation",
    tokenizer: Any,
    folder: Path,
    lineage: Mapping[str, Any],
    probe: Any,
    key: str = WEIGHT,
) -> Export:
    """Write ``folder`` from the checkpoint's fp32 weights; it appears whole and verified, or not.

    The weights go into ``learner``, whose backbone is merged in place: the learner is used up.
    Frozen parameters are in no checkpoint; they are taken as the learner has them, so build it
    from the same input model. The objective's heads are left out.

    Args:
        store: of a verified checkpoint.
        learner: freshly built, adaptation applied, fp32 on the CPU, not partitioned.
        adaptation: the one that was applied to its backbone.
        tokenizer: a transformers tokenizer.
        folder: an earlier export there is replaced; anything else there is refused.
        lineage: JSON-able: where model and data come from; kept in ``onward.json``.
        probe: token ids [B, L] (or [L]) on which both models are compared.
        key: the state to take for the weights: an average's, or the trained weights themselves.

    Raises:
        CheckpointError: weights are missing or do not fit, or the loaded model is another one.
        DataError: the probe is empty or outside the vocabulary.
        ResourceError: the disk failed.
    """
    _check_folder(folder)
    fill(store, learner, key)
    module: LearnerModule = learner  # type: ignore[assignment]  # nn.Module hides its attributes
    tokens = _probe(probe, module.backbone)
    trained = _answer(module.backbone, tokens)
    files = adaptation.files(module.backbone)
    model: Any = adaptation.merge(module.backbone)
    return _publish(_Exported(model, tokenizer, files), folder, lineage, tokens, trained)


def export_untrained(
    model: Any, tokenizer: Any, folder: Path, lineage: Mapping[str, Any], probe: Any
) -> Export:
    """The same for a model that comes from no checkpoint, as it is: fp32, on the CPU."""
    _check_folder(folder)
    tokens = _probe(probe, model)
    exported = _Exported(model, tokenizer)
    return _publish(exported, folder, lineage, tokens, _answer(model, tokens))


@dataclass(frozen=True, slots=True)
class _Exported:
    """What goes into the folder.

    Attributes:
        model: merged; it may carry additions.
        tokenizer: transformers'.
        files: more of them, by their path in the folder.
    """

    model: Any
    tokenizer: Any
    files: Mapping[str, bytes] = field(default_factory=dict)


def _publish(
    exported: _Exported,
    folder: Path,
    lineage: Mapping[str, Any],
    tokens: "Tensor",
    trained: _Answer,
) -> Export:
    """Write aside, load back, compare, and only then give the folder its name."""
    _require_ties(exported.model)
    with disk.disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        commit.remove_leftovers(folder.parent, folder.name)
        temporary = commit.aside(folder)
        try:
            _write(exported, temporary)
            verification = _verify(temporary, exported, tokens, trained)
            fingerprint = _write_card(temporary, lineage, verification)
            commit.publish(temporary, folder)
        finally:
            if temporary.exists():
                commit.remove(temporary)
    return Export(folder, fingerprint, verification)


def fill(store: FragmentStore, learner: "nn.Module", key: str = WEIGHT) -> None:
    """Copy a checkpoint's weights, or what stands under ``key`` for them, into a learner.

    CheckpointError unless each has its place.
    """
    import torch

    parameters = dict(learner.named_parameters())
    if strangers := [name for name in store.names if name not in parameters]:
        msg = (
            f"{store.folder}: holds {strangers[0]}, which the model has not ({len(strangers)} such)"
        )
        raise CheckpointError(msg)
    for name, parameter in parameters.items():
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            msg = (
                f"export: {name} is {parameter.dtype} on {parameter.device}; "
                "build the learner in fp32 on the CPU"
            )
            raise CheckpointError(msg)
        if not store.has(name):
            _require_frozen(store, name, parameter)
            continue
        if tuple(parameter.shape) != store.shape(name):
            msg = (
                f"{store.folder}: {name} is {store.shape(name)}, "
                f"the model's is {tuple(parameter.shape)}"
            )
            raise CheckpointError(msg)
        parameter.data.copy_(store.whole(name, key))


def _require_frozen(store: FragmentStore, name: str, parameter: "nn.Parameter") -> None:
    if parameter.requires_grad or not parameter.numel():
        msg = (
            f"{store.folder}: no weights of {name}; "
            "the checkpoint is of another model or adaptation"
        )
        raise CheckpointError(msg)


def _check_folder(folder: Path) -> None:
    """Only an empty folder or an earlier export may be replaced."""
    if not folder.exists() and not folder.is_symlink():
        return
    if folder.is_symlink() or not folder.is_dir():
        msg = f"export: {folder} is not a folder; choose another place"
        raise CheckpointError(msg)
    if any(folder.iterdir()) and not (folder / CARD).is_file():
        msg = f"export: {folder} holds something that is no export; choose an empty folder"
        raise CheckpointError(msg)


def _probe(probe: Any, backbone: Any) -> "Tensor":
    import torch

    tokens = torch.as_tensor(probe).long()
    tokens = tokens.unsqueeze(0) if tokens.ndim == 1 else tokens
    size = backbone.config.vocab_size
    if tokens.ndim != 2 or not tokens.numel() or int(tokens.min()) < 0 or int(tokens.max()) >= size:
        shape = tuple(tokens.shape)
        msg = f"export: the probe must be token ids [B, L] in [0, {size}), got shape {shape}"
        raise DataError(msg)
    return tokens


def _answer(model: Any, tokens: "Tensor") -> _Answer:
    """What a model says to the probe, without dropout; its mode is put back."""
    import torch

    auto_class = _auto_class(model)
    training = model.training
    model.eval()
    with torch.no_grad():
        labels = {} if auto_class == "AutoModel" else {"labels": tokens}
        outputs = model(input_ids=tokens, **labels)
    model.train(training)
    loss = float(outputs.loss) if labels else None
    return _Answer(outputs[1] if labels else outputs[0], loss)


def _auto_class(model: Any) -> str:
    """Which Auto class gives this very class back."""
    from engine.remote_code import is_remote

    if is_remote(model) and model._auto_class:
        return str(model._auto_class)
    from transformers.models.auto import modeling_auto as auto

    tables = {
        "AutoModelForMaskedLM": auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        "AutoModelForCausalLM": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "AutoModel": auto.MODEL_MAPPING_NAMES,
    }
    name = type(model).__name__
    for auto_class, table in tables.items():
        known = table.get(model.config.model_type)
        if name == known or (isinstance(known, tuple) and name in known):
            return auto_class
    msg = f"export: transformers has no Auto class for {name} ({model.config.model_type})"
    raise CheckpointError(msg)


def _write(exported: _Exported, folder: Path) -> None:
    from engine.additions import save_additions, without_additions

    model = exported.model
    needed = sum(p.numel() * p.element_size() for p in model.parameters())
    disk.require_space(folder, needed + sum(map(len, exported.files.values())))
    with quiet_transformers():
        model.save_pretrained(folder, state_dict=without_additions(model))
    save_additions(model, folder)
    exported.tokenizer.save_pretrained(folder)
    for name, content in exported.files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)


def _verify(folder: Path, exported: _Exported, tokens: "Tensor", trained: _Answer) -> Verification:
    from engine.remote_code import is_remote

    model = exported.model
    # Code that came with the trained model is in the folder, as it was when it was trusted.
    loaded = _load(folder, _auto_class(model), trust_code=is_remote(model))
    _compare_weights(model, loaded)
    _compare_tokenizer(exported.tokenizer, folder)
    answer = _answer(loaded, tokens)
    largest = float(trained.logits.abs().max())
    difference = float((answer.logits - trained.logits).abs().max())
    if not difference <= _TOLERANCE * max(1.0, largest):
        msg = (
            f"export: loaded back, the model's logits differ from the trained one's by "
            f"{difference:.3g} (largest logit {largest:.3g}); nothing was exported"
        )
        raise CheckpointError(msg)
    _compare_losses(answer.loss, trained.loss)
    return Verification(
        auto_class=_auto_class(model),
        parameters=sum(p.numel() for p in loaded.parameters()),
        ties=ties(loaded),
        largest_logit_difference=difference,
        largest_logit=largest,
        loss=answer.loss,
        trained_loss=trained.loss,
    )


def _load(folder: Path, auto_class: str, *, trust_code: bool) -> Any:
    """The model as anybody would load it, and then its additions as a later stage would."""
    import transformers

    from engine.additions import restore_additions

    with quiet_transformers():
        loaded, report = getattr(transformers, auto_class).from_pretrained(
            folder, output_loading_info=True, trust_remote_code=trust_code, use_safetensors=True
        )
    wrong = {kind: sorted(map(str, names)) for kind, names in report.items() if names}
    if wrong:
        msg = f"export: transformers does not load the folder whole: {wrong}; nothing was exported"
        raise CheckpointError(msg)
    restore_additions(loaded, folder)
    return loaded


def _compare_losses(loaded: float | None, trained: float | None) -> None:
    if trained is None and loaded is None:
        return
    if trained is None or loaded is None or not isclose(loaded, trained, rel_tol=_TOLERANCE):
        msg = (
            f"export: loaded back, the model's loss on the probe is {loaded}, the trained one's "
            f"{trained}; nothing was exported"
        )
        raise CheckpointError(msg)


def _compare_weights(model: "nn.Module", loaded: "nn.Module") -> None:
    import torch

    mine, theirs = model.state_dict(), loaded.state_dict()
    if mine.keys() != theirs.keys():
        names = sorted(mine.keys() ^ theirs.keys())
        msg = f"export: loaded back, other weights are there: {names[:4]}"
        raise CheckpointError(msg)
    if changed := [name for name, value in mine.items() if not torch.equal(value, theirs[name])]:
        msg = f"export: loaded back, {changed[0]} is another tensor ({len(changed)} such)"
        raise CheckpointError(msg)
    if ties(model) != ties(loaded):
        msg = f"export: tied weights were {ties(model)}, loaded back they are {ties(loaded)}"
        raise CheckpointError(msg)


def _require_ties(model: Any) -> None:
    """A tie lost on the way would export the input model's weights on one side of it."""
    head = model.get_output_embeddings()
    if head is None or not getattr(model.config, "tie_word_embeddings", False):
        return
    if head.weight is not model.get_input_embeddings().weight:
        msg = "export: the config ties the vocabulary's embeddings, the learner no longer does"
        raise CheckpointError(msg)


def ties(model: "nn.Module") -> tuple[tuple[str, ...], ...]:
    """Groups of names that are one parameter."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return tuple(sorted(tuple(sorted(names)) for names in groups.values() if len(names) > 1))


def _compare_tokenizer(tokenizer: Any, folder: Path) -> None:
    import transformers

    with quiet_transformers():
        loaded = transformers.AutoTokenizer.from_pretrained(
            folder, trust_remote_code=type(tokenizer).__module__.startswith("transformers_modules.")
        )
    digests = [tokenizer_sha256(each.backend_tokenizer) for each in (loaded, tokenizer)]
    if digests[0] != digests[1] or loaded.special_tokens_map != tokenizer.special_tokens_map:
        msg = (
            "export: loaded back, the tokenizer gives texts other ids or has other special tokens; "
            "nothing was exported"
        )
        raise CheckpointError(msg)


def _write_card(folder: Path, lineage: Mapping[str, Any], verification: Verification) -> str:
    """Sync every file and write ``onward.json``; returns the digest of all of them."""
    from engine.additions import adds_to
    from engine.remote_code import code_digest

    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            commit.sync_folder(path)
            continue
        _sync(path)
        name = path.relative_to(folder).as_posix()
        files[name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    fingerprint = _fingerprint(files)
    card = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "adaptations": list(adds_to(folder)),
        "lineage": dict(lineage),
        "verification": asdict(verification),
        "files": files,
    }
    if any(folder.rglob("*.py")):
        card["remote_code"] = code_digest(folder)
    commit.write_json(folder / CARD, card)
    return fingerprint


def export_problems(folder: Path) -> list[str]:
    """What is wrong with an export, a line for each file; empty if its files are as written."""
    try:
        card = read_card(folder)
    except CheckpointError as error:
        return [str(error)]
    problems = []
    for name, expected in card["files"].items():
        path = folder / name
        if not _is_inside(name) or _is_linked(folder, path) or not path.is_file():
            problems.append(f"{path}: missing")
        elif _sha256(path) != expected["sha256"]:
            problems.append(f"{path}: damaged: sha256 is not the one in {CARD}")
    return problems


def _is_inside(name: str) -> bool:
    """Whether a card may name it: a file of the folder, or of a folder within."""
    parts = Path(name).parts
    return (
        0 < len(parts) <= 2
        and ".." not in parts
        and not Path(name).is_absolute()
        and "\0" not in name
    )


def _is_linked(folder: Path, path: Path) -> bool:
    """Whether it, or the folder within that it lies in, is a link: it may lead anywhere."""
    return path.is_symlink() or (path.parent != folder and path.parent.is_symlink())


def read_card(folder: Path) -> dict[str, Any]:
    """``onward.json`` of an export; CheckpointError if it is missing, damaged or another format."""
    try:
        card = json.loads((folder / CARD).read_bytes())
        known = card["format"] == FORMAT and card["fingerprint"] == _fingerprint(card["files"])
        if not all(isinstance(file["sha256"], str) for file in card["files"].values()):
            msg = "a file without its sha256"
            raise ValueError(msg)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        msg = f"{folder / CARD}: missing or damaged: {error}"
        raise CheckpointError(msg) from error
    if not known:
        msg = f"{folder / CARD}: damaged, or of another format than {FORMAT}"
        raise CheckpointError(msg)
    return dict(card)


def _fingerprint(files: Mapping[str, Any]) -> str:
    text = json.dumps(files, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
