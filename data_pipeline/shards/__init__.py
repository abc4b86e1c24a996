"""Token shards: Megatron's MMIDIDX files with annotations, under one verified manifest."""

from data_pipeline.shards.layout import token_dtype
from data_pipeline.shards.manifest import Manifest, ShardRecord, TokenizerRecord
from data_pipeline.shards.read import Shard, ShardedDataset, Verify, describe
from data_pipeline.shards.write import ShardWriter

__all__ = [
    "Manifest",
    "Shard",
    "ShardRecord",
    "ShardWriter",
    "ShardedDataset",
    "TokenizerRecord",
    "Verify",
    "describe",
    "token_dtype",
]
