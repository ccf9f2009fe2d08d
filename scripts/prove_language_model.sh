#!/usr/bin/env bash
# Trains gpt-tinyshakespeare on the whole text, beside PyTorch on the same recipe; --help tells the rest.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=python_environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/python_environment.sh"

usage() {
    cat <<'END'
usage: scripts/prove_language_model.sh DATA_FOLDER [PYTHON]

DATA_FOLDER holds tinyshakespeare/input.txt. PYTHON is one with the packages of benches/pytorch/requirements.txt and transformers; without it an
environment is made in target/python. Trains the recipe gpt-tinyshakespeare, prints a text that the model writes, and PyTorch's validation loss
on the same recipe. Requires a validation loss of at most 1.92 nats per character over the last tenth of the text.

RUNS in the environment is the folder of the run (default: a temporary one).

Exit status: 0 it holds, 1 it does not, 2 wrong usage or something is missing.
END
}

take_help "the folder of the data" "$@"
(($# <= 2)) || fail_input "unknown argument '$3': --help lists what there is."
text=$1/tinyshakespeare/input.txt
[[ -f $text ]] || fail_input "$1 has no tinyshakespeare/input.txt."
text=$(realpath "$text")
find_python "${2:-}"
build_program transformer
run=${RUNS:-$(mktemp -d)}/gpt-tinyshakespeare
"$binaries/transformer" train --task lm --recipe gpt-tinyshakespeare --data "$text" --out "$run" --no-progress
"$binaries/transformer" generate "$run" --prompt 'ROMEO:' --length 58 --temperature 0.8 --timing
say "PyTorch's same recipe:"
"$python" "$repository/scripts/references/gpt_tinyshakespeare.py" "$text"
loss=$("$python" -c 'import json, sys; print(json.load(open(sys.argv[1]))["best"]["loss"])' "$run/summary.json")
"$python" -c 'import sys; sys.exit(float(sys.argv[1]) > 1.92)' "$loss" || fail "the validation loss is $loss, above 1.92."
say "the validation loss is $loss."
