#!/usr/bin/env bash
# Trains gpt-tinyshakespeare on the whole text and prints its validation loss, beside PyTorch's on the same recipe where --python names a Python with torch and
# transformers. A few minutes on two cores.
#
#   TCH_SUITE_DATA=DATA scripts/prove_language_model.sh [--python PYTHON] [--out FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
python= out=$(mktemp -d)
while [ $# -gt 0 ]; do
  case "$1" in
    --python) python=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    *) echo "prove_language_model.sh: unknown argument $1" >&2; exit 2 ;;
  esac
done
text=${TCH_SUITE_DATA:?TCH_SUITE_DATA names the folder of the data}/tinyshakespeare/input.txt
cargo build --release --bin transformer
transformer=target/release/transformer
"$transformer" train --task lm --recipe gpt-tinyshakespeare --data "$text" --out "$out/gpt" --no-progress
"$transformer" generate "$out/gpt" --prompt 'ROMEO:' --length 400 --temperature 0.8 --timing
[ -z "$python" ] || "$python" scripts/references/gpt_tinyshakespeare.py "$text"
