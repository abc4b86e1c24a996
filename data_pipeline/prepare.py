"""The offline stage: sources -> cleaning -> split -> tokenizer -> shards of every corpus.

What comes out does not depend on the number of processes or hosts, nor on interruptions: the work
is cut into tasks by the files alone, and each task's result depends on the task alone.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from configs.stage import Runs, StageConfig, StageContext
from data_pipeline.corpus import CorpusConfig
from data_pipeline.shards.choices import SHARD_TOKENS
from data_pipeline.tokenization import Tokenizer

CorpusName = Annotated[str, Field(pattern=r"^\w[\w.+-]*$")]


class PrepareStage(StageConfig):
    """Makes ``tokenizer`` and ``corpora/NAME/train`` (and ``held_out``) in its folder.

    Attributes:
        tokenizer: a pretrained one, or one to be trained on corpora of this stage.
        corpora: by name. A text that is held out in one corpus is trained on in none; of
            equal texts of one corpus the first stays.
        processes: how many share the work; under a hostfile, on each host.
        shard_tokens: a shard is closed by the document that brings it to so many tokens.
    """

    RUNS: ClassVar[Runs] = "hosts"
    UNKEYED: ClassVar[frozenset[str]] = frozenset({"processes"})
    # All is made then, though nobody may have noted that the stage is done.
    KEPT: ClassVar[frozenset[str]] = frozenset({"prepared.json"})
    ADVANCES: ClassVar[frozenset[str]] = frozenset({".prepare/*/*/*.json"})

    VERSION: ClassVar[int] = 5

    kind: Literal["prepare"] = "prepare"
    tokenizer: Tokenizer
    corpora: dict[CorpusName, CorpusConfig] = Field(min_length=1)
    processes: int = Field(default=1, ge=1, le=256)
    shard_tokens: int = Field(default=SHARD_TOKENS, ge=1)

    @model_validator(mode="after")
    def _trained_on_own_corpora(self) -> "PrepareStage":
        for name in self.tokenizer.trained_on:
            if name not in self.corpora:
                known = ", ".join(self.corpora)
                msg = f"tokenizer.corpora: no corpus '{name}' in this stage; it has {known}"
                raise ValueError(msg)
        return self

    def check(self, context: StageContext) -> None:
        """Missing files, packages and groups; what earlier stages will make is not looked for."""
        self.tokenizer.check()
        for location in self.tokenizer.locations:
            if context.is_made(location):
                context.locate(location)
        for corpus in self.corpora.values():
            corpus.check_packages()
            guarded = corpus.decontaminate.sources() if corpus.decontaminate else ()
            for source in (*corpus.sources, *guarded):
                if all(map(context.is_made, source.locations)):
                    source.check(context.locate)
            if corpus.split and all(map(context.is_made, corpus.split.locations)):
                corpus.split.build(context.locate, context.seed)

    def run(self, context: StageContext) -> str:
        """Make everything; the fingerprint covers the tokenizer and every byte of the shards."""
        from data_pipeline.preparing.job import prepare

        return prepare(self, context)

    def outdated(self, context: StageContext) -> str | None:
        """Which of the files that it read has changed since."""
        from data_pipeline.preparing.job import change

        return change(self, context)
