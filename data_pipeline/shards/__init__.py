"""Token shards: Megatron's MMIDIDX files with annotations, under one verified manifest."""

from data_pipeline.shards.cache import CacheConfig
from data_pipeline.shards.layout import token_dtype
from data_pipeline.shards.manifest import Manifest, ShardRecord, TokenizerRecord
from data_pipeline.shards.opened import Mode
from data_pipeline.shards.read import Shard, ShardedDataset, Verify, describe, find_shards
from data_pipeline.shards.write import ShardWriter

__all__ = [
    "CacheConfig",
    "Manifest",
    "Mode",
    "Shard",
    "ShardRecord",
    "ShardWriter",
    "ShardedDataset",
    "TokenizerRecord",
    "Verify",
    "describe",
    "find_shards",
    "token_dtype",
]
