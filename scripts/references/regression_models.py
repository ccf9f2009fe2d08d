#!/usr/bin/env python3
"""Coefficients of scikit-learn and statsmodels over a grid of penalties. Needs scikit-learn==1.9.1 and statsmodels.

    python3 scripts/references/regression_models.py > tests/fixtures/regression_models.json

The tables are those of assets/tables, all rows. `scaled` says whether columns were divided by their population standard deviation
(and centred) first; coefficients are in the units in which the model was fitted.
"""
import gzip
import json
import pathlib
import sys
import warnings

import numpy as np
import pandas as pd
import sklearn
from sklearn.linear_model import (ElasticNet, HuberRegressor, Lasso, LogisticRegression, PoissonRegressor, QuantileRegressor,
                                  Ridge)
from sklearn.preprocessing import StandardScaler

TABLES = pathlib.Path(__file__).resolve().parents[2] / "assets" / "tables"


def table(name, target):
    frame = pd.read_csv(TABLES / name)
    return frame.drop(columns=target).to_numpy(float), frame[target].to_numpy()


def case(name, settings, model, x, y, scaled):
    x = StandardScaler().fit_transform(x) if scaled else x
    with warnings.catch_warnings():
        # The tolerances are below what rounding allows: what is reached counts.
        warnings.simplefilter("ignore")
        model.fit(x, y)
    return {
        "table": name,
        "settings": settings,
        "scaled": scaled,
        "intercept": np.atleast_1d(model.intercept_).tolist(),
        "coefficients": np.atleast_2d(model.coef_).tolist(),
    }


def main():
    cases = []
    x, y = table("diabetes.csv", "target")
    for alpha in [0.01, 0.1, 1.0, 5.0, 20.0]:
        for scaled in [True, False]:
            cases.append(case("diabetes", {"name": "lasso", "alpha": alpha}, Lasso(alpha=alpha, tol=1e-15, max_iter=10**5), x, y, scaled))
        for ratio in [0.2, 0.5, 0.9]:
            model = ElasticNet(alpha=alpha, l1_ratio=ratio, tol=1e-15, max_iter=10**5)
            cases.append(case("diabetes", {"name": "elastic-net", "alpha": alpha, "l1_ratio": ratio}, model, x, y, True))
        cases.append(case("diabetes", {"name": "ridge", "alpha": alpha}, Ridge(alpha=alpha), x, y, True))
    for alpha in [0.0, 0.1]:
        model = PoissonRegressor(alpha=alpha, tol=1e-12, max_iter=10**5, solver="newton-cholesky")
        cases.append(case("diabetes", {"name": "poisson", "alpha": alpha}, model, x, y, True))
    for epsilon in [1.1, 1.35, 2.0]:
        model = HuberRegressor(epsilon=epsilon, alpha=0.01, tol=1e-12, max_iter=10**5)
        cases.append(case("diabetes", {"name": "huber", "epsilon": epsilon, "alpha": 0.01}, model, x, y, True))
    for quantile in [0.1, 0.5, 0.8]:
        for alpha in [0.0, 0.5]:
            model = QuantileRegressor(quantile=quantile, alpha=alpha)
            cases.append(case("diabetes", {"name": "quantile", "quantile": quantile, "alpha": alpha}, model, x, y, True))

    with gzip.open(TABLES / "breast-cancer.csv.gz", "rt") as file:
        frame = pd.read_csv(file)
    x, y = frame.drop(columns="target").to_numpy(float), frame["target"].to_numpy()
    for c in [0.01, 0.1, 1.0]:
        model = LogisticRegression(C=c, l1_ratio=0.0, tol=1e-14, max_iter=10**5, solver="newton-cholesky")
        cases.append(case("breast-cancer", {"name": "logistic", "penalty": "l2", "c": c}, model, x, y, True))
        model = LogisticRegression(C=c, l1_ratio=1.0, tol=1e-12, max_iter=10**6, solver="saga")
        cases.append(case("breast-cancer", {"name": "logistic", "penalty": "l1", "c": c}, model, x, y, True))
    x, y = table("iris.csv", "species")
    for c in [0.01, 0.1, 1.0, 10.0, 100.0]:
        for scaled in [True, False]:
            model = LogisticRegression(C=c, tol=1e-14, max_iter=10**5, solver="newton-cg")
            cases.append(case("iris", {"name": "multinomial", "penalty": "l2", "c": c}, model, x, y, scaled))
    json.dump({"scikit-learn": sklearn.__version__, "cases": cases}, sys.stdout)
    print()


if __name__ == "__main__":
    main()
