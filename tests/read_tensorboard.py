"""Reads the runs under a folder with TensorBoard's own reader and prints them as one JSON object:

{run: {"scalars": {tag: [[step, value], ...]}, "hparams": {name: value}, "ended": bool}}

`cargo amp test` installs the packages into .amp/python; tests/tests/tensorboard.rs runs this.
"""

import json
import pathlib
import sys

from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData


def plugin_data(accumulator, tag):
    content = accumulator.SummaryMetadata(tag).plugin_data.content
    return HParamsPluginData.FromString(content)


def plain(value):
    return getattr(value, value.WhichOneof("kind"))


def read(accumulator):
    start = plugin_data(accumulator, "_hparams_/session_start_info").session_start_info
    end = plugin_data(accumulator, "_hparams_/session_end_info").session_end_info
    return {
        "scalars": {
            tag: [[event.step, event.value] for event in accumulator.Scalars(tag)]
            for tag in accumulator.Tags()["scalars"]
        },
        "hparams": {name: plain(value) for name, value in start.hparams.items()},
        # api.proto: STATUS_SUCCESS
        "ended": end.status == 1,
    }


folder = pathlib.Path(sys.argv[1])
# 0: every value, not a sample.
runs = EventMultiplexer(size_guidance={"scalars": 0}).AddRunsFromDirectory(str(folder))
runs.Reload()
print(json.dumps({name: read(runs.GetAccumulator(name)) for name in runs.Runs()}))
