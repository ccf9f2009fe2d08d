"""MNIST's files as tensors, and the suite's way of parting and ordering samples, in PyTorch's own terms."""

import gzip
import sys
from pathlib import Path

import torch


def read_part(folder, part):
    """The images `[n, 1, 28, 28]` (bytes) and labels `[n]` of `train` or `t10k`, from files that may be gzipped."""
    images = read_idx(folder, f"{part}-images-idx3-ubyte", 3)
    labels = read_idx(folder, f"{part}-labels-idx1-ubyte", 1)
    return images.unsqueeze(1), labels.long()


def read_idx(folder, name, dimensions):
    """An IDX file of bytes as a tensor."""
    plain, zipped = Path(folder) / name, Path(folder) / f"{name}.gz"
    if plain.is_file():
        content = plain.read_bytes()
    elif zipped.is_file():
        content = gzip.decompress(zipped.read_bytes())
    else:
        sys.exit(f"{folder} has neither {name} nor {name}.gz")
    # Two zeros, 8 for bytes, the number of dimensions; then each size in four bytes.
    if content[:4] != bytes([0, 0, 8, dimensions]):
        sys.exit(f"{folder}/{name} is no IDX file of {dimensions} dimensions of bytes")
    start = 4 + 4 * dimensions
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    return torch.frombuffer(bytearray(content[start:]), dtype=torch.uint8).view(shape)


def permutation(count, seed):
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def hold_out(count, fraction, seed):
    """The samples to train on and the seeded share for validation, both in ascending order."""
    # Halves are rounded up, unlike Python's round.
    held_out = int(count * fraction + 0.5)
    order = permutation(count, seed)
    return order[held_out:].sort().values, order[:held_out].sort().values
