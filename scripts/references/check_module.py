#!/usr/bin/env python3
"""Judges and times a TorchScript module in Python. Needs torch and pillow.

    python3 scripts/references/check_module.py accuracy MODULE FOLDER SIDE     # FOLDER/CLASS/IMAGE, values scaled to -1..1
    python3 scripts/references/check_module.py time MODULE SIDE BATCH,… THREADS
    python3 scripts/references/check_module.py package OUT                     # compiles a small network into OUT/net.pt2
"""
import pathlib
import statistics
import sys
import time

import torch


def accuracy(module, folder, side):
    import numpy
    from PIL import Image

    network = torch.jit.load(module).eval()
    right = count = 0
    for number, kind in enumerate(sorted(path for path in pathlib.Path(folder).iterdir() if path.is_dir())):
        files = sorted(kind.iterdir())
        pixels = [numpy.asarray(Image.open(file).convert("RGB").resize((side, side), Image.BILINEAR)) for file in files]
        images = torch.from_numpy(numpy.stack(pixels)).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            scores = network((images - 0.5) / 0.5)
        scores = scores[0] if isinstance(scores, tuple) else scores
        right += (scores.argmax(1) == number).sum().item()
        count += len(files)
    print(right / count)


def timing(module, side, batches, threads):
    torch.set_num_threads(int(threads))
    network = torch.jit.load(module).eval()
    for batch in map(int, batches.split(",")):
        images = torch.randn(batch, 3, int(side), int(side))
        seconds = []
        with torch.inference_mode():
            for call in range(35):
                began = time.perf_counter()
                network(images)
                if call >= 5:
                    seconds.append(time.perf_counter() - began)
        print(f"batch {batch}: p50 {statistics.median(seconds) * 1e3:.3f} ms")


def package(out):
    from safetensors.torch import save_file

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = torch.nn.Conv2d(3, 8, 3, padding=1)
            self.linear = torch.nn.Linear(8, 10)

        def forward(self, images):
            features = torch.relu(self.convolution(images)).mean((2, 3))
            return self.linear(features), features

    torch.manual_seed(0)
    network, images = Network().eval(), torch.randn(4, 3, 16, 16)
    shapes = {"images": {0: torch.export.Dim("batch", min=1, max=64)}}
    exported = torch.export.export(network, (images,), dynamic_shapes=shapes)
    torch._inductor.aoti_compile_and_package(exported, package_path=f"{out}/net.pt2")
    with torch.no_grad():
        scores, features = network(images)
    save_file({"x": images, "output.0": scores, "output.1": features}, f"{out}/net.safetensors")


{"accuracy": lambda module, folder, side: accuracy(module, folder, int(side)), "time": timing, "package": package}[sys.argv[1]](*sys.argv[2:])
