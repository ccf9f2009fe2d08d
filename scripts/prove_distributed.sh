#!/usr/bin/env bash
# Proof of what is promised of training on several processes; --help tells the rest.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'END'
usage: scripts/prove_distributed.sh [--python PYTHON] [--bench PROGRAM.py] [PART...]

PARTs (all of them by default; those that lack something are skipped and say so):

  quick     the tests of tests/distributed.rs: 1, 2 and 4 processes, resuming on other numbers, failures, started in four ways
  resnet    ResNet-20 with synchronised batch normalisation on made images, 1 process x 128, 2 x 64, 4 x 32, with and without
            accumulation: float64 within 1e-9 over 50 steps; float32 within 1e-5 for 5 steps and then no further apart than
            3 times what one process with another order of sums is
  minilm    the same of fine-tuning MiniLM on SST-2, 1 x 32, 2 x 16, 4 x 8, without dropout
  kills     SIGKILL of each rank in turn at random moments, 2 and 3 processes, with restarts: the bytes of an undisturbed run
  torchrun  the same bytes under torchrun, also after a kill with --max-restarts
  hosts     two network namespaces joined by a pair of virtual devices as two hosts: trains; the cable is cut, both end within the
            timeout with a sentence; the cable is back, and the run goes on to the same bytes (needs root)
  scaling   ResNet-20 on 2 processes x 1 thread, alternating with PROGRAM.py, which prints one JSON line with `efficiency` and
            `efficiency_vs_indep` (DistributedDataParallel on Gloo); overlap on against off

--python PYTHON     a Python with torch 2.13, for `torchrun`, `scaling` and the mixed group of `quick` [default: python3]
--bench PROGRAM.py  what `scaling` compares with

The larger data are those of TCH_SUITE_DATA. TCH_SUITE_STEPS, TCH_SUITE_BATCH, TCH_SUITE_KILLS and TCH_SUITE_SEED change the lengths of the proofs.

Exit status: 0 proved, 1 something is not as promised, 2 wrong usage or something is missing.
END
}

bench=
parts=()
export TCH_SUITE_PYTHON=${TCH_SUITE_PYTHON:-python3}
while (($# > 0)); do
    case $1 in
        --help | -h)
            usage
            exit
            ;;
        --python | --bench)
            (($# > 1)) || fail_input "$1 needs a value: --help tells what there is."
            if [[ $1 == --python ]]; then TCH_SUITE_PYTHON=$2; else bench=$2; fi
            shift
            ;;
        quick | resnet | minilm | kills | torchrun | hosts | scaling) parts+=("$1") ;;
        *) fail_input "unknown argument '$1': --help lists what there is." ;;
    esac
    shift
done
((${#parts[@]} > 0)) || parts=(quick resnet minilm kills torchrun hosts scaling)
[[ -z $bench || -f $bench ]] || fail_input "there is no file $bench: give --bench a program."
require_cargo
cd "$repository"
# Processes that wait for each other must not keep the cores busy.
export OMP_WAIT_POLICY=passive

# proof TEST: runs one of the long tests.
proof() {
    cargo test --release --test suite -- --ignored --exact "distributed::$1" --nocapture ||
        fail "$1 failed: the lines above say in what."
}

# number KEY: a number from the JSON on stdin.
number() {
    tr -d ' \n' | sed -n "s/.*\"$1\":\([-+0-9.eE]*\).*/\1/p"
}

scaling() {
    [[ -n $bench ]] || {
        say "scaling: skipped, because no --bench is given."
        return
    }
    cargo build --release --bin cnn
    local own theirs round
    for round in 1 2 3; do
        own=$("${CARGO_TARGET_DIR:-target}/release/cnn" bench-distributed --recipe resnet20-cifar10 --data "${TCH_SUITE_DATA:?}/cifar10/cifar10-jpeg.tar.gz" \
            --processes 2 --threads 1 --batch-size 64 --steps 20 --format json)
        theirs=$(cd "$(dirname "$bench")" && "$TCH_SUITE_PYTHON" "$(basename "$bench")" --steps 20)
        say "scaling, round $round: together $(number together <<<"$own") samples/s, without overlap $(number without_overlap <<<"$own"), alone $(number alone <<<"$own"); efficiency $(number efficiency <<<"$own") (PyTorch: $(number efficiency <<<"$theirs")), against independent processes $(number efficiency_vs_independent <<<"$own") (PyTorch: $(number efficiency_vs_indep <<<"$theirs"))"
    done
}

for part in "${parts[@]}"; do
    say "$part."
    case $part in
        quick) cargo test --release --test suite -- distributed:: || fail "a test failed: the lines above say in what." ;;
        resnet) proof proof_equality_of_resnet ;;
        minilm) proof proof_equality_of_minilm ;;
        kills) proof proof_of_many_kills ;;
        torchrun) proof proof_of_torchrun ;;
        hosts) proof proof_of_two_hosts ;;
        scaling) scaling ;;
    esac
done
say "done."
