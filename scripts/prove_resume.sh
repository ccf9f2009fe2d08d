#!/usr/bin/env bash
# Proof of exact resume by many kills; --help tells the rest.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'END'
usage: scripts/prove_resume.sh [KILLS] [SEED] [KIND]

Trains small networks in nine ways (momentum and dropout; averaged weights and a plateau schedule; accumulation with a ragged end
of the epoch; bfloat16; float16 with loss scaling; batch normalisation; ResNet-20 with padded crops and averaged weights; with every
variation, mixing and repeats; Adam with a schedule, warm-up and clipping), or in those whose names in tests/resume.rs hold the text KIND, and kills each
training with SIGKILL again and again (before the first save, during saves and
evaluations, in the last step, after the last save, twice running, at random) and resumes it. In the end all checkpoints must be
those of an undisturbed run to the byte, and metrics.jsonl must hold every step once. Goes on until there have been KILLS kills
(40 by default) and every kind of training has been killed at every one of these moments; SEED (0 by default) draws the moments.

Exit status: 0 proved, 1 some run ended differently, 2 wrong usage or something is missing.
END
}

case ${1:-} in
    --help | -h)
        usage
        exit
        ;;
esac
for number in "${@:1:2}"; do
    [[ $number =~ ^[0-9]+$ ]] || fail_input "'$number' is no number: --help tells what there is."
done
(($# <= 3)) || fail_input "too many arguments: --help tells what there is."
require_cargo
cd "$repository"
export TCH_SUITE_KILLS=${1:-40} TCH_SUITE_SEED=${2:-0} TCH_SUITE_KIND=${3:-}
say "$TCH_SUITE_KILLS kills, seed $TCH_SUITE_SEED${3:+, kinds with '$3' in their names}"
cargo test --release --test suite -- --ignored --exact resume::many_kills --nocapture ||
    fail "a resumed run did not end as the undisturbed one: its folder is named above."
