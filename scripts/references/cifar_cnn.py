#!/usr/bin/env python3
"""The recipes keras-cnn-cifar10, torch-cnn-cifar10 and resnet20-cifar10 in PyTorch, on the same files.

Two things are compared with the suite:

  losses   The first losses from the same initial weights (torch.manual_seed(SEED) draws them in the same order as the suite) on the batches
           that `cnn batches` wrote, augmented pixels included, against `metrics.jsonl` of a run with training.log_every=1.
  train    The whole training with this framework's own order and augmentation draws; prints the test accuracy after every epoch.

The data are the images of a tar.gz with train/CLASS/*.jpg and test/CLASS/*.jpg, classes in order of their names.

    cifar_cnn.py losses keras-cnn BATCHES.safetensors METRICS.jsonl [--seed 0]
    cifar_cnn.py train resnet20 cifar10-jpeg.tar.gz --epochs 15 --milestones 10 13
"""
import argparse
import io
import json
import tarfile
import time

import numpy as np
import torch
import torch.nn.functional as F

import run_folder  # noqa: F401, which says where the networks are
from networks import KerasCnn, ResNet20, TorchCnn

# network, optimizer, batch size, mean, std, whether images are varied
RECIPES = {
    "keras-cnn": (KerasCnn, lambda p: torch.optim.Adam(p, lr=1e-3), 64, [0.0], [1.0], False),
    "torch-cnn": (TorchCnn, lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9), 32, [0.5], [0.5], False),
    "resnet20": (ResNet20, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-4), 128,
                 [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616], True),
}


def read_archive(path):
    """{part: (uint8 [N, 3, 32, 32], int64 [N])}, in order of the names."""
    from PIL import Image

    with tarfile.open(path) as archive:
        names = sorted(name for name in archive.getnames() if name.endswith(".jpg"))
        classes = sorted({name.split("/")[1] for name in names})
        parts = {"train": ([], []), "test": ([], [])}
        for name in names:
            part, label, _ = name.split("/")
            image = Image.open(io.BytesIO(archive.extractfile(name).read())).convert("RGB")
            parts[part][0].append(np.asarray(image).transpose(2, 0, 1))
            parts[part][1].append(classes.index(label))
    return {part: (torch.from_numpy(np.stack(x)), torch.tensor(y)) for part, (x, y) in parts.items()}


def losses(arguments):
    from safetensors.torch import load_file

    build, optimizer, *_ = RECIPES[arguments.recipe]
    torch.manual_seed(arguments.seed)
    network = build()
    steps = optimizer(network.parameters())
    batches = load_file(arguments.batches)
    with open(arguments.metrics) as lines:
        records = [json.loads(line) for line in lines]
    ours = {record["step"]: record["loss"] for record in records if record["split"] == "train"}
    worst = 0.0
    for number in range(len(batches) // 2):
        loss = F.cross_entropy(network(batches[f"images.{number}"]), batches[f"labels.{number}"])
        steps.zero_grad()
        loss.backward()
        steps.step()
        difference = abs(loss.item() - ours[number + 1])
        worst = max(worst, difference)
        print(f"step {number + 1:3}  PyTorch {loss.item():.6f}  suite {ours[number + 1]:.6f}  difference {difference:.1e}")
    print(f"largest difference {worst:.1e}: {'agrees' if worst <= 1e-4 else 'DIFFERS'} (tolerance 1e-4)")
    raise SystemExit(worst > 1e-4)


def vary(images, generator):
    """RandomCrop(32, padding=4) and RandomHorizontalFlip for a whole batch."""
    count = len(images)
    padded = F.pad(images, (4, 4, 4, 4))
    down, right = torch.randint(0, 9, (2, count), generator=generator)
    rows = (down[:, None] + torch.arange(32)).view(-1, 1, 32, 1)
    columns = (right[:, None] + torch.arange(32)).view(-1, 1, 1, 32)
    cropped = padded[torch.arange(count).view(-1, 1, 1, 1), torch.arange(3).view(1, -1, 1, 1), rows, columns]
    mirrored = torch.rand(count, generator=generator) < 0.5
    return torch.where(mirrored.view(-1, 1, 1, 1), cropped.flip(3), cropped)


def train(arguments):
    build, optimizer, batch_size, mean, std, varied = RECIPES[arguments.recipe]
    torch.set_num_threads(arguments.threads)
    data = read_archive(arguments.archive)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))
    torch.manual_seed(arguments.seed)
    network = build()
    steps = optimizer(network.parameters())
    images, labels = data["train"]
    generator = torch.Generator().manual_seed(arguments.seed)
    schedule = torch.optim.lr_scheduler.MultiStepLR(steps, arguments.milestones, 0.1)
    began = time.time()
    for epoch in range(arguments.epochs):
        network.train()
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(arguments.seed + epoch))
        for batch in order.split(batch_size):
            pixels = vary(images[batch], generator) if varied else images[batch]
            loss = F.cross_entropy(network((pixels.float() / 255 - mean) / std), labels[batch])
            steps.zero_grad()
            loss.backward()
            steps.step()
        schedule.step()
        network.eval()
        right = 0
        with torch.inference_mode():
            for pixels, target in zip(data["test"][0].split(500), data["test"][1].split(500)):
                right += (network((pixels.float() / 255 - mean) / std).argmax(1) == target).sum().item()
        accuracy = right / len(data["test"][1])
        print(json.dumps({"epoch": epoch + 1, "test_accuracy": accuracy, "seconds": round(time.time() - began, 1)}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    verbs = parser.add_subparsers(required=True)
    verb = verbs.add_parser("losses")
    verb.add_argument("recipe", choices=RECIPES)
    verb.add_argument("batches")
    verb.add_argument("metrics")
    verb.set_defaults(run=losses)
    verb = verbs.add_parser("train")
    verb.add_argument("recipe", choices=RECIPES)
    verb.add_argument("archive")
    verb.add_argument("--epochs", type=int, default=10)
    verb.add_argument("--milestones", type=int, nargs="*", default=[], help="epochs after which the rate is divided by 10")
    verb.set_defaults(run=train)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
