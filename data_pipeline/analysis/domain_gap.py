"""How far corpora lie apart before anything is trained: the numbers behind adapting to a domain.

Vocabulary overlap as in Gururangan et al., "Don't Stop Pretraining" (2020), here of words as the
tokenizer sees them; beside it divergences of words and n-grams, the contexts of words, the long
tail, and what the documents are about.
"""

import hashlib
import json
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from configs.stage import StageConfig, StageContext
from data_pipeline import shards
from data_pipeline.analysis.settings import MOST_NGRAMS, Clusters, Context
from data_pipeline.shards import CacheConfig, Mode, Verify

if TYPE_CHECKING:
    from data_pipeline.analysis.stretches import Reader

RESULTS = "results.json"


class GapStage(StageConfig):
    """Measures every pair of corpora; writes ``results.json`` in its folder.

    Attributes:
        corpora: name -> location of a shard folder, here or a URL.
        tokenizer: location of the tokenizer that made them all; spells the words.
        top: how many of the most frequent words the overlap is of.
        distinctive: how many words that set one corpus off from the other are listed.
        ngrams: runs of up to so many tokens are compared.
        rare: a word seen at most so often belongs to the long tail.
        sample_tokens: about so many tokens of each corpus are counted at most, in documents drawn
            from everywhere.
        vocabulary: so many words, the most frequent over all corpora, name neighbours and
            describe documents.
        context: how the neighbours of words are compared; null: not at all.
        clusters: how documents are clustered; null: not at all.
        cache: where shards at URLs are kept.
        mode: how shards are read; ``pread`` for file systems that cannot map files.
    """

    VERSION: ClassVar[int] = 3
    UNKEYED: ClassVar[frozenset[str]] = frozenset({"cache", "mode"})

    kind: Literal["gap"] = "gap"
    corpora: dict[str, str] = Field(min_length=2)
    tokenizer: str
    top: int = Field(10_000, ge=1)
    distinctive: int = Field(15, ge=0)
    ngrams: int = Field(MOST_NGRAMS, ge=1, le=MOST_NGRAMS)
    rare: int = Field(5, ge=1)
    sample_tokens: int = Field(20_000_000, ge=1)
    vocabulary: int = Field(20_000, ge=1)
    context: Context | None = Context()
    clusters: Clusters | None = Clusters()
    cache: CacheConfig = CacheConfig()
    mode: Mode = "mmap"

    def check(self, context: StageContext) -> None:
        """Missing or damaged shards, shards of another tokenizer or without words."""
        locations = [self.tokenizer, *self.corpora.values()]
        for location in locations:
            if context.is_made(location):
                shards.find_shards(location, context.locate)
        if all(map(context.is_made, locations)):
            self._open(context)

    def run(self, context: StageContext) -> str:
        """Measure; the fingerprint is the digest of ``results.json``."""
        from data_pipeline.analysis.measure import measure
        from data_pipeline.tokenization import load_backend
        from data_pipeline.whole_file import write_whole

        readers = self._open(context, verify="digests")
        backend = load_backend(context.locate(self.tokenizer))
        results = measure(self, readers, backend, context.seed)
        content = (json.dumps(results, indent=1, ensure_ascii=False) + "\n").encode()
        write_whole(context.folder / RESULTS, content)
        return hashlib.sha256(content).hexdigest()

    def _open(self, context: StageContext, verify: Verify = "sizes") -> dict[str, "Reader"]:
        from data_pipeline.analysis.stretches import Reader
        from data_pipeline.tokenization import tokenizer_sha256

        digest = tokenizer_sha256(context.locate(self.tokenizer))
        opened = {
            name: shards.ShardedDataset.open(
                shards.find_shards(location, context.locate),
                verify,
                mode=self.mode,
                cache=self.cache,
            )
            for name, location in self.corpora.items()
        }
        for data in opened.values():
            data.require_tokenizer(digest, self.tokenizer)
        return {
            name: Reader.limited(data, self.sample_tokens, context.seed)
            for name, data in opened.items()
        }
