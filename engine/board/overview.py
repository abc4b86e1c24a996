"""What TensorBoard is told of several stages together: columns of HParams, and charts in order."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.board.layout import layout, summary_of
from engine.board.tags import results

if TYPE_CHECKING:
    from tensorboard.plugins.hparams.api_pb2 import HParamInfo


def write_overview(
    folder: Path, settings: Sequence[Mapping[str, Any]], tags: Sequence[str]
) -> None:
    """An event file with that alone, in place of an earlier one.

    Without it TensorBoard would make a column of every curve, and order the charts by the stage
    that has them first.

    Args:
        folder: for the file; it is emptied.
        settings: of each session, name -> value.
        tags: of all sessions' numbers.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata
    from tensorboard.plugins.hparams.api_pb2 import Experiment, MetricInfo, MetricName
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    names = sorted({name for each in settings for name in each})
    columns = Experiment(
        hparam_infos=[_column(name, [e[name] for e in settings if name in e]) for name in names],
        metric_infos=[
            MetricInfo(name=MetricName(tag=tag), display_name=tag.split("/", 1)[1])
            for tag in results(tags)
        ],
    )
    about = metadata.create_summary_metadata(HParamsPluginData(experiment=columns))
    summary = Summary()
    summary.value.add(tag=metadata.EXPERIMENT_TAG, metadata=about, tensor=metadata.NULL_TENSOR)
    if charts := layout(tags):
        summary.value.append(summary_of(charts))
    shutil.rmtree(folder, ignore_errors=True)
    writer = EventFileWriter(str(folder))
    writer.add_event(Event(step=0, summary=summary))
    writer.close()


def _column(name: str, values: Sequence[Any]) -> "HParamInfo":
    """A setting with the values it has, between which the page offers to choose."""
    from tensorboard.plugins.hparams import api_pb2

    kinds = {type(value) for value in values}
    column = api_pb2.HParamInfo(name=name, differs=len(set(map(json.dumps, values))) > 1)
    if kinds == {bool}:
        column.type = api_pb2.DATA_TYPE_BOOL
        column.domain_discrete.extend(sorted(set(values)))
    elif kinds <= {int, float}:
        column.type = api_pb2.DATA_TYPE_FLOAT64
        column.domain_interval.min_value = min(values)
        column.domain_interval.max_value = max(values)
    else:
        column.type = api_pb2.DATA_TYPE_STRING
        column.domain_discrete.extend(sorted({str(value) for value in values}))
    return column
