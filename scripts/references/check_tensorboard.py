#!/usr/bin/env python3
"""What TensorBoard's own reader finds in a folder of event files, as JSON. Needs tensorboard>=2.14.

    python3 scripts/references/check_tensorboard.py [--check] RUN

With --check the content is not printed but compared with the rest of a finished run folder: the scalars are those of
metrics.jsonl, no more and no fewer; there are histograms of all weights and gradients that the checkpoint's parameters ask
for, of as many values, at the steps that the recipe asks for; there are images at every evaluation. Exit status 1 if not.

Everything is read as TensorBoard's server reads it: files in the order of their names, checksums checked, what a restarted run has
written again purged. Each tag has its values by step: scalars as numbers, histograms as [left, right, count] of their buckets, images as
[width, height] and the CRC-32 of each PNG, texts as they are.
"""

import argparse
import json
import logging
import struct
import sys
import zlib
from math import prod
from pathlib import Path

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


def read(run):
    """The content of the event files: {kind: {tag: {step: value}}}."""
    # Says what is purged, which is part of the answer but not of the JSON.
    logging.basicConfig(level=logging.WARNING)
    reader = plugin_event_accumulator.EventAccumulator(str(run), size_guidance={"tensors": 0})
    reader.Reload()
    content = {kind: {} for kind in KINDS}
    for tag in reader.Tags()["tensors"]:
        kind = reader.SummaryMetadata(tag).plugin_data.plugin_name
        events = reader.Tensors(tag)
        content[kind][tag] = {
            event.step: KINDS[kind](tensor_util.make_ndarray(event.tensor_proto)) for event in events
        }
    return content


def check(run, content):
    """Compares what TensorBoard reads with what else the run folder holds."""
    recipe = json.loads((run / "recipe.json").read_text())
    scalars = {}
    evaluated = {"validation": [], "test": []}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        split, step = record.pop("split"), record.pop("step")
        record.pop("epoch")
        if split in evaluated:
            evaluated[split].append(step)
        for name, value in record.items():
            if value is not None:
                scalars.setdefault(f"{name}/{split}", {})[step] = struct.unpack("f", struct.pack("f", value))[0]
    finite = {
        tag: {step: value for step, value in values.items() if value == value} for tag, values in content["scalars"].items()
    }
    require({tag: values for tag, values in finite.items() if values} == scalars, "the scalars are not those of metrics.jsonl")

    every, last = recipe["training"]["histograms_every"], max(step for values in scalars.values() for step in values)
    steps = list(range(every, last + 1, every)) if every else []
    sizes = tensor_sizes(run / "checkpoints" / "last" / "model.safetensors")
    found = {tag.partition("/")[2] for tag in content["histograms"]}
    require(not steps or found, "there are no histograms")
    require(found <= sizes.keys(), f"there are histograms of unknown tensors: {sorted(found - sizes.keys())}")
    for name in found:
        for kind in ("weights", "gradients"):
            values = content["histograms"].get(f"{kind}/{name}", {})
            require(sorted(values) == steps, f"{kind}/{name} has histograms at {sorted(values)}, not at {steps}")
            for step, buckets in values.items():
                counted = sum(count for _, _, count in buckets)
                require(counted == sizes[name], f"{kind}/{name}, step {step}: {counted} of {sizes[name]} values")

    wanted = recipe["training"]["examples"]
    for split, at in evaluated.items():
        values = content["images"].get(f"examples/{split}", {})
        require(sorted(values) == (sorted(at) if wanted else []), f"examples/{split} has images at {sorted(values)}, not at {at}")
        require(all(len(one["crc32"]) <= wanted for one in values.values()), f"examples/{split} has too many images")
        table = content["text"].get(f"predictions/{split}", {})
        require(table.keys() == values.keys(), f"predictions/{split} are not there where the images are")
    points = sum(map(len, scalars.values()))
    pictures = sum(len(one["crc32"]) for values in content["images"].values() for one in values.values())
    print(
        f"{len(scalars)} scalars with {points} points, {len(content['histograms'])} histograms at {len(steps)} steps, "
        f"{pictures} images: as the run folder has them"
    )


def tensor_sizes(path):
    """Numbers of values by name, from the header of a safetensors file."""
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    return {name: prod(about["shape"]) for name, about in header.items() if name != "__metadata__"}


def require(condition, otherwise):
    if not condition:
        sys.exit(f"check_tensorboard.py: {otherwise}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--check", action="store_true", help="compare with the run folder instead of printing")
    options = parser.parse_args()
    content = read(options.run)
    if options.check:
        return check(options.run, content)
    json.dump(content, sys.stdout, indent=1, sort_keys=True)
    print()


if __name__ == "__main__":
    main()
