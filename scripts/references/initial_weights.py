#!/usr/bin/env python3
"""Initial weights of image classifiers under torch.manual_seed. Needs torch==2.13.0.

    python3 scripts/references/initial_weights.py > tests/fixtures/initial_weights.json

For each parameter: its shape, its first values as raw bits of float32, the CRC-32 of all its values (little-endian, in row-major
order), and their sum, which says in a readable form how far off a wrong tensor is.
"""

import json
import zlib

import torch
from torch import nn


class LeNet5(nn.Module):
    def __init__(self, side):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * ((side // 2 - 4) // 2) ** 2, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)


def mlp(side):
    return nn.Sequential(nn.Linear(side * side, 256), nn.ReLU(), nn.Linear(256, 10))


def describe(tensor):
    values = tensor.detach().contiguous().flatten()
    return {
        "shape": list(tensor.shape),
        "first_bits": [value & 0xFFFFFFFF for value in values[:4].view(torch.int32).tolist()],
        "crc32": zlib.crc32(values.numpy().astype("<f4").tobytes()),
        "sum": values.double().sum().item(),
    }


cases = []
for name, build in [("lenet5", LeNet5), ("mlp", mlp)]:
    for seed, side in [(0, 28), (11, 14)]:
        torch.manual_seed(seed)
        model = build(side)
        parameters = {key: describe(value) for key, value in model.state_dict().items()}
        cases.append({"model": name, "seed": seed, "image_size": [side, side], "parameters": parameters})
print(json.dumps({"torch": torch.__version__.split("+")[0], "cases": cases}, indent=1))
