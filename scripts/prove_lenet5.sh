#!/usr/bin/env bash
# Trains LeNet-5 on MNIST here and in PyTorch, and compares; --help tells the rest.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=python_environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/python_environment.sh"

# The least test accuracy of the best checkpoint.
required=0.990

usage() {
    cat <<END
usage: scripts/prove_lenet5.sh MNIST_FOLDER [PYTHON]

Trains the recipe lenet5-mnist and then the same network in PyTorch, from the same initial weights with the same batches
and the same schedule, and prints the test accuracy of both, of the best checkpoint by the recipe's validation metric and
of the last. Requires that

  the initial weights are those of PyTorch under the recipe's seed, to the last bit;
  the losses of the first 20 steps agree to 1e-4;
  the suite's test accuracy, best checkpoint, is at least $required;
  PyTorch loads both exports: the same outputs to 1e-5 at other batch sizes, named parameters, a step of training.

MNIST_FOLDER holds the four official files, gzipped or not. PYTHON is one with the packages of
benches/pytorch/requirements.txt; without it an environment is made in target/python.

THREADS in the environment sets the threads of both (default: all cores). The run is made in a temporary folder and
removed, unless something failed.

Exit status: 0 all holds, 1 something does not, 2 wrong usage or something is missing.
END
}

take_help "the folder of MNIST's files" "$@"
(($# <= 2)) || fail_input "unknown argument '$3': --help lists what there is."
[[ -d $1 ]] || fail_input "there is no folder $1."
mnist=$(cd "$1" && pwd)
find_python "${2:-}"
build_program cnn

work=$(mktemp -d)
trap '[[ $? == 0 ]] && rm -rf "$work" || say "what was made is in $work."' EXIT
train=("$binaries/cnn" train --quiet --recipe lenet5-mnist --data "$mnist")
if [[ -n ${THREADS:-} ]]; then
    train+=(--threads "$THREADS")
fi

say "training in the suite."
# A rate of 0 changes nothing: what this saves are the initial weights.
"${train[@]}" --steps 1 --lr 0 --out "$work/initial" >/dev/null
"${train[@]}" --set training.log_every=1 --out "$work/run"
say "training in PyTorch."
"$python" "$repository/scripts/references/lenet5_mnist.py" "$work/run" "$mnist" \
    --initial-weights "$work/initial/checkpoints/last/model.safetensors"

say "exports."
"$binaries/cnn" export "$work/run" --format torchscript --out "$work/lenet5.pt"
"$binaries/cnn" export "$work/run" --format safetensors --out "$work/lenet5.safetensors"
"$python" "$repository/scripts/references/check_export.py" "$work/run" "$work/lenet5.pt" "$work/lenet5.safetensors"

"$python" - "$work/run/summary.json" "$required" <<'END' || fail "the suite's test accuracy is below $required."
import json, sys
sys.exit(json.load(open(sys.argv[1]))["test"]["accuracy"] < float(sys.argv[2]))
END
say "all holds."
