#!/usr/bin/env python3
"""Checks that Python takes the suite's exports of a LeNet-5 as they are.

    check_export.py RUN TORCHSCRIPT_FILE SAFETENSORS_FILE

Both files are exports of the same checkpoint of RUN. The safetensors file must go into a PyTorch LeNet-5 by
load_state_dict(strict=True); the TorchScript file must load with torch.jit.load, name its parameters as PyTorch does,
agree with that network to 1e-5 at batch sizes it was not traced with, be trainable (a step of SGD, equal to the
network's own), and be saved again.

Exit status: 0 all holds, 1 something does not.
"""

import argparse
import io
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

import run_folder

TOLERANCE = 1e-5
BATCH_SIZES = (1, 3, 64, 257)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("torchscript", type=Path, metavar="TORCHSCRIPT_FILE")
    parser.add_argument("safetensors", type=Path, metavar="SAFETENSORS_FILE")
    options = parser.parse_args()

    recipe = run_folder.read_recipe(options.run)
    network = run_folder.build(recipe)
    network.load_state_dict(load_file(options.safetensors), strict=True)
    network.eval()
    module = torch.jit.load(options.torchscript)

    expected = dict(network.named_parameters())
    found = dict(module.named_parameters())
    require(found.keys() == expected.keys(), f"the module's parameters are named {sorted(found)}")
    for name, tensor in found.items():
        require(torch.equal(tensor, expected[name]), f"{name} differs between the two exports")
    print(f"parameters: {', '.join(found)}")

    torch.manual_seed(0)
    shape = (recipe["model"]["in_channels"], *recipe["model"]["image_size"])
    for size in BATCH_SIZES:
        images = torch.randn(size, *shape)
        with torch.inference_mode():
            difference = (module(images) - network(images)).abs().max().item()
        require(difference <= TOLERANCE, f"batch {size}: the outputs are {difference:.1e} apart")
        print(f"batch {size}: outputs at most {difference:.1e} apart (allowed: {TOLERANCE:g})")

    images, labels = torch.randn(32, *shape), torch.randint(recipe["model"]["num_classes"], (32,))
    before, after = fine_tune(module, images, labels)
    fine_tune(network, images, labels)
    require(after < before, f"a step of SGD on one batch took its loss from {before:.4f} to {after:.4f}")
    differences = [(found[name] - tensor).abs().max().item() for name, tensor in expected.items()]
    require(max(differences) <= TOLERANCE, f"after the step the parameters are {max(differences):.1e} apart")
    print(f"a step of SGD: loss {before:.4f} to {after:.4f}, parameters at most {max(differences):.1e} apart")

    file = io.BytesIO()
    torch.jit.save(module, file)
    file.seek(0)
    again = torch.jit.load(file)
    require(torch.equal(again(images), module(images)), "saved and loaded again the module computes something else")
    print("saved and loaded again: equal")


def fine_tune(network, images, labels):
    """A step of SGD in evaluation mode; the loss of the batch before and after."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    before = torch.nn.functional.cross_entropy(network(images), labels)
    before.backward()
    for name, parameter in network.named_parameters():
        require(parameter.grad is not None and parameter.grad.any(), f"{name} has no gradient")
    optimizer.step()
    with torch.no_grad():
        return before.item(), torch.nn.functional.cross_entropy(network(images), labels).item()


def require(condition, otherwise):
    if not condition:
        sys.exit(f"check_export.py: {otherwise}")


if __name__ == "__main__":
    main()
