#!/usr/bin/env python3
"""Compares `regression` with scikit-learn on the same split of the California housing table. Needs scikit-learn and pandas.

    python3 scripts/references/california_housing.py california_housing.csv target/release/regression

Writes train.csv and test.csv (a fifth, seeded) into a temporary folder that both sides read, fits a linear model with median imputation
and one-hot categories on both, and prints both test R². Ends with 1 where they differ by more than 1e-6.
"""
import json
import pathlib
import subprocess
import sys
import tempfile

import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

TARGET, CATEGORY = "median_house_value", "ocean_proximity"


def main():
    table, program = sys.argv[1:3]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        train, test = train_test_split(pd.read_csv(table), test_size=0.2, random_state=0)
        train.to_csv(folder / "train.csv", index=False)
        test.to_csv(folder / "test.csv", index=False)
        train, test = pd.read_csv(folder / "train.csv"), pd.read_csv(folder / "test.csv")
        columns = make_column_transformer(
            (OneHotEncoder(drop="first"), [CATEGORY]), remainder=SimpleImputer(strategy="median")
        )
        model = make_pipeline(columns, LinearRegression())
        model.fit(train.drop(columns=TARGET), train[TARGET])
        theirs = model.score(test.drop(columns=TARGET), test[TARGET])

        arguments = ["--recipe", "linear", "--data", folder / "train.csv", "--test", folder / "test.csv"]
        arguments += ["--target", TARGET, "--missing", "median", "--out", folder / "run"]
        subprocess.run([program, "train", "--quiet", *map(str, arguments)], check=True)
        ours = json.loads((folder / "run" / "summary.json").read_text())["test"]["r2"]
    print(f"test R²: scikit-learn {theirs:.12f}, regression {ours:.12f}, difference {abs(ours - theirs):.1e}")
    return abs(ours - theirs) > 1e-6


if __name__ == "__main__":
    sys.exit(main())
