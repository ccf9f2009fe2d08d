#!/usr/bin/env bash
# That training on many images in archives takes no more memory than on few, and goes on exactly after a kill; --help tells the rest.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# By how many MB the peak of the larger set may be above that of the smaller.
allowed=40

usage() {
    cat <<END
usage: scripts/prove_shards.sh CIFAR_ARCHIVE [OUT]

Makes tar shards of 10,000 and of 200,000 images out of CIFAR-10 (its training images four times, under different names), trains LeNet-5
for one epoch on each with a shuffle buffer of 5,000 images, padded crops, RandAugment, mixup and CutMix, and requires that the peak of
memory is at most $allowed MB higher with twenty times the images. Then it begins again on the large set, kills that run with SIGKILL four
times, continues it, and requires the same checkpoint to the byte.

CIFAR_ARCHIVE is a tar.gz with train/CLASS/FILE.jpg. OUT is a folder that does not exist yet (default: a temporary one). In the environment:
CNN, the program (default: it is built), THREADS (default: all cores).

Exit status: 0 it holds, 1 it does not, 2 wrong usage or something is missing.
END
}

take_help "CIFAR's archive" "$@"
(($# <= 2)) || fail_input "give CIFAR's archive and perhaps a folder: --help tells more."
[[ -f $1 ]] || fail_input "there is no archive $1."
archive=$(realpath "$1")
out=${2:-$(mktemp -d)}
if [[ -z ${CNN:-} ]]; then
    build_program cnn
    CNN=$binaries/cnn
fi

mkdir -p "$out/data"
tar -xzf "$archive" -C "$out/data"
# The first images of each class, so many times.
list() {
    echo path,label
    local round
    for ((round = 0; round < $2; round++)); do
        for class in "$out"/data/train/*/; do
            class=${class%/}
            find "$class" -type f | sort | sed -n "1,$1s|\$|,${class##*/}|p"
        done
    done
}
list 1000 1 >"$out/small.csv"
list 5000 4 >"$out/large.csv"
for size in small large; do
    "$CNN" shards "$out/$size.csv" --out "$out/$size" --size 20
done

# The command that trains the run NAME on the shards DATA, in the array `train`.
prepare() {
    train=("$CNN" train --quiet --recipe keras-cnn-cifar10 --model lenet5 --data "$out/$2" --out "$out/run-$1" --epochs 1
        --val-fraction 0 --batch-size 128 --save-every 100 --set data.shuffle_buffer=5000 ${THREADS:+--threads "$THREADS"}
        --set 'data.augment={"crop_padding": 4, "flip": true, "policy": {"name": "rand-augment"}, "mixup": 0.2, "cutmix": 1}')
}
peak() {
    sed -n 's/.*"peak_memory_mb": \([0-9.]*\).*/\1/p' "$out/run-$1/summary.json"
}
say "10,000 images."
prepare small small
"${train[@]}"
say "200,000 images."
prepare large large
"${train[@]}"
awk -v small="$(peak small)" -v large="$(peak large)" -v allowed="$allowed" 'BEGIN { exit !(large - small <= allowed) }' ||
    fail "the peak of memory is $(peak large) MB with 200,000 images and $(peak small) MB with 10,000."

say "killed and continued."
prepare killed large
"${train[@]}" &
last=$!
for pause in 6 5 7 4; do
    sleep "$pause"
    kill -KILL "$last" 2>/dev/null || break
    wait "$last" 2>/dev/null || true
    "$CNN" train --quiet --resume "$out/run-killed" &
    last=$!
done
wait "$last"
for file in model optimizer; do
    cmp "$out/run-large/checkpoints/last/$file.safetensors" "$out/run-killed/checkpoints/last/$file.safetensors" ||
        fail "the run that was killed ends with another $file."
done
say "all holds: a peak of $(peak large) MB with 200,000 images, $(peak small) MB with 10,000; the same checkpoint after four kills."
