"""What all stages have together: the columns of HParams."""

from pathlib import Path
from typing import Any

from engine.board.overview import write_overview

SETTINGS: list[dict[str, Any]] = [
    {"lr": 1e-3, "penalties": "none", "seed": 3, "tied": True, "odd": 1},
    {"lr": 2e-3, "penalties": "ewc", "seed": 3, "tied": True, "odd": "word"},
]
TAGS = ["1 learning/loss", "2 forgetting/change/general", "4 health/gradient norm"]


def written(folder: Path) -> tuple[Any, set[str]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    events = EventAccumulator(str(folder))
    events.Reload()
    content = events.SummaryMetadata(metadata.EXPERIMENT_TAG).plugin_data.content
    return metadata.parse_experiment_plugin_data(content), set(events.Tags()["tensors"])


def test_every_setting_is_a_column_and_results_are_the_metrics(tmp_path: Path) -> None:
    write_overview(tmp_path / "(all)", SETTINGS, TAGS)
    columns, tags = written(tmp_path / "(all)")
    infos = {info.name: info for info in columns.hparam_infos}
    assert set(infos) == {"lr", "penalties", "seed", "tied", "odd"}
    assert [name for name, info in infos.items() if info.differs] == ["lr", "odd", "penalties"]
    assert infos["lr"].domain_interval.max_value == 2e-3
    assert list(infos["odd"].domain_discrete) == ["1", "word"]
    assert [info.name.tag for info in columns.metric_infos] == TAGS[:2]
    assert "custom_scalars__config__" in tags


def test_it_replaces_what_was_there(tmp_path: Path) -> None:
    write_overview(tmp_path / "(all)", SETTINGS, TAGS)
    write_overview(tmp_path / "(all)", SETTINGS[:1], [])
    columns, tags = written(tmp_path / "(all)")
    assert not any(info.differs for info in columns.hparam_infos)
    assert "custom_scalars__config__" not in tags
