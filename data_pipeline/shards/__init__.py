"""Token shards: Megatron's MMIDIDX files with annotations, under one verified manifest."""

from typing import TYPE_CHECKING

from configs.deferred import deferred
from data_pipeline.shards.cache import CacheConfig
from data_pipeline.shards.choices import Mode, Verify
from data_pipeline.shards.manifest import Manifest, ShardRecord, TokenizerRecord

if TYPE_CHECKING:
    from data_pipeline.shards.layout import token_dtype
    from data_pipeline.shards.read import Shard, ShardedDataset, describe, find_shards
    from data_pipeline.shards.write import ShardWriter

__getattr__ = deferred(
    __name__,
    {
        "layout": ("token_dtype",),
        "read": ("Shard", "ShardedDataset", "describe", "find_shards"),
        "write": ("ShardWriter",),
    },
)

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
