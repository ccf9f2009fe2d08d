#!/usr/bin/env python3
"""Trajectories of optimizers, penalties, clipping and averaged weights. Needs torch==2.13.0.

    python3 scripts/references/optimizers.py > tests/fixtures/optimizers.json

Three parameters take six steps with given gradients. Each case holds the `training` section of a recipe and the parameters (with `ema`,
also their average) after the steps in KEPT.
"""

import json
import math

import torch

SHAPES = {"0.weight": [4, 3], "0.bias": [3], "norm.weight": [3]}
STEPS = 6
KEPT = [1, 2, 6]


def numbers(name, step):
    """Numbers of either sign, of different sizes from element to element."""
    shape = SHAPES[name]
    offset = 17 * list(SHAPES).index(name) + 5 * step
    values = [math.sin(1.7 * (i + offset)) * (1 + 0.5 * i) for i in range(math.prod(shape))]
    return torch.tensor(values, dtype=torch.float32).reshape(shape)


def listed(tensors):
    return {name: tensor.detach().flatten().tolist() for name, tensor in tensors.items()}


cases = []


def case(name, optimizer, make, groups=(), plain=(), clip_norm=None, clip_value=None, l1=0.0, l2=0.0, ema=None):
    """`groups` and `plain` (parameters without decay) are given to PyTorch as groups of parameters."""
    parameters = {key: numbers(key, 0).requires_grad_(True) for key in SHAPES}
    averages = {key: value.detach().clone() for key, value in parameters.items()}
    base = make([torch.zeros(1, requires_grad=True)]).defaults
    options = {key: {"lr": base["lr"]} for key in SHAPES}
    for key in plain:
        options[key]["weight_decay"] = 0.0
    for group in groups:
        for key in group["members"]:
            options[key]["lr"] *= group["lr_scale"]
            if "weight_decay" in group:
                options[key]["weight_decay"] = group["weight_decay"]
    torch_optimizer = make([{"params": [parameters[key]], **options[key]} for key in SHAPES])
    after = {}
    for step in range(1, STEPS + 1):
        for key, parameter in parameters.items():
            gradient = numbers(key, step)
            parameter.grad = gradient + l1 * parameter.detach().sign() + l2 * parameter.detach()
        if clip_value is not None:
            torch.nn.utils.clip_grad_value_(parameters.values(), clip_value)
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters.values(), clip_norm)
        torch_optimizer.step()
        for key, average in averages.items():
            average.lerp_(parameters[key].detach(), 1 - (ema or 0.0))
        if step in KEPT:
            after[step] = listed(parameters) | ({} if ema is None else {"average": listed(averages)})
    training = {"optimizer": optimizer}
    if plain:
        training["decay_bias_and_norm"] = False
    if groups:
        training["groups"] = [{key: value for key, value in group.items() if key != "members"} for group in groups]
    for key, value in [("clip_norm", clip_norm), ("clip_value", clip_value), ("ema", ema)]:
        if value is not None:
            training[key] = value
    for key, value in [("l1", l1), ("l2", l2)]:
        if value:
            training[key] = value
    cases.append({"name": name, "training": training, "after": after})


def simple(name, kind, torch_class, **settings):
    case(name, {"name": kind, **settings}, lambda groups: torch_class(groups, **settings))


optim = torch.optim
simple("sgd", "sgd", optim.SGD, lr=0.1)
simple("sgd momentum decay", "sgd", optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01)
simple("sgd nesterov", "sgd", optim.SGD, lr=0.1, momentum=0.9, nesterov=True)
simple("sgd dampening", "sgd", optim.SGD, lr=0.1, momentum=0.9, dampening=0.5)
simple("adam", "adam", optim.Adam, lr=0.01)
simple("adam decay", "adam", optim.Adam, lr=0.01, weight_decay=0.1, betas=[0.8, 0.95], eps=1e-6)
simple("adam amsgrad", "adam", optim.Adam, lr=0.01, amsgrad=True)
simple("adamw", "adamw", optim.AdamW, lr=0.01)
simple("adamw amsgrad", "adamw", optim.AdamW, lr=0.003, weight_decay=0.1, amsgrad=True)
simple("adagrad", "adagrad", optim.Adagrad, lr=0.1)
simple("adagrad decay", "adagrad", optim.Adagrad, lr=0.1, lr_decay=0.1, weight_decay=0.05)
simple("rmsprop", "rmsprop", optim.RMSprop, lr=0.01)
simple("rmsprop centered", "rmsprop", optim.RMSprop, lr=0.01, alpha=0.9, momentum=0.9, centered=True, weight_decay=0.05)

sgd = {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}
adamw = {"name": "adamw", "lr": 0.01, "weight_decay": 0.2}


def make_sgd(groups):
    return optim.SGD(groups, lr=0.05, momentum=0.9, weight_decay=0.1)


def make_adamw(groups):
    return optim.AdamW(groups, lr=0.01, weight_decay=0.2)


case("no decay on bias and norm", adamw, make_adamw, plain=["0.bias", "norm.weight"])
case(
    "groups by pattern",
    sgd,
    make_sgd,
    groups=[
        {"pattern": "^norm", "members": ["norm.weight"], "lr_scale": 0.1},
        {"pattern": "bias$", "members": ["0.bias"], "lr_scale": 2.0, "weight_decay": 0.3},
    ],
)
case(
    "a group's decay wins over none on biases",
    adamw,
    make_adamw,
    plain=["norm.weight"],
    groups=[{"pattern": "bias", "members": ["0.bias"], "lr_scale": 1.0, "weight_decay": 0.05}],
)
case("clipped by norm", sgd, make_sgd, clip_norm=1.0)
case("clipped by value", sgd, make_sgd, clip_value=0.5)
case("clipped by value, then by norm", adamw, make_adamw, clip_value=1.5, clip_norm=2.0)
case("l1", sgd, make_sgd, l1=0.3)
case("l1 and l2 before clipping", sgd, make_sgd, l1=0.1, l2=0.4, clip_norm=3.0)
case("averaged", adamw, make_adamw, ema=0.9)

text = json.dumps(
    {
        "torch": torch.__version__.split("+")[0],
        "initial": {key: {"shape": shape, "values": numbers(key, 0).flatten().tolist()} for key, shape in SHAPES.items()},
        "gradients": [listed({key: numbers(key, step) for key in SHAPES}) for step in range(1, STEPS + 1)],
        "cases": cases,
    }
)
# One case a line.
print(text.replace('{"name": "', '\n{"name": "', 1).replace('}, {"name": "', '},\n{"name": "'))
