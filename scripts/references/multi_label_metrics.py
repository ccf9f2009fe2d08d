#!/usr/bin/env python3
"""Multi-label metrics of scikit-learn on random and on degenerate predictions. Needs scikit-learn==1.9.1.

    python3 scripts/references/multi_label_metrics.py > tests/fixtures/multi_label_metrics.json

Where scikit-learn has no value for a label, the expectation is the mean over the labels that have one, or null where none has.
"""
import json
import warnings

import numpy as np
import sklearn
from sklearn import metrics

warnings.simplefilter("ignore")


def area(function, targets, probabilities):
    values = []
    for label in range(targets.shape[1]):
        positive = targets[:, label] == 1
        defined = positive.any() if function is metrics.average_precision_score else positive.any() and not positive.all()
        if defined:
            values.append(function(positive, probabilities[:, label]))
    return float(np.mean(values)) if values else None


def case(name, labels, count, seed, share=0.3, decimals=None):
    random = np.random.default_rng(seed)
    targets = (random.random((count, labels)) < share).astype(int)
    logits = random.normal(size=(count, labels)) + 1.5 * targets - 0.5
    if decimals is not None:
        logits = logits.round(decimals)
    # float32 as the suite holds them, so that ties are the same on both sides.
    probabilities = (1 / (1 + np.exp(-logits))).astype(np.float32).astype(np.float64)
    predicted = (probabilities >= 0.5).astype(int)
    result = {"accuracy": metrics.accuracy_score(targets, predicted),
              "auroc": area(metrics.roc_auc_score, targets, probabilities),
              "average_precision": area(metrics.average_precision_score, targets, probabilities)}
    for average in ("macro", "micro"):
        values = metrics.precision_recall_fscore_support(targets, predicted, average=average, zero_division=0)
        result |= {f"{average}_{score}": float(value) for score, value in zip(("precision", "recall", "f1"), values)}
    per_label = metrics.precision_recall_fscore_support(targets, predicted, zero_division=0)
    return {"name": name, "probabilities": probabilities.tolist(), "targets": targets.tolist(), "metrics": result,
            "labels": [dict(zip(("precision", "recall", "f1", "support"), map(float, row))) for row in zip(*per_label)]}


def main():
    cases = [case("five labels", 5, 60, 0), case("ties", 4, 50, 1, decimals=0), case("rare labels", 6, 12, 2, share=0.05),
             case("no label at all", 3, 8, 3, share=0.0)]
    print(json.dumps({"scikit-learn": sklearn.__version__, "cases": cases}))


if __name__ == "__main__":
    main()
