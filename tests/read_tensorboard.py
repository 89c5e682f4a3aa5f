"""Reads the runs under a folder with TensorBoard's own reader and prints them as one JSON object:

{run: {"scalars": {tag: [[step, value], ...]}, "hparams": {name: value}, "ended": bool, "texts": {tag: [[step, text]]},
"images": {tag: [[step, width, height, pixels in RGB]]}, "histograms": {tag: [[step, min, max, num, sum, sum of
squares, limits, counts]]}}}

With --torch, torch.utils.tensorboard first writes a run named `torch` there, with images, a text and histograms.

`cargo amp test` installs the packages into .amp/python; tests/tests/tensorboard.rs runs this program.
"""

import io
import json
import pathlib
import sys

from PIL import Image
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData


def plugin_data(accumulator, tag):
    if tag not in accumulator.Tags()["tensors"]:
        return HParamsPluginData()
    content = accumulator.SummaryMetadata(tag).plugin_data.content
    return HParamsPluginData.FromString(content)


def plain(value):
    return getattr(value, value.WhichOneof("kind"))


def image(event):
    image = Image.open(io.BytesIO(event.encoded_image_string))
    assert image.size == (event.width, event.height)
    # torch writes gray images in three channels.
    return [event.step, event.width, event.height, image.convert("RGB").tobytes().hex()]


def histogram(event):
    value = event.histogram_value
    figures = [value.min, value.max, value.num, value.sum, value.sum_squares]
    return [event.step, *figures, list(value.bucket_limit), list(value.bucket)]


def texts(accumulator):
    for tag in accumulator.Tags()["tensors"]:
        if accumulator.SummaryMetadata(tag).plugin_data.plugin_name == "text":
            events = accumulator.Tensors(tag)
            yield tag, [[event.step, event.tensor_proto.string_val[0].decode()] for event in events]


def read(accumulator):
    start = plugin_data(accumulator, "_hparams_/session_start_info").session_start_info
    end = plugin_data(accumulator, "_hparams_/session_end_info").session_end_info
    tags = accumulator.Tags()
    return {
        "scalars": {
            tag: [[event.step, event.value] for event in accumulator.Scalars(tag)]
            for tag in tags["scalars"]
        },
        "hparams": {name: plain(value) for name, value in start.hparams.items()},
        # In TensorBoard's api.proto, 1 is STATUS_SUCCESS.
        "ended": end.status == 1,
        "images": {tag: [image(event) for event in accumulator.Images(tag)] for tag in tags["images"]},
        "texts": dict(texts(accumulator)),
        "histograms": {
            tag: [histogram(event) for event in accumulator.Histograms(tag)] for tag in tags["histograms"]
        },
    }


def write_with_torch(folder):
    import torch
    from torch.utils.tensorboard import SummaryWriter

    def values(count):
        return (torch.arange(count) * 37) % 101

    with SummaryWriter(str(folder / "torch")) as writer:
        writer.add_image("colors", values(105).reshape(3, 5, 7) / 100, 3)
        writer.add_image("gray", values(12).reshape(1, 3, 4).to(torch.uint8), 3)
        writer.add_text("words", "**bold** and *thin*", 4)
        writer.add_histogram("values", (values(400) - 50) / 8, 5)
        writer.add_histogram("positive", values(50).double() + 1, 5)


folder = pathlib.Path(sys.argv[1])
if "--torch" in sys.argv:
    write_with_torch(folder)
# With the size 0, the reader keeps every value. With a size above 0, it keeps a random sample of this size.
sizes = {"scalars": 0, "images": 0, "histograms": 0, "tensors": 0}
runs = EventMultiplexer(size_guidance=sizes).AddRunsFromDirectory(str(folder))
runs.Reload()
print(json.dumps({name: read(runs.GetAccumulator(name)) for name in runs.Runs()}))
