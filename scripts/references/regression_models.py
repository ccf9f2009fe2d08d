#!/usr/bin/env python3
"""Coefficients of scikit-learn and statsmodels over a grid of penalties. Needs scikit-learn==1.9.1, statsmodels==0.15.0 and pandas.

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
import statsmodels
import statsmodels.api as sm
from sklearn.linear_model import (ElasticNet, HuberRegressor, Lasso, LogisticRegression, PoissonRegressor, QuantileRegressor,
                                  Ridge)
from sklearn.preprocessing import StandardScaler
from statsmodels.stats import stattools
from statsmodels.stats.outliers_influence import variance_inflation_factor

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
    statistics = {"versions": {"scikit-learn": sklearn.__version__, "statsmodels": statsmodels.__version__}}
    frame = pd.read_csv(TABLES / "diabetes.csv")
    y = frame.pop("target")
    x = sm.add_constant(frame)
    fit = sm.OLS(y, x).fit()
    jarque_bera, jarque_bera_p, skew, kurtosis = map(float, stattools.jarque_bera(fit.resid))
    statistics["linear"] = {
        "robust": [np.asarray(getattr(fit, f"HC{kind}_se")).tolist() for kind in range(4)],
        "vif": [float(variance_inflation_factor(x.to_numpy(), column)) for column in range(1, x.shape[1])],
        "figures": {
            "durbin_watson": float(stattools.durbin_watson(fit.resid)),
            "jarque_bera": jarque_bera,
            "jarque_bera_p": jarque_bera_p,
            "skew": skew,
            "kurtosis": kurtosis,
            "condition_number": float(fit.condition_number),
        },
    }
    fit = sm.GLM(y, x, family=sm.families.Poisson()).fit(tol=1e-14)
    statistics["poisson"] = {
        "coef": fit.params.tolist(),
        "std_err": fit.bse.tolist(),
        "figures": {
            "log_likelihood": float(fit.llf),
            "log_likelihood_null": float(fit.llnull),
            "deviance": float(fit.deviance),
            "pearson_chi2": float(fit.pearson_chi2),
            "aic": float(fit.aic),
            "bic": float(fit.bic_llf),
        },
    }
    # One measurement, for others part one species from the rest, and then no unpenalised fit exists.
    frame = pd.read_csv(TABLES / "iris.csv")
    fit = sm.MNLogit(frame["species"], sm.add_constant(frame[["sepal_width"]])).fit(
        method="newton", maxiter=200, tol=1e-14, disp=False
    )
    statistics["multinomial"] = {
        "features": "sepal_width",
        "figures": {
            "log_likelihood": float(fit.llf),
            "log_likelihood_null": float(fit.llnull),
            "pseudo_r2": float(fit.prsquared),
            "llr": float(fit.llr),
            "aic": float(fit.aic),
            "bic": float(fit.bic),
        },
        # Against the first class, [column, class - 1].
        "coef": fit.params.to_numpy().tolist(),
    }
    frame = pd.read_csv(TABLES / "diabetes.csv")
    y = frame.pop("target")
    x = sm.add_constant(frame)
    # scikit-learn fits the scale along with the coefficients; RLM is told it.
    joint = HuberRegressor(epsilon=1.35, alpha=0.0, tol=1e-12, max_iter=10**5).fit(StandardScaler().fit_transform(frame), y)
    norm = sm.robust.norms.HuberT(t=1.35)
    fit = sm.RLM(y, x, M=norm).fit(start_params=np.zeros(x.shape[1]), start_scale=joint.scale_, update_scale=False, tol=1e-13, maxiter=10**4)
    statistics["huber"] = {
        "scale": float(joint.scale_),
        "coef": fit.params.tolist(),
        "std_err": fit.bse.tolist(),
        "p": fit.pvalues.tolist(),
    }
    for quantile in [0.5, 0.8]:
        fit = sm.QuantReg(y, x).fit(q=quantile, max_iter=10**4, p_tol=1e-10)
        # As QuantReg computes it, but for rows through which the fit goes: their residuals are zero and not what rounding leaves.
        residual = np.where(np.abs(fit.resid) < 1e-6, 0.0, fit.resid)
        share = np.where(residual > 0, (quantile * fit.sparsity) ** 2, ((1 - quantile) * fit.sparsity) ** 2)
        design = x.to_numpy()
        inverse = np.linalg.pinv(design.T @ design)
        covariance = inverse @ (design.T * share @ design) @ inverse
        statistics[f"quantile_{quantile}"] = {
            "coef": fit.params.tolist(),
            "std_err": np.sqrt(np.diag(covariance)).tolist(),
            "figures": {"sparsity": float(fit.sparsity), "bandwidth": float(fit.bandwidth), "pseudo_r2": float(fit.prsquared)},
        }
    json.dump({"statistics": statistics, "cases": cases}, sys.stdout)
    print()


if __name__ == "__main__":
    main()
