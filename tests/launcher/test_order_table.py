"""The table of an order, for a person."""

from launcher.inspection import format_rows

ROW = {
    "step": 3,
    "rank": 1,
    "index": 25,
    "source": "domain",
    "epoch": 0,
    "sample": 7,
    "shard": 2,
    "documents": [{"sequence": 4, "start": 10, "length": 5}],
}


def test_rows_tell_their_shard_and_their_documents() -> None:
    head, row = format_rows([ROW])
    assert head.split()[-3:] == ["sample", "shard", "documents"]
    assert row.split() == ["3", "1", "25", "domain", "0", "7", "2", "4[10:15]"]


def test_pairs_tell_their_label() -> None:
    head, row = format_rows([ROW | {"label": 0}])
    assert head.split()[-2:] == ["label", "documents"]
    assert row.split() == ["3", "1", "25", "domain", "0", "7", "2", "0", "4[10:15]"]
    assert len(head.split("documents")[0]) == len(row.split("4[")[0])
