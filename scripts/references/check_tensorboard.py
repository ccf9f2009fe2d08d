#!/usr/bin/env python3
"""What TensorBoard's own reader finds in a folder of event files, as JSON. Needs tensorboard>=2.14.

    python3 scripts/references/check_tensorboard.py RUN

Everything is read as TensorBoard's server reads it: files in the order of their names, checksums checked, what a restarted run has
written again purged. Each tag has its values by step: scalars as numbers, histograms as [left, right, count] of their buckets, images as
[width, height] and the CRC-32 of each PNG, texts as they are.
"""

import json
import logging
import struct
import sys
import zlib

from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.util import tensor_util


def scalar(values):
    return float(values)


def histogram(values):
    return [[float(left), float(right), float(count)] for left, right, count in values]


def images(values):
    width, height, *pngs = values.tolist()
    for png in pngs:
        size = struct.unpack(">II", png[16:24])
        if png[:8] != b"\x89PNG\r\n\x1a\n" or size != (int(width), int(height)):
            raise ValueError(f"an image that says to be {width} by {height} is {size}")
    return {"size": [int(width), int(height)], "crc32": [zlib.crc32(png) for png in pngs]}


def text(values):
    return [value.decode() for value in values.reshape(-1).tolist()]


KINDS = {"scalars": scalar, "histograms": histogram, "images": images, "text": text}


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    # Says what is purged, which is part of the answer but not of the JSON.
    logging.basicConfig(level=logging.WARNING)
    reader = plugin_event_accumulator.EventAccumulator(sys.argv[1], size_guidance={"tensors": 0})
    reader.Reload()
    content = {kind: {} for kind in KINDS}
    for tag in reader.Tags()["tensors"]:
        kind = reader.SummaryMetadata(tag).plugin_data.plugin_name
        events = reader.Tensors(tag)
        content[kind][tag] = {
            event.step: KINDS[kind](tensor_util.make_ndarray(event.tensor_proto)) for event in events
        }
    json.dump(content, sys.stdout, indent=1, sort_keys=True)
    print()


if __name__ == "__main__":
    main()
