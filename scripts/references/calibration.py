#!/usr/bin/env python3
"""Calibration errors and temperatures. Needs torch, torchmetrics and scipy.

    python3 scripts/references/calibration.py > tests/fixtures/calibration.json
"""

import json

import torch
from scipy.optimize import minimize_scalar
from torchmetrics.functional.classification import multiclass_calibration_error

generator = torch.Generator().manual_seed(5)
cases = []
for samples, classes, confidence in [(60, 3, 4.0), (80, 10, 2.0), (40, 2, 0.3)]:
    labels = torch.randint(classes, (samples,), generator=generator)
    logits = torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    logits[torch.arange(samples), labels] += 1.0
    logits = (logits * confidence * 1e4).round() / 1e4
    error = multiclass_calibration_error(logits.softmax(1), labels, classes, n_bins=15, norm="l1")
    loss = lambda inverse: torch.nn.functional.cross_entropy(logits * inverse, labels).item()
    best = minimize_scalar(loss, bounds=(1e-3, 1e3), method="bounded", options={"xatol": 1e-12})
    best = minimize_scalar(loss, bracket=(best.x * 0.99, best.x * 1.01), tol=1e-14)
    cases.append({"logits": logits.tolist(), "labels": labels.tolist(), "ece": error.item(), "temperature": 1 / best.x})
print(json.dumps({"cases": cases}))
