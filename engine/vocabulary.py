"""New words in a model's vocabulary: a model folder in, a model folder out.

A new word's row is the mean of the rows of the pieces it was spelled with (Hewitt, "Initializing
new word embeddings for pretrained language models", 2021; here of its own pieces, not of all
words), in the input embeddings, in untied output embeddings and in the output's bias.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from configs.errors import DataError, RecipeError
from configs.stage import StageConfig, StageContext
from data_pipeline import shards
from data_pipeline.shards import Verify
from data_pipeline.storage import is_url
from data_pipeline.tokenization import tokenizer_sha256
from data_pipeline.tokenization.tokenizer import FILE, load_backend
from data_pipeline.whole_file import write_whole
from engine.models import PretrainedModel

if TYPE_CHECKING:
    from torch import Tensor

    from data_pipeline.shards import ShardedDataset
    from data_pipeline.tokenization.extension import Extended, Measure, Spelling

RESULTS = "results.json"
EXPORT = "export"
_WORK = ".tokenizers"
_PROBE_TOKENS = 32


class VocabularyStage(StageConfig):
    """Makes ``export``, a model that knows new words, and ``results.json`` in its folder.

    Attributes:
        model: the model, with the tokenizer that made the shards.
        architecture: which head the model has; one that it lacks is made afresh, and told of.
        corpora: name -> location of shards whose words are counted.
        held_out: name -> location of shards on which savings are measured, too.
        add: at most so many words.
        min_count: a word must occur so often.
        letters_only: whether words with digits in them are left out.
        count_tokens: words are counted in so many tokens of a corpus at most.
        measure_tokens: savings are measured on so many tokens of a corpus at most.
    """

    VERSION: ClassVar[int] = 1

    kind: Literal["vocabulary"] = "vocabulary"
    model: PretrainedModel
    architecture: Literal["masked_lm", "causal_lm"]
    corpora: dict[str, str] = Field(min_length=1)
    held_out: dict[str, str] = Field(default_factory=dict)
    add: int = Field(ge=1, le=1 << 20)
    min_count: int = Field(10, ge=1)
    letters_only: bool = True
    count_tokens: int = Field(200_000_000, ge=1)
    measure_tokens: int = Field(2_000_000, ge=1)

    @model_validator(mode="after")
    def _names_differ(self) -> "VocabularyStage":
        if twice := sorted(self.corpora.keys() & self.held_out.keys()):
            msg = f"held_out.{twice[0]}: a corpus has that name already; give it another"
            raise ValueError(msg)
        return self

    def check(self, context: StageContext) -> None:
        """Missing models, tokenizers and shards, and shards of another tokenizer."""
        self.model.check(context.is_made, context.locate)
        for location in self._shards.values():
            if not is_url(location) and context.is_made(location):
                data = shards.ShardedDataset.open(context.locate(location))
                sha256 = data.manifest.tokenizer.sha256
                self.model.check_tokenizer(context.is_made, context.locate, sha256)

    def run(self, context: StageContext) -> str:
        """Extend; the fingerprint covers the export and ``results.json``."""
        work = context.folder / _WORK
        shutil.rmtree(work, ignore_errors=True)
        try:
            return self._extend(context, work)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _extend(self, context: StageContext, work: Path) -> str:
        from data_pipeline.tokenization.extension import Spelling
        from engine.checkpoint.export import export_untrained

        loaded = self.model.build(context.locate, self.architecture, context.seed)
        old = work / "old"
        loaded.tokenizer.save_pretrained(str(old))
        data = self._open(context, tokenizer_sha256(old))
        spelling = Spelling(json.loads(load_backend(old).to_str()))
        extended = self._choose(spelling, data)
        tokenizer = save_extended(loaded.tokenizer, extended, work / "new")
        rows = grow(loaded.model, extended)
        results = {
            "kind": self.kind,
            "tokenizer": {
                "sha256_before": tokenizer_sha256(old),
                "sha256_after": tokenizer_sha256(work / "new"),
                "ids_before": extended.first,
                "ids_after": extended.first + len(extended.words),
            },
            "embeddings": rows,
            "head_made_afresh": list(loaded.fresh),
            **self._measure(_comparing(old, work / "new", spelling, extended), data),
            **_described(extended, spelling),
        }
        lineage = {
            "stage": context.name,
            "key": context.key,
            "model": self.model.model_dump(mode="json"),
            "inputs": {name: artifact.fingerprint for name, artifact in context.inputs.items()},
            "data": {name: each.fingerprint for name, each in data.items()},
            "added_words": len(extended.words),
        }
        probe = _probe(extended, loaded.model)
        made = export_untrained(loaded.model, tokenizer, context.folder / EXPORT, lineage, probe)
        content = (json.dumps(results, indent=1, ensure_ascii=False) + "\n").encode()
        write_whole(context.folder / RESULTS, content)
        return hashlib.sha256(made.fingerprint.encode() + content).hexdigest()

    @property
    def _shards(self) -> dict[str, str]:
        return self.corpora | self.held_out

    def _open(
        self, context: StageContext, sha256: str, verify: Verify = "digests"
    ) -> dict[str, "ShardedDataset"]:
        opened = {
            name: shards.ShardedDataset.open(shards.find_shards(location, context.locate), verify)
            for name, location in self._shards.items()
        }
        for data in opened.values():
            data.require_tokenizer(sha256, self.model.tokenizer or self.model.location)
        return opened

    def _choose(self, spelling: "Spelling", data: Mapping[str, "ShardedDataset"]) -> "Extended":
        from data_pipeline.tokenization.extension import count_words, extend, rank

        counts = Counter[tuple[int, ...]]()
        for name in self.corpora:
            counts.update(count_words(data[name], self.count_tokens))
        ranked = rank(spelling, counts, min_count=self.min_count, letters_only=self.letters_only)
        extended = extend(spelling, ranked, self.add)
        if not extended.words:
            msg = (
                f"corpora {', '.join(self.corpora)}: no word of several tokens occurs "
                f"{self.min_count} times, so there is nothing to add; lower min_count, "
                "or leave this stage out"
            )
            raise DataError(msg)
        return extended

    def _measure(self, measure: "Measure", data: Mapping[str, "ShardedDataset"]) -> dict[str, Any]:
        return {
            part: {
                name: measure.corpus(data[name], self.measure_tokens).as_dict() for name in names
            }
            for part, names in (("corpora", self.corpora), ("held_out", self.held_out))
        }


def save_extended(tokenizer: Any, extended: "Extended", folder: Path) -> Any:
    """Write a tokenizer with its new words, and load it as anybody would.

    Args:
        tokenizer: transformers' object, for its special tokens and settings.
        extended: what its tokenizer.json becomes.
        folder: where.
    """
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(str(folder))
    (folder / FILE).write_text(json.dumps(extended.values, ensure_ascii=False), encoding="utf-8")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    # A class of a model's own would build its parts anew, and leave out those that it lacks.
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings["model_input_names"] = list(tokenizer.model_input_names)
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    loaded = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    if tokenizer_sha256(loaded.backend_tokenizer) != tokenizer_sha256(folder):
        msg = f"{type(tokenizer).__name__}: transformers does not load it as it was extended"
        raise DataError(msg)
    return loaded


def grow(model: Any, extended: "Extended") -> dict[str, int]:
    """Give a model rows for new words, in place; the rows that it had stay as they are.

    Rows that no id used (of a table that was rounded up) are used first.

    Returns:
        rows of the input embeddings before and after.

    Raises:
        RecipeError: the model's table of words cannot be told from its other parts.
    """
    import torch

    before = model.get_input_embeddings().weight.shape[0]
    after = max(before, extended.first + len(extended.words))
    if after > before:
        # Its own initialisation draws from a distribution over all rows; ours follows here.
        model.resize_token_embeddings(after, mean_resizing=False)
    tables = _tables(model)
    for table in tables:
        if table.shape[0] != after:
            msg = (
                f"model {model.config.model_type}: a table of {table.shape[0]} rows beside "
                f"embeddings of {after}; its vocabulary cannot be extended"
            )
            raise RecipeError(msg)
    with torch.no_grad():
        for number, word in enumerate(extended.words, extended.first):
            for table in tables:
                table[number] = table[list(word.pieces)].mean(0)
    return {"rows_before": before, "rows_after": after}


def _tables(model: Any) -> "list[Tensor]":
    """Each parameter with a row, or a value, for every id: once where it is tied."""
    head = model.get_output_embeddings()
    found = [model.get_input_embeddings().weight]
    if head is not None:
        found += [head.weight, *([head.bias] if getattr(head, "bias", None) is not None else [])]
    return list({id(table): table for table in found}.values())


def _comparing(old: Path, new: Path, spelling: "Spelling", extended: "Extended") -> "Measure":
    from data_pipeline.tokenization.extension import Measure

    reached = frozenset(spelling.ids[token] for token in extended.shadowed)
    return Measure(old, new, extended.first, reached)


def _described(extended: "Extended", spelling: "Spelling") -> dict[str, Any]:
    return {
        "words_not_used_by_the_tokenizer": len(extended.unreachable),
        "old_tokens_now_reached": list(extended.shadowed),
        "words": [
            {
                "id": number,
                "token": word.token,
                "text": word.shown,
                "count": word.count,
                "pieces": [spelling.tokens[piece] for piece in word.pieces],
                "tokens_saved": word.saved,
            }
            for number, word in enumerate(extended.words, extended.first)
        ],
    }


def _probe(extended: "Extended", model: Any) -> Sequence[int]:
    """Ids on which the export is compared: new ones, and what they were spelled with."""
    ids = [
        piece
        for number, word in enumerate(extended.words, extended.first)
        for piece in (number, *word.pieces)
    ]
    padding = model.config.pad_token_id
    return [number for number in ids if number != padding][:_PROBE_TOKENS]
