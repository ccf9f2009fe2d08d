#!/usr/bin/env python3
"""Learning rates of schedules in PyTorch and transformers. Needs torch==2.13.0 and transformers==5.23.0.

    python3 scripts/references/schedules.py > tests/fixtures/lr_schedules.json

Each case holds what makes the schedule there (`name`), the `training` section of a recipe that asks for the same here, and the rate
of each optimizer step, read before `optimizer.step()`; `scheduler.step()` follows it.
"""

import json

import torch
import transformers
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

STEPS = 40
LR = 0.1
# A loss that falls, rises, falls, and then stays.
LOSSES = [1.0, 0.9, 0.95, 0.96, 0.97, 0.98, 0.5] + [0.6] * (STEPS - 7)
# An accuracy with gains above and below a threshold.
ACCURACIES = [0.5, 0.52, 0.521, 0.5211, 0.5212, 0.6, 0.59, 0.58, 0.57, 0.56] + [0.55] * (STEPS - 10)


def rates(make, every, metrics):
    """The rate of each step; the scheduler is stepped after every so many."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=LR)
    scheduler = make(optimizer)
    found = []
    for step in range(STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        # OneCycleLR refuses a step beyond its last.
        if (step + 1) % every == 0 and step + 1 < STEPS:
            scheduler.step(*([] if metrics is None else [metrics[step]]))
    return found


cases = []


def case(name, make, schedule, lr=LR, total_steps=STEPS, steps_per_epoch=1, metric=None, metrics=None, **training):
    entry = {
        "name": name,
        "training": {"optimizer": {"name": "sgd", "lr": lr}, "schedule": schedule} | training,
        "total_steps": total_steps,
        "steps_per_epoch": steps_per_epoch,
    }
    if metric is not None:
        entry |= {"metric": metric, "metrics": metrics}
    cases.append(entry | {"rates": rates(make, steps_per_epoch, metrics)})


def stepped(steps):
    return f", stepped every {steps} steps"


case("ConstantLR(factor=1)", lambda o: ConstantLR(o, factor=1), {"name": "constant"})
case(
    "StepLR(step_size=10, gamma=0.5)",
    lambda o: StepLR(o, step_size=10, gamma=0.5),
    {"name": "step", "size": 10, "gamma": 0.5, "per": "step"},
)
case("StepLR(step_size=3)" + stepped(4), lambda o: StepLR(o, step_size=3), {"name": "step", "size": 3}, steps_per_epoch=4)
case(
    "MultiStepLR([5, 20], gamma=0.1)",
    lambda o: MultiStepLR(o, [5, 20], gamma=0.1),
    {"name": "multi-step", "milestones": [5, 20], "per": "step"},
)
case(
    "MultiStepLR([2, 2, 7], gamma=0.3)" + stepped(5),
    lambda o: MultiStepLR(o, [2, 2, 7], gamma=0.3),
    {"name": "multi-step", "milestones": [2, 2, 7], "gamma": 0.3},
    steps_per_epoch=5,
)
case("ExponentialLR(0.9)", lambda o: ExponentialLR(o, 0.9), {"name": "exponential", "gamma": 0.9, "per": "step"})
case(
    "ExponentialLR(0.7)" + stepped(6),
    lambda o: ExponentialLR(o, 0.7),
    {"name": "exponential", "gamma": 0.7},
    steps_per_epoch=6,
)
case(
    "CosineAnnealingLR(T_max=40, eta_min=0.001)",
    lambda o: CosineAnnealingLR(o, T_max=40, eta_min=0.001),
    {"name": "cosine", "min_lr": 0.001},
)
case(
    "CosineAnnealingLR(T_max=10)" + stepped(4),
    lambda o: CosineAnnealingLR(o, T_max=10),
    {"name": "cosine", "per": "epoch"},
    steps_per_epoch=4,
)
case(
    "CosineAnnealingWarmRestarts(T_0=10, T_mult=2)",
    lambda o: CosineAnnealingWarmRestarts(o, T_0=10, T_mult=2),
    {"name": "cosine", "cycle": 10, "cycle_mult": 2},
)
case(
    "CosineAnnealingWarmRestarts(T_0=3, eta_min=0.01)" + stepped(2),
    lambda o: CosineAnnealingWarmRestarts(o, T_0=3, eta_min=0.01),
    {"name": "cosine", "cycle": 3, "min_lr": 0.01, "per": "epoch"},
    steps_per_epoch=2,
)
case(
    "LinearLR(start_factor=0.1, total_iters=10)",
    lambda o: LinearLR(o, start_factor=0.1, total_iters=10),
    {"name": "linear", "start_factor": 0.1, "end_factor": 1.0, "length": 10},
)
case(
    "LinearLR(start_factor=1.0, end_factor=0.2, total_iters=40)",
    lambda o: LinearLR(o, start_factor=1.0, end_factor=0.2, total_iters=40),
    {"name": "linear", "end_factor": 0.2},
)
case(
    "PolynomialLR(total_iters=40, power=2)",
    lambda o: PolynomialLR(o, total_iters=40, power=2),
    {"name": "polynomial", "power": 2.0},
)
case(
    "PolynomialLR(total_iters=25, power=0.9)",
    lambda o: PolynomialLR(o, total_iters=25, power=0.9),
    {"name": "polynomial", "power": 0.9},
    total_steps=25,
)
case(
    "OneCycleLR(max_lr=1.0, total_steps=41)",
    lambda o: OneCycleLR(o, max_lr=1.0, total_steps=41),
    {"name": "one-cycle"},
    lr=1.0,
    total_steps=41,
)
case(
    "OneCycleLR(max_lr=0.5, total_steps=40, pct_start=0.6, div_factor=10, final_div_factor=100)",
    lambda o: OneCycleLR(o, max_lr=0.5, total_steps=40, pct_start=0.6, div_factor=10, final_div_factor=100),
    {"name": "one-cycle", "pct_start": 0.6, "div_factor": 10.0, "final_div_factor": 100.0},
    lr=0.5,
)
case(
    "SequentialLR([LinearLR(0.01, total_iters=5), CosineAnnealingLR(35)], milestones=[5])",
    lambda o: SequentialLR(o, [LinearLR(o, 0.01, total_iters=5), CosineAnnealingLR(o, 35)], milestones=[5]),
    {"name": "cosine"},
    warmup=5,
    warmup_start=0.01,
)
case(
    "ReduceLROnPlateau(factor=0.5, patience=2)",
    lambda o: ReduceLROnPlateau(o, factor=0.5, patience=2),
    {"name": "plateau", "factor": 0.5, "patience": 2},
    metric="loss",
    metrics=LOSSES,
)
case(
    "ReduceLROnPlateau(mode='max', factor=0.3, patience=1, threshold=0.01, cooldown=3, min_lr=0.002)",
    lambda o: ReduceLROnPlateau(o, mode="max", factor=0.3, patience=1, threshold=0.01, cooldown=3, min_lr=0.002),
    {"name": "plateau", "factor": 0.3, "patience": 1, "threshold": 0.01, "cooldown": 3, "min_lr": 0.002},
    metric="accuracy",
    metrics=ACCURACIES,
)
case(
    "get_constant_schedule_with_warmup(8)",
    lambda o: transformers.get_constant_schedule_with_warmup(o, 8),
    {"name": "constant"},
    warmup=8,
)
case(
    "get_linear_schedule_with_warmup(8, 40)",
    lambda o: transformers.get_linear_schedule_with_warmup(o, 8, 40),
    {"name": "linear"},
    warmup=8,
)
case(
    "get_cosine_schedule_with_warmup(8, 40)",
    lambda o: transformers.get_cosine_schedule_with_warmup(o, 8, 40),
    {"name": "cosine"},
    # A share of all steps.
    warmup=0.2,
)
case(
    "get_polynomial_decay_schedule_with_warmup(8, 40, lr_end=1e-4, power=2)",
    lambda o: transformers.get_polynomial_decay_schedule_with_warmup(o, 8, 40, lr_end=1e-4, power=2),
    {"name": "polynomial", "power": 2.0, "end_lr": 1e-4},
    warmup=8,
)
case(
    "get_inverse_sqrt_schedule(8)",
    lambda o: transformers.get_inverse_sqrt_schedule(o, 8),
    {"name": "inverse-sqrt"},
    warmup=8,
)
case(
    "get_inverse_sqrt_schedule(4, timescale=100)",
    lambda o: transformers.get_inverse_sqrt_schedule(o, 4, timescale=100),
    {"name": "inverse-sqrt", "timescale": 100},
    warmup=4,
)

text = json.dumps(
    {
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
        "cases": cases,
    }
)
# One case a line.
print(text.replace('{"name": "', '\n{"name": "', 1).replace('}, {"name": "', '},\n{"name": "'))
