#!/usr/bin/env bash
# Trains the recurrent recipes in full, beside PyTorch; --help tells the rest.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=python_environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/python_environment.sh"

usage() {
    cat <<END
usage: scripts/prove_rnn.sh DATA_FOLDER [PYTHON]

DATA_FOLDER holds tinyshakespeare/input.txt, sst2/train.tsv with dev.tsv, and ett/ETTh1.csv. PYTHON is one with the packages of
benches/pytorch/requirements.txt; without it an environment is made in target/python. Requires that

  lstm-tinyshakespeare comes to at most 1.55 nats per character on the last tenth of the text, within 30 minutes, and its best epoch is
  within 0.02 of PyTorch's under the same recipe (char_lstm.py of scripts/references);
  the run killed in the middle of an epoch and resumed ends in the same weights to the byte;
  generate writes at least 3,000 characters a second;
  lstm-sst2 comes to a dev accuracy of at least 0.82, PyTorch's same recipe (text_lstm.py) beside it;
  keras-lstm comes to a test accuracy of at least 0.9 on made-up sequences that a linear model cannot tell apart;
  lstm-etth1 comes to a test MSE of at most 0.395, and prints the table of eight recipes beside the linear baseline.

RUNS in the environment keeps the runs in that folder; otherwise they are removed unless something failed. THREADS sets the threads.

Exit status: 0 all holds, 1 something does not, 2 wrong usage or something is missing.
END
}

take_help "the folder of the data" "$@"
(($# <= 2)) || fail_input "unknown argument '$3': --help lists what there is."
data=$(cd "$1" && pwd)
for file in tinyshakespeare/input.txt sst2/train.tsv sst2/dev.tsv ett/ETTh1.csv; do
    [[ -f $data/$file ]] || fail_input "$data has no $file."
done
find_python "${2:-}"
build_program rnn

if [[ -n ${RUNS:-} ]]; then
    work=$RUNS
    mkdir -p "$work"
else
    work=$(mktemp -d)
    trap '[[ $? == 0 ]] && rm -rf "$work" || say "what was made is in $work."' EXIT
fi
rnn=$binaries/rnn
threads=${THREADS:-$(nproc)}
references=$repository/scripts/references
failed=0

# Whether a number of a run's summary keeps a limit: summary PART METRIC, operator, limit.
require() {
    "$python" - "$@" <<'END' || failed=1
import json, operator, sys
run, part, metric, compare, limit = sys.argv[1:]
value = json.load(open(f"{run}/summary.json"))[part][metric]
holds = {"<=": operator.le, ">=": operator.ge}[compare](value, float(limit))
print(f"{'holds' if holds else 'FAILS'}: {run.rsplit('/', 1)[-1]} {part} {metric} {value:.4f} {compare} {limit}")
sys.exit(not holds)
END
}

# Tells whether something holds: 1 or 0, what.
holds_or_fails() {
    if (($1)); then
        say "holds: $2."
    else
        say "FAILS: $2."
        failed=1
    fi
}

say "lstm-tinyshakespeare."
text=$data/tinyshakespeare/input.txt
began=$(date +%s)
"$rnn" train --quiet --no-progress --recipe lstm-tinyshakespeare --data "$text" --threads "$threads" --out "$work/shakespeare" >/dev/null
minutes=$((($(date +%s) - began) / 60))
require "$work/shakespeare" best loss "<=" 1.55
holds_or_fails "$((minutes < 30))" "$minutes minutes"
say "the same in PyTorch."
"$python" "$references/char_lstm.py" "$text" --threads "$threads" | tee "$work/char_lstm.jsonl"
best=$("$python" -c 'import json,sys; lines = map(json.loads, open(sys.argv[1])); print(min(line["validation_loss"] for line in lines if "validation_loss" in line))' "$work/char_lstm.jsonl")
require "$work/shakespeare" best loss "<=" "$("$python" -c "print($best + 0.02)")"

say "killed in the middle of an epoch."
short=(--recipe lstm-tinyshakespeare --data "$text" --threads "$threads" --steps 700 --save-every 90)
"$rnn" train --quiet "${short[@]}" --out "$work/unbroken" >/dev/null
"$rnn" train --quiet "${short[@]}" --out "$work/killed" >/dev/null 2>&1 &
pid=$!
while [[ ! -d $work/killed/checkpoints/last ]]; do sleep 0.2; done
sleep 5
kill -KILL "$pid"
wait "$pid" 2>/dev/null || true
"$rnn" train --quiet --resume "$work/killed" >/dev/null
for file in model.safetensors optimizer.safetensors; do
    same=1
    cmp -s "$work/unbroken/checkpoints/last/$file" "$work/killed/checkpoints/last/$file" || same=0
    holds_or_fails "$same" "$file of the killed run is the same to the byte"
done

say "generation."
"$rnn" generate "$work/shakespeare" --prompt "ROMEO:" --length 20000 --temperature 0.8 --timing >"$work/generated.txt" 2>"$work/generation.txt"
head -20 "$work/generated.txt"
cat "$work/generation.txt"
rate=$(sed -E 's/.*: ([0-9,]+) per second.*/\1/; s/,//g' "$work/generation.txt" | tail -1)
holds_or_fails "$((rate >= 3000))" "$rate characters a second"

say "lstm-sst2."
"$rnn" train --quiet --recipe lstm-sst2 --data "$data/sst2" --threads "$threads" --out "$work/sst2" >/dev/null
require "$work/sst2" best accuracy ">=" 0.82
"$python" "$references/text_lstm.py" "$data/sst2" --threads "$threads"

say "keras-lstm."
"$rnn" train --quiet --recipe keras-lstm --threads "$threads" --out "$work/keras" >/dev/null
require "$work/keras" test accuracy ">=" 0.9

say "ETTh1, 96 hours back, 24 ahead, seven series."
forecast() {
    local name=$1
    shift
    "$rnn" train --quiet --data "$data/ett/ETTh1.csv" --threads "$threads" --out "$work/$name" "$@" >/dev/null
}
forecast etth1 --recipe lstm-etth1
forecast etth1-highway --recipe lstm-etth1-highway
forecast etth1-gru --recipe gru-etth1
forecast etth1-plain --recipe lstm-etth1 --set model.last_value=false
forecast etth1-small --recipe lstm-etth1 --set model.hidden=32 --set model.output_dropout=0.3
forecast etth1-calendar --recipe lstm-etth1 --set 'data.calendar=["hour","weekday"]'
forecast etth1-steps --recipe lstm-etth1 --set model.mode=autoregressive --epochs 4
forecast etth1-quantiles --recipe lstm-etth1-quantiles
require "$work/etth1" test mse "<=" 0.395
"$python" - "$work" <<'END'
import json, pathlib, sys
rows = []
for folder in sorted(pathlib.Path(sys.argv[1]).glob("etth1*")):
    if (folder / "summary.json").is_file():
        test = json.loads((folder / "summary.json").read_text())["test"]
        rows.append((test["mse"], test["mae"], folder.name))
print("MSE     MAE     recipe")
for mse, mae, name in sorted(rows):
    print(f"{mse:.4f}  {mae:.4f}  {name}")
for baseline in ("linear", "seasonal_naive", "naive"):
    print(f"{test[baseline + '_mse']:.4f}  {test[baseline + '_mae']:.4f}  ({baseline.replace('_', ' ')})")
END
exit "$failed"
