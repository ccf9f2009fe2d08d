#!/usr/bin/env python3
"""Metrics of scikit-learn on random and on degenerate predictions. Needs scikit-learn==1.9.1.

    python3 scripts/references/classification_metrics.py > tests/fixtures/classification_metrics.json

Where scikit-learn has no value (a class that does not occur has no ROC curve), the expectation is the mean over the classes that have one,
or null where none has.
"""
import json
import warnings

import numpy as np
import sklearn
from sklearn import metrics

warnings.simplefilter("ignore")


def area(function, targets, probabilities):
    """One class against the rest: the second of two, else the mean over those for which it is defined."""
    values = []
    for label in [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1]):
        positive = targets == label
        defined = positive.any() if function is metrics.average_precision_score else positive.any() and not positive.all()
        if defined:
            values.append(function(positive, probabilities[:, label]))
    return float(np.mean(values)) if values else None


def expectation(targets, probabilities):
    predicted = probabilities.argmax(1)
    classes = range(probabilities.shape[1])
    result = {"accuracy": metrics.accuracy_score(targets, predicted),
              "top5_accuracy": metrics.top_k_accuracy_score(targets, probabilities, k=5, labels=list(classes))
              if len(classes) > 5 else 1.0,
              "auroc": area(metrics.roc_auc_score, targets, probabilities),
              "average_precision": area(metrics.average_precision_score, targets, probabilities)}
    for average in ("macro", "weighted"):
        values = metrics.precision_recall_fscore_support(targets, predicted, average=average, zero_division=0)
        result |= {f"{average}_{name}": float(value) for name, value in zip(("precision", "recall", "f1"), values)}
    per_class = metrics.precision_recall_fscore_support(targets, predicted, labels=list(classes), zero_division=0)
    return {"metrics": result,
            "classes": [dict(zip(("precision", "recall", "f1", "support"), map(float, row))) for row in zip(*per_class)],
            "confusion": metrics.confusion_matrix(targets, predicted, labels=list(classes)).ravel().tolist()}


def case(name, classes, count, seed, decimals=None, absent=()):
    random = np.random.default_rng(seed)
    logits = random.normal(size=(count, classes))
    targets = random.choice([label for label in range(classes) if label not in absent], size=count)
    logits[np.arange(count), targets] += 1.0
    if decimals is not None:
        logits = logits.round(decimals)
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    # float32 as the suite holds them, so that ties are the same on both sides.
    probabilities = (exponentials / exponentials.sum(1, keepdims=True)).astype(np.float32).astype(np.float64)
    return {"name": name, "num_classes": classes, "probabilities": probabilities.ravel().tolist(), "targets": targets.tolist(),
            **expectation(targets, probabilities)}


def main():
    cases = [case("ten classes", 10, 200, 0), case("two classes", 2, 60, 1), case("two classes with ties", 2, 60, 2, decimals=0),
             case("absent classes", 6, 40, 3, absent=(2, 5)), case("one class only", 3, 10, 4, absent=(1, 2)),
             case("one sample", 4, 1, 5), case("seven classes with ties", 7, 80, 6, decimals=0)]
    print(json.dumps({"scikit-learn": sklearn.__version__, "cases": cases}))


if __name__ == "__main__":
    main()
