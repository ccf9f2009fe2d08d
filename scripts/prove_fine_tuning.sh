#!/usr/bin/env bash
# Fine-tunes EfficientNet-Lite0 on a part of CIFAR-10, and trains it from scratch beside; --help tells the rest.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# By how much fine-tuning must beat training from scratch, in test accuracy.
required=0.10

usage() {
    cat <<END
usage: scripts/prove_fine_tuning.sh CIFAR_ARCHIVE WEIGHTS [OUT]

Trains the recipe efficientnet-lite0-finetune on 5,000 images of CIFAR-10 (500 of each class, scaled to 96 × 96) three times with
the same number of steps, chooses by 500 others, and tests on 1,000:

  tuned     from the given ImageNet weights, everything learns;
  head      from the same weights, the head alone learns on features that are computed once;
  scratch   from fresh weights.

Requires that \`tuned\` beats \`scratch\` by $required in test accuracy, and writes compare.html with the curves of all three.

CIFAR_ARCHIVE is a tar.gz with train/CLASS/FILE.jpg and test/CLASS/FILE.jpg; WEIGHTS is efficientnet-lite0-57934424.pth or another file
with its tensors. OUT is a folder that does not exist yet (default: a temporary one). THREADS in the environment sets the threads
(default: all cores).

Exit status: 0 it holds, 1 it does not, 2 wrong usage or something is missing.
END
}

take_help "CIFAR's archive and the weights" "$@"
(($# >= 2 && $# <= 3)) || fail_input "give CIFAR's archive, the weights and perhaps a folder: --help tells more."
[[ -f $1 ]] || fail_input "there is no archive $1."
[[ -f $2 ]] || fail_input "there is no file $2."
archive=$(realpath "$1")
weights=$(realpath "$2")
out=${3:-$(mktemp -d)}
build_program cnn

mkdir -p "$out/data"
tar -xzf "$archive" -C "$out/data"
# The files of a folder from one number to another, as rows that end with the given cells.
rows() {
    find "$1" -type f | sort | sed -n "$2,$3s|^$out/data/\(.*\)|\1,$4|p"
}
{
    echo path,label,split
    for class in "$out"/data/train/*/; do
        class=${class%/}
        label=${class##*/}
        rows "$class" 1 500 "$label,train"
        rows "$class" 501 550 "$label,val"
        rows "$out/data/test/$label" 1 100 "$label,test"
    done
} >"$out/data/list.csv"

train=("$binaries/cnn" train --quiet --recipe efficientnet-lite0-finetune --data "$out/data/list.csv")
if [[ -n ${THREADS:-} ]]; then
    train+=(--threads "$THREADS")
fi
say "the head alone, on features that are computed once."
"${train[@]}" --init-from "$weights" --freeze-backbone --set data.augment.flip=false --out "$out/head"
say "everything, from the ImageNet weights."
"${train[@]}" --init-from "$weights" --out "$out/tuned"
say "everything, from fresh weights."
"${train[@]}" --head-lr-scale 1 --lr 0.001 --out "$out/scratch"
"$binaries/cnn" compare "$out/tuned" "$out/head" "$out/scratch" --out "$out/compare.html"

accuracy() {
    sed -n '/"test": {/,/}/s/.*"accuracy": \([0-9.]*\).*/\1/p' "$out/$1/summary.json"
}
awk -v tuned="$(accuracy tuned)" -v scratch="$(accuracy scratch)" -v required="$required" 'BEGIN { exit !(tuned - scratch >= required) }' ||
    fail "fine-tuning reaches $(accuracy tuned) and training from scratch $(accuracy scratch): not $required more."
say "all holds: $(accuracy tuned) against $(accuracy scratch) from scratch, $(accuracy head) with the head alone; $out/compare.html."
