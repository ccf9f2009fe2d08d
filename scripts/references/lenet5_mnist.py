#!/usr/bin/env python3
"""Trains a run of the suite again in PyTorch, and compares.

    lenet5_mnist.py RUN MNIST_FOLDER [--initial-weights FILE]

RUN is a run folder of `cnn train --recipe lenet5-mnist --set training.log_every=1`: its recipe is followed here with
torch.nn, torch.optim and torch.optim.lr_scheduler, from the same initial weights and with the same batches, so that
every step can be compared. So that two runs do not drift apart by roundings, which training amplifies, pixels and loss are
computed with the suite's own roundings. Initial weights are those that PyTorch itself draws after torch.manual_seed(seed); with
--initial-weights they must equal that file (the weights of a run with `--steps 1 --lr 0`) to the last bit. The batches
of epoch e are those of torch.randperm under a generator seeded with seed + e.

Exit status: 0 the losses of the first 20 steps agree to 1e-4, 1 they do not, 2 the recipe has a setting that is not
known here.
"""

import argparse
import copy
import json
import math
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn import functional as F

import mnist
import run_folder

# Keys of the training section that are followed.
FOLLOWED = {"epochs", "batch_size", "seed", "optimizer", "schedule", "warmup", "label_smoothing", "ema", "metric"}
# Keys that change nothing here, whatever their value.
IRRELEVANT = {
    "device", "threads", "workers", "eval_batch_size", "log_every", "save_every", "keep", "deterministic",
    "channels_last", "early_stop_min_delta",
}  # fmt: skip
# What a key must be to do nothing, where that is not one of null, 0, false and [].
NEUTRAL = {"accumulate": 1, "decay_bias_and_norm": True, "precision": "fp32"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("mnist", type=Path, metavar="MNIST_FOLDER")
    parser.add_argument("--initial-weights", type=Path, metavar="FILE", help="must equal PyTorch's own")
    parser.add_argument("--compared", type=int, default=20, metavar="N", help="steps whose losses are compared")
    parser.add_argument("--tolerance", type=float, default=1e-4, metavar="X", help="largest difference of a loss")
    options = parser.parse_args()

    recipe = run_folder.read_recipe(options.run)
    training = recipe["training"]
    refuse_unknown(training)
    torch.set_num_threads(training["threads"])
    losses = suite_losses(options.run)

    torch.manual_seed(training["seed"])
    network = run_folder.build(recipe)
    if options.initial_weights:
        compare_weights(network, load_file(options.initial_weights))
        print(f"initial weights: PyTorch's after manual_seed({training['seed']}), equal to the suite's to the last bit")

    data = Data(options.mnist, recipe)
    began = time.monotonic()
    best, last, differences = train(network, data, training, losses, options)
    seconds = time.monotonic() - began
    largest = max(differences[: options.compared])
    print(f"losses of the first {options.compared} steps: at most {largest:.1e} apart (allowed: {options.tolerance:g})")
    print(f"losses of all {len(differences)} steps: at most {max(differences):.1e} apart")

    summary = json.loads((options.run / "summary.json").read_text())
    metric = training["metric"]
    print(f"\ntest accuracy after {training['epochs']} epochs{'':21}suite   PyTorch")
    apart = {}
    for name, state in (("best", best), ("last", last)):
        saved = load_file(run_folder.weights_file(options.run, name))
        apart[name] = max((saved[key] - tensor).abs().max().item() for key, tensor in state.items())
        network.load_state_dict(saved)
        # The suite's weights, judged by PyTorch: of the best ones the suite has said its own figure.
        ours = data.evaluate(network, "test")["accuracy"]
        if name == "best" and abs(ours - summary["test"]["accuracy"]) > 1.5 / len(data.labels["test"]):
            sys.exit(f"the suite's test accuracy is {summary['test']['accuracy']}, but PyTorch finds {ours} for its weights")
        network.load_state_dict(state)
        theirs = data.evaluate(network, "test")["accuracy"]
        title = f"best checkpoint by validation {metric}" if name == "best" else "last checkpoint"
        print(f"  {title:45}  {ours:.4f}  {theirs:.4f}")
    print(f"\nweights: best at most {apart['best']:.1e} apart, last at most {apart['last']:.1e}")
    rate = summary["throughput"]["samples_per_second"]
    print(f"whole run: suite {summary['wall_seconds']:.0f} s ({rate:,.0f} samples/s in training), PyTorch {seconds:.0f} s")


def refuse_unknown(training):
    for key, value in training.items():
        if key not in FOLLOWED | IRRELEVANT and value not in (NEUTRAL.get(key), 0, []):
            refuse(f"training.{key} = {json.dumps(value)}")


def refuse(setting):
    print(f"lenet5_mnist.py: {setting} is not known here", file=sys.stderr)
    sys.exit(2)


def suite_losses(run):
    """The training loss of every step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["split"] == "train"]
    if [line["step"] for line in lines] != list(range(1, len(lines) + 1)):
        sys.exit(f"{run} has not logged every step: train it with --set training.log_every=1")
    return [line["loss"] for line in lines]


def compare_weights(network, saved):
    own = network.state_dict()
    if own.keys() != saved.keys():
        sys.exit(f"the suite's weights are named {sorted(saved)}, PyTorch's {sorted(own)}")
    for name, tensor in own.items():
        if not torch.equal(tensor, saved[name]):
            sys.exit(f"the suite's initial {name} differs from PyTorch's")


class Data:
    """The parts of MNIST, normalised."""

    def __init__(self, folder, recipe):
        data = recipe["data"]
        images, labels = mnist.read_part(folder, "train")
        test_images, test_labels = mnist.read_part(folder, "t10k")
        train, validation = mnist.hold_out(len(labels), data["val_fraction"], recipe["training"]["seed"])
        self.pixels = {"train": images[train], "validation": images[validation], "test": test_images}
        self.labels = {"train": labels[train], "validation": labels[validation], "test": test_labels}
        mean, std = (torch.tensor(data[key], dtype=torch.float64).view(1, -1, 1, 1) for key in ("mean", "std"))
        self.factor, self.offset = (1 / (255 * std)).float(), (-mean / std).float()

    def batch(self, part, samples):
        # (pixels / 255 - mean) / std
        images = torch.addcmul(self.offset, self.pixels[part][samples].float(), self.factor)
        return images, self.labels[part][samples]

    @torch.inference_mode()
    def evaluate(self, network, part):
        network.eval()
        loss = right = 0.0
        for samples in torch.arange(len(self.labels[part])).split(500):
            images, labels = self.batch(part, samples)
            logits = network(images)
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            right += (logits.argmax(-1) == labels).sum().item()
        count = len(self.labels[part])
        return {"loss": loss / count, "accuracy": right / count}


def train(network, data, training, expected, options):
    """The best and the last weights, and how far the loss of each step is from the suite's."""
    count = len(data.labels["train"])
    steps = training["epochs"] * math.ceil(count / training["batch_size"])
    optimizer = make_optimizer(network, training["optimizer"])
    schedule = make_schedule(optimizer, training, steps)
    # The averaged network is the one that is evaluated and kept.
    average = copy.deepcopy(network) if training["ema"] is not None else None
    best, best_value = None, None
    differences = []
    for epoch in range(training["epochs"]):
        network.train()
        for samples in mnist.permutation(count, training["seed"] + epoch).split(training["batch_size"]):
            images, labels = data.batch("train", samples)
            loss_sum = F.cross_entropy(
                network(images), labels, label_smoothing=training["label_smoothing"], reduction="sum"
            )
            optimizer.zero_grad()
            (loss_sum * (1 / len(labels))).backward()
            optimizer.step()
            schedule.step()
            if average is not None:
                with torch.no_grad():
                    for averaged, trained in zip(average.parameters(), network.parameters(), strict=True):
                        averaged.lerp_(trained, 1 - training["ema"])
            loss, step = loss_sum.item() / len(labels), len(differences)
            differences.append(abs(loss - expected[step]))
            if step < options.compared and not differences[step] <= options.tolerance:
                sys.exit(f"step {step + 1}: the loss is {loss:.6f} here and {expected[step]:.6f} in the suite")
        kept = network if average is None else average
        scores = data.evaluate(kept, "validation")
        value = scores["accuracy"] if training["metric"] == "accuracy" else -scores[training["metric"]]
        mark = ""
        if best_value is None or value > best_value:
            best, best_value, mark = copy.deepcopy(kept.state_dict()), value, " (best so far)"
        print(f"epoch {epoch + 1}: validation loss {scores['loss']:.4f}, accuracy {scores['accuracy']:.4f}{mark}", flush=True)
    return best, copy.deepcopy(kept.state_dict()), differences


def make_optimizer(network, settings):
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    settings = dict(settings)
    kind = kinds.get(settings.pop("name"))
    if kind is None:
        refuse("training.optimizer.name")
    # The suite calls libtorch's fused kernels, which round unlike the loop over parameters.
    return kind(network.parameters(), fused=True, **settings)


def make_schedule(optimizer, training, steps):
    """The rate of each step; a linear warm-up from 0 comes first where there is one."""
    schedules = torch.optim.lr_scheduler
    warmup = training["warmup"]
    warmup = int(warmup * steps + 0.5) if warmup < 1 else int(warmup)
    settings = training["schedule"]
    if settings["name"] == "constant":
        main = schedules.ConstantLR(optimizer, 1.0)
    elif settings["name"] == "cosine" and settings["cycle"] is None and settings["per"] == "step":
        main = schedules.CosineAnnealingLR(optimizer, steps - warmup, eta_min=settings["min_lr"])
    else:
        refuse(f"training.schedule = {json.dumps(settings)}")
    if warmup == 0:
        return main
    rise = schedules.LambdaLR(optimizer, lambda step: step / warmup)
    return schedules.SequentialLR(optimizer, [rise, main], [warmup])


if __name__ == "__main__":
    main()
