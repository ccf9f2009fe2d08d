#!/usr/bin/env bash
# Trains every family on a GPU and compares with the CPU; --help tells the rest.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# The programs that are checked, each with its default recipe and the data compiled into it.
families=(cnn)

# Largest relative difference between GPU and CPU (the CPU always in fp32), by precision. It is taken on the mean loss of
# ten steps: an update that the fp16 scaler skips shifts what follows by a step, which is no error. In fp32 the GPU's
# convolutions may round to TF32, which has the 10 bits of fp16; bf16 has 7.
precisions=(fp32 bf16 fp16)
tolerances=(0.02 0.05 0.05)
window=10

# Steps before and after the interruption that --resume mends, and of the fine-tuning.
first_steps=30
all_steps=60
fine_tuning_steps=10

usage() {
    cat <<END
usage: scripts/check_cuda.sh

On a machine with an NVIDIA GPU: builds with the CUDA set of libtorch (a LIBTORCH that is set is honoured) and, for each
of ${families[*]}, in ${precisions[*]}:

  trains $first_steps steps with --device cuda and resumes to $all_steps; no step is missing or there twice;
  compares the mean loss of every $window steps with a CPU run of the same seed (relative difference at most
    ${tolerances[*]});
  evaluates the checkpoint on the GPU and on the CPU (same tolerance);
  in fp16, finds a loss scale in every line of metrics.jsonl;
  fine-tunes from it for $fine_tuning_steps steps, which must begin at a lower loss than training from scratch did.

The runs are made in a temporary folder and removed, unless something failed.

Exit status: 0 all passed, 1 something failed, 77 there is no usable GPU, 2 wrong usage or something is missing.
END
}

# no_gpu SENTENCE
no_gpu() {
    printf '%s: %s\n' "$program" "$1" >&2
    exit 77
}

# require_gpu: a driver that lists a GPU; nvidia-smi comes with the driver, but not into every container.
require_gpu() {
    if command -v nvidia-smi >/dev/null; then
        nvidia-smi -L 2>/dev/null | grep -q '^GPU' ||
            no_gpu "skipped, because nvidia-smi lists no GPU on this machine."
    elif [[ ! -e /dev/nvidia0 ]]; then
        no_gpu "skipped, because this machine has no NVIDIA driver (neither nvidia-smi nor /dev/nvidia0)."
    fi
}

# cuda_fact KEY: a truth value from the doctor's part on CUDA.
cuda_fact() {
    "$binaries/${families[0]}" doctor --format json | sed -n "s/^ *\"$1\": *\([a-z]*\).*/\1/p"
}

# losses RUN: a line "STEP LOSS" for each training line of metrics.jsonl.
losses() {
    awk '
        function number(key) {
            return match($0, "\"" key "\": *[-+0-9.eE]+") ? substr($0, RSTART + length(key) + 3, RLENGTH - length(key) - 3) + 0 : "none"
        }
        /"split": *"train"/ { print number("step"), number("loss") }' "$1/metrics.jsonl"
}

# compare_losses RUN REFERENCE TOLERANCE: prints the largest difference; fails if it is too large or steps are not 1, 2, ...
compare_losses() {
    paste -d ' ' <(losses "$1") <(losses "$2") | awk -v tolerance="$3" -v steps="$all_steps" -v window="$window" '
        BEGIN { largest = -1 }
        $1 != NR || $3 != NR { print "line " NR " is step " $1 " here and step " $3 " on the CPU"; bad = 1; exit }
        $2 == "none" || $4 == "none" { print "step " $1 " has no finite loss"; bad = 1; exit }
        { here += $2; there += $4 }
        NR % window == 0 {
            difference = here > there ? here - there : there - here
            if (difference > largest * there) { largest = difference / there; at = NR }
            here = there = 0
        }
        END {
            if (bad) exit 1
            if (NR != steps) { print NR " steps instead of " steps; exit 1 }
            printf "losses differ by at most %.2g (in the %d steps to %d; allowed: %g)\n", largest, window, at, tolerance
            exit !(largest <= tolerance)
        }'
}

# evaluation RUN DEVICE: the loss on the run's data.
evaluation() {
    "$binaries/$family" eval "$1" --device "$2" --format json | tr -d ' \n' | sed -n 's/.*"metrics":{[^}]*"loss":\([-+0-9.eE]*\).*/\1/p'
}

