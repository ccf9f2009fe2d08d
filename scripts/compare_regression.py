#!/usr/bin/env python3
"""Times `regression` beside pandas and scikit-learn: read a CSV file, fit, write the model. Needs scikit-learn and pandas.

    python3 scripts/compare_regression.py PROGRAM [--rows 1000000] [--columns 50] [--repeat 3] [--models linear,ridge,logistic]
    python3 scripts/compare_regression.py PROGRAM --stream --rows 10000000 --columns 20

Makes the table in a temporary folder (--folder to keep it), runs both sides in turn as processes of their own, and prints the median wall time, the
largest peak memory, and how far the coefficients are apart. Nothing is held out, ridge and logistic are fitted to standardised columns
on both sides. With --stream it compares the streamed fit with the one in memory instead, and with --predict it times predictions of the
whole table.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

PEER = """
import sys, joblib, numpy as np, pandas as pd
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
table, model, out = sys.argv[1:]
frame = pd.read_csv(table)
if model == "predict":
    fitted = joblib.load(out)
    features = frame.drop(columns=["y", "label"])
    pd.DataFrame({"prediction": fitted.predict(features)}).to_csv(out + ".csv", index=False)
    sys.exit()
target = "label" if model == "logistic" else "y"
y = frame.pop(target)
frame = frame.drop(columns="y" if target == "label" else "label")
made = {"linear": LinearRegression, "ridge": lambda: make_pipeline(StandardScaler(), Ridge()),
        "logistic": lambda: make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))}[model]()
made.fit(frame, y)
joblib.dump(made, out)
"""

COEFFICIENTS = """
import sys, joblib, json, numpy as np
made = joblib.load(sys.argv[1])
last = made[-1] if hasattr(made, "steps") else made
scale = made[0].scale_ if hasattr(made, "steps") else 1.0
print(json.dumps((np.ravel(last.coef_) / scale).tolist()))
"""


def make_table(path, rows, columns):
    import numpy as np
    import pandas as pd

    random = np.random.default_rng(0)
    weights = random.normal(size=columns)
    with open(path, "w") as file:
        for start in range(0, rows, 100_000):
            x = random.normal(size=(min(100_000, rows - start), columns)) * np.linspace(1, 3, columns) + 1
            score = x @ weights
            frame = pd.DataFrame(x, columns=[f"x{column}" for column in range(columns)])
            frame["y"] = score + random.normal(size=len(x)) * 5
            frame["label"] = (random.random(len(x)) < 1 / (1 + np.exp(-(score - weights.sum()) / 5))).astype(int)
            frame.to_csv(file, index=False, header=start == 0, float_format="%.9g")


def timed(command):
    """Wall seconds and peak memory in MB of a process."""
    began = time.perf_counter()
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    error = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(error.decode())
    scale = 1e6 if sys.platform == "darwin" else 1e3
    return time.perf_counter() - began, usage.ru_maxrss / scale


def difference(ours, theirs):
    largest = max(abs(value) for value in theirs)
    return max(abs(a - b) for a, b in zip(ours, theirs)) / largest


def coefficients(run):
    return json.loads((run / "model.json").read_text())["coefficients"][0]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=50)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--models", default="linear,ridge,logistic")
    parser.add_argument("--folder", type=pathlib.Path)
    parser.add_argument("--statistics", action="store_true", help="also the standard errors, which scikit-learn does not give")
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--predict", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or pathlib.Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        table = folder / f"table-{options.rows}-{options.columns}.csv"
        if not table.exists():
            make_table(table, options.rows, options.columns)
        print(f"{options.rows} rows, {options.columns} columns, {table.stat().st_size / 1e6:.0f} MB")

        def ours(model, number, *more):
            run = pathlib.Path(name) / f"{model}-{number}"
            target, other = ("label", "y") if model == "logistic" else ("y", "label")
            flags = ["--recipe", model, "--data", table, "--target", target, "--drop", other, "--test-fraction", 0, "--quiet"]
            flags += [] if options.statistics else ["--no-statistics"]
            return run, timed([options.program, "train", *flags, "--out", run, *more])

        for model in options.models.split(","):
            if options.stream:
                memory, (seconds, peak) = ours(model, "memory")
                print(f"{model}: in memory {seconds:.2f} s, {peak:.0f} MB", flush=True)
                streamed, (seconds, peak) = ours(model, "stream", "--stream")
                apart = difference(coefficients(streamed), coefficients(memory))
                print(f"{model}: streamed {seconds:.2f} s, {peak:.0f} MB, coefficients {apart:.1e} apart", flush=True)
                continue
            mine, theirs = [], []
            peer = pathlib.Path(name) / f"{model}.joblib"
            for number in range(options.repeat):
                run, result = ours(model, number)
                mine.append(result)
                theirs.append(timed([sys.executable, "-c", PEER, table, model, peer]))
            found = json.loads(subprocess.check_output([sys.executable, "-c", COEFFICIENTS, str(peer)]))
            seconds = [statistics.median(result[0] for result in side) for side in (mine, theirs)]
            peaks = [max(result[1] for result in side) for side in (mine, theirs)]
            print(
                f"{model}: {seconds[0]:.2f} s against {seconds[1]:.2f} s ({seconds[1] / seconds[0]:.1f} times), {peaks[0]:.0f} MB against "
                f"{peaks[1]:.0f} MB ({peaks[0] / peaks[1]:.2f}), coefficients {difference(coefficients(run), found):.1e} apart",
                flush=True,
            )
            if options.predict and model == "linear":
                seconds, peak = timed([options.program, "predict", run, table])
                other = timed([sys.executable, "-c", PEER, table, "predict", peer])
                print(f"predict: {seconds:.2f} s against {other[0]:.2f} s, {peak:.0f} MB against {other[1]:.0f} MB", flush=True)


if __name__ == "__main__":
    main()
