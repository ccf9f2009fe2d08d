#!/usr/bin/env python3
"""Outputs, losses and gradients of torchvision's image classifiers with weights from a formula. Needs torch==2.13.0 and
torchvision==0.28.0.

    python3 scripts/references/image_models.py > tests/fixtures/image_models.json

Both sides fill a network and its input by the same integer arithmetic (`formula`), so that no weights need to be stored: the tensors of the
state_dict, sorted by name, get values that depend on the position of the tensor in that order and on the position in the tensor.

`efficientnet-lite0` is not torchvision's: its reference is the pretrained network that scripts/fetch_data.sh brings.
"""

import json
import sys
import warnings
import zlib

import torch
import torchvision
from torch import nn

CLASSES = 10
SEED_MODULUS = 1_000_003

# name: sides of the two inputs in evaluation
SMALL = (64, 96)
MODELS = {
    "alexnet": SMALL,
    **{f"vgg{depth}{norm}": (32, 64) for depth in (11, 13, 16, 19) for norm in ("", "_bn")},
    "googlenet": SMALL,
    "inception_v3": (96, 128),
    **{f"resnet{depth}": SMALL for depth in (18, 34, 50, 101, 152)},
    **{name: SMALL for name in ("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2")},
    **{f"densenet{depth}": SMALL for depth in (121, 161, 169, 201)},
    **{name: SMALL for name in ("mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small")},
    **{name: SMALL for name in ("squeezenet1_0", "squeezenet1_1")},
    **{f"efficientnet_b{number}": SMALL for number in range(8)},
    **{f"convnext_{size}": SMALL for size in ("tiny", "small", "base", "large")},
    **{name: (64, 96) for name in ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32")},
    "vit_h_14": (56, 84),
}

# One of each family also learns a step: name, side of the input, and what takes the chance out of it.
LEARN = {
    "alexnet": (64, {"dropout": 0.0}),
    "vgg11_bn": (32, {"dropout": 0.0}),
    "googlenet": (64, {"dropout": 0.0, "dropout_aux": 0.0}),
    "inception_v3": (299, {"dropout": 0.0}),
    "resnet18": (64, {}),
    "resnext50_32x4d": (64, {}),
    "densenet121": (64, {}),
    "mobilenet_v2": (64, {"dropout": 0.0}),
    "mobilenet_v3_small": (64, {"dropout": 0.0}),
    "squeezenet1_1": (64, {"dropout": 0.0}),
    "efficientnet_b0": (64, {"dropout": 0.0, "stochastic_depth_prob": 0.0}),
    "convnext_tiny": (64, {"stochastic_depth_prob": 0.0}),
    "vit_b_32": (64, {}),
}

# And begins as it does here under torch.manual_seed(3).
BEGIN = [name for name in LEARN if name not in ("alexnet", "vgg11_bn", "vit_b_32")] + ["vit_b_32", "densenet121"]


def formula(count, number):
    """`count` values in -1..1 for the tensor of that number, float32."""
    positions = torch.arange(count, dtype=torch.int64)
    mixed = (positions * 7919 + (number + 1) * 104_729) % SEED_MODULUS
    mixed = (mixed * mixed + 12_345) % SEED_MODULUS
    return ((2 * mixed).double() / SEED_MODULUS - 1).float()


def fill(model):
    for number, (name, tensor) in enumerate(sorted(model.state_dict().items())):
        values = formula(tensor.numel(), number).view(tensor.shape)
        if name.endswith("num_batches_tracked"):
            continue
        if name.endswith("running_var"):
            values = 1 + 0.3 * values
        elif tensor.dim() > 1 and name.endswith("weight"):
            values = values * (3 / tensor[0].numel()) ** 0.5
        elif name.endswith("weight") or name.endswith("layer_scale"):
            values = 1 + 0.2 * values
        else:
            values = 0.1 * values
        tensor.copy_(values)


def images(batch, side):
    return formula(batch * 3 * side * side, 1000).view(batch, 3, side, side)


def make(name, side, **options):
    if name.startswith("vit"):
        options["image_size"] = side
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = True
    if name == "inception_v3":
        options["transform_input"] = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **options)


def layout(model):
    """What the names and shapes of all tensors come to."""
    text = "".join(f"{name} {list(tensor.shape)}\n" for name, tensor in sorted(model.state_dict().items()))
    return zlib.crc32(text.encode())


def evaluate(name, side):
    model = make(name, side)
    with torch.inference_mode():
        fill(model)
        scores = model.eval()(images(2, side))
    return {
        "side": side,
        "layout": layout(model),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "scores": scores.flatten().tolist(),
    }


def learn(name, side, options):
    model = make(name, side, **options).train()
    with torch.no_grad():
        fill(model)
    outputs = model(images(4, side))
    labels = torch.tensor([0, 3, 6, 9])
    loss = nn.functional.cross_entropy
    if name == "googlenet":
        total = loss(outputs.logits, labels) + 0.3 * (loss(outputs.aux_logits1, labels) + loss(outputs.aux_logits2, labels))
    elif name == "inception_v3":
        total = loss(outputs.logits, labels) + 0.4 * loss(outputs.aux_logits, labels)
    else:
        total = loss(outputs, labels)
    total.backward()
    gradients = {key: parameter.grad.double().norm().item() for key, parameter in model.named_parameters()}
    return {"side": side, "loss": total.item(), "gradient_norms": [gradients[key] for key in sorted(gradients)]}


def begin(name):
    """Checksums of the initial values of every parameter, of the weights' raw bits."""
    torch.manual_seed(3)
    model = make(name, 64)
    checksums = {key: zlib.crc32(value.detach().numpy().astype("<f4").tobytes()) for key, value in model.named_parameters()}
    return [checksums[key] for key in sorted(checksums)]


def main():
    torch.set_num_threads(2)
    cases = {}
    for name, sides in MODELS.items():
        print(name, file=sys.stderr)
        case = {"evaluation": [evaluate(name, side) for side in sides]}
        if name in LEARN:
            case["learning"] = learn(name, *LEARN[name])
        if name in BEGIN:
            case["beginning"] = begin(name)
        cases[name] = case
    versions = {"torch": torch.__version__.split("+")[0], "torchvision": torchvision.__version__.split("+")[0]}
    print(json.dumps({**versions, "classes": CLASSES, "models": cases}))


if __name__ == "__main__":
    main()