# compare_evaluations RUN TOLERANCE
compare_evaluations() {
    local on_gpu on_cpu
    on_gpu=$(evaluation "$1" cuda)
    on_cpu=$(evaluation "$1" cpu)
    awk -v a="$on_gpu" -v b="$on_cpu" -v tolerance="$2" 'BEGIN {
        if (a == "" || b == "") { print "an evaluation has no loss"; exit 1 }
        difference = (a > b ? a - b : b - a) / b
        printf "evaluations differ by %.2g (%g on the GPU, %g on the CPU)\n", difference, a, b
        exit !(difference <= tolerance)
    }'
}

# scaled RUN: whether every training line reports a positive loss scale.
scaled() {
    awk '
        /"split": *"train"/ { lines++; if (match($0, /"loss_scale": *[1-9]/)) scaled++ }
        END { printf "%d of %d lines report a loss scale\n", scaled, lines; exit !(lines > 0 && scaled == lines) }' "$1/metrics.jsonl"
}

# begins_lower RUN SCRATCH: whether the first loss of a run is below that of another.
begins_lower() {
    local here there
    here=$(losses "$1" | sed -n '1s/.* //p')
    there=$(losses "$2" | sed -n '1s/.* //p')
    awk -v here="$here" -v there="$there" 'BEGIN {
        printf "fine-tuning begins at loss %g, training from scratch began at %g\n", here, there
        exit !(here != "" && here != "none" && here + 0 < there + 0)
    }'
}

# result COMMAND...: runs a comparison that prints one line, and counts it.
result() {
    local line
    if line=$("$@"); then
        passed=$((passed + 1))
        say "$family $precision: $line"
    else
        failed=$((failed + 1))
        say "$family $precision: FAILED: ${line:-$1 gave nothing}"
    fi
}

# run_train ARGUMENT...: what it says goes into a log, of which one sees the end if it fails.
run_train() {
    "$binaries/$family" train --quiet "$@" >>"$runs/log" 2>&1 || {
        tail -n 3 "$runs/log" >&2
        fail "$family train $* failed: see the lines above."
    }
}

# train RUN DEVICE PRECISION: in two parts.
train() {
    run_train --seed 1 --set training.log_every=1 --device "$2" --precision "$3" --steps "$first_steps" --out "$1"
    run_train --resume "$1" --steps "$all_steps"
}

case ${1:-} in
    '') ;;
    --help | -h)
        usage
        exit
        ;;
    *) fail_input "unknown argument '$1': --help lists what there is." ;;
esac

require_gpu
require_cargo
"$repository/scripts/setup.sh" --cuda
say "building ${families[*]}."
build=(cargo build --release)
for family in "${families[@]}"; do
    build+=(--bin "$family")
done
(cd "$repository" && "${build[@]}")

[[ $(cuda_fact linked) == true ]] || fail "the programs were built without CUDA: look into what cargo build says."
[[ $(cuda_fact usable) == true ]] ||
    no_gpu "skipped, because libtorch cannot use the GPU or its driver ('$binaries/${families[0]} doctor' tells why)."

runs=$(mktemp -d)
passed=0
failed=0
trap '[[ $? != 0 ]] && say "the runs are in $runs." || rm -rf "$runs"' EXIT
for family in "${families[@]}"; do
    say "$family: the reference on the CPU."
    reference=$runs/$family-cpu
    train "$reference" cpu fp32
    for number in "${!precisions[@]}"; do
        precision=${precisions[number]}
        tolerance=${tolerances[number]}
        run=$runs/$family-$precision
        train "$run" cuda "$precision"
        result compare_losses "$run" "$reference" "$tolerance"
        result compare_evaluations "$run" "$tolerance"
        if [[ $precision == fp16 ]]; then
            result scaled "$run"
        fi
        run_train --seed 1 --set training.log_every=1 --device cuda --precision "$precision" --steps "$fine_tuning_steps" \
            --init-from "$run" --out "$run-fine-tuned"
        result begins_lower "$run-fine-tuned" "$run"
    done
done
say "$passed passed, $failed failed"
((failed == 0))
