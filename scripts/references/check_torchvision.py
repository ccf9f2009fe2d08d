#!/usr/bin/env python3
"""Checks that torchvision's ResNets take the suite's weights as they are and compute the same from them.

    check_torchvision.py CNN [MODEL...]

CNN is the suite's program; MODEL one of resnet18, resnet34, resnet50 (default: all). Each is trained for three steps on
random pictures, so that weights and running statistics are nobody's initial values, and exported. The safetensors file must
go into torchvision's network by load_state_dict(strict=True); then that network must agree with the exported TorchScript
module on random input at several sizes of batch and image, and with `cnn predict` on a picture file.

Exit status: 0 all holds, 1 something does not.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torchvision.models
from PIL import Image
from safetensors.torch import load_file

MODELS = ("resnet18", "resnet34", "resnet50")
CLASSES, SIDE = 3, 64
MEAN, STD = 0.4, 0.25
# Of the largest output. Both sides run libtorch's kernels, but not in the same order of additions everywhere.
TOLERANCE = 1e-5


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cnn", type=Path, metavar="CNN")
    parser.add_argument("models", nargs="*", metavar="MODEL")
    options = parser.parse_args()
    for name in options.models:
        if name not in MODELS:
            parser.error(f"there is no model {name}: choose of {', '.join(MODELS)}")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        pictures = write_pictures(folder / "data")
        for name in options.models or MODELS:
            check(name, options.cnn, folder, pictures)


def write_pictures(folder):
    random = np.random.default_rng(0)
    paths = []
    for label in range(CLASSES):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(8):
            paths.append(folder / f"class{label}" / f"{number}.png")
            Image.fromarray(random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(paths[-1])
    return paths


def check(name, cnn, folder, pictures):
    run, module_file, weights_file = (folder / f"{name}{ending}" for ending in ("", ".pt", ".safetensors"))

    def call(*arguments):
        done = subprocess.run([cnn, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
        require(done.returncode == 0, f"`cnn {' '.join(map(str, arguments))}` failed")
        return done.stdout

    settings = (f"data.mean=[{MEAN}]", f"data.std=[{STD}]", f"data.image_size=[{SIDE},{SIDE}]", "training.optimizer.lr=0.001")
    arguments = [word for setting in settings for word in ("--set", setting)]
    shape = ["--batch-size", 8, "--steps", 3, "--val-fraction", 0]
    call("train", "--quiet", "--recipe", name, "--data", folder / "data", "--out", run, *shape, *arguments)
    call("export", run, "--format", "torchscript", "--out", module_file)
    call("export", run, "--format", "safetensors", "--out", weights_file)

    network = getattr(torchvision.models, name)(weights=None, num_classes=CLASSES)
    network.load_state_dict(load_file(weights_file), strict=True)
    network.eval()
    require(network.bn1.num_batches_tracked.item() == 3, "num_batches_tracked is not the number of steps")
    module = torch.jit.load(module_file)
    torch.manual_seed(0)
    worst = 0.0
    for batch, side in ((1, SIDE), (5, SIDE), (2, 96)):
        images = torch.randn(batch, 3, side, side)
        with torch.inference_mode():
            expected = network(images)
            worst = max(worst, ((module(images) - expected).abs().max() / expected.abs().max()).item())
    require(worst <= TOLERANCE, f"{name}: the module's outputs are {worst:.1e} apart")

    pixels = torch.from_numpy(np.array(Image.open(pictures[0]))).permute(2, 0, 1)[None].float()
    with torch.inference_mode():
        expected = network((pixels / 255 - MEAN) / STD).softmax(-1)[0].tolist()
    found = json.loads(call("predict", run, pictures[0], "--format", "jsonl", "--top-k", CLASSES))
    found = {one["label"]: one["probability"] for one in found["top"]}
    predicted = max(abs(found[f"class{label}"] - expected[label]) for label in range(CLASSES))
    require(predicted <= TOLERANCE, f"{name}: predict's probabilities are {predicted:.1e} apart")
    print(
        f"{name}: {len(network.state_dict())} tensors loaded strictly; outputs at most {worst:.1e} apart (relative), "
        f"predict's probabilities {predicted:.1e} (allowed: {TOLERANCE:g})",
        flush=True,
    )


def require(condition, otherwise):
    if not condition:
        sys.exit(f"check_torchvision.py: {otherwise}")


if __name__ == "__main__":
    main()
