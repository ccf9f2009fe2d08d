#!/usr/bin/env bash
# Whether mixup, CutMix and RandAugment help ResNet-20 on CIFAR-10 after the same epochs; --help tells the rest.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'END'
usage: scripts/prove_augmentation.sh CIFAR_ARCHIVE [OUT]

Trains the recipe resnet20-cifar10 twice with the same epochs, images and seed, with the rate divided by 10 after three and
after four fifths of them:

  plain  padded crops and mirroring, as the recipe has them;
  mixed  these, and RandAugment, mixup (0.2) and CutMix (1).

Validates on the last 100 images of each class, tells the test accuracy of both with their best checkpoints, and writes compare.html with their
curves.

CIFAR_ARCHIVE is a tar.gz with train/CLASS/FILE.jpg and test/CLASS/FILE.jpg. OUT is a folder that does not exist yet (default: a
temporary one). In the environment: EPOCHS (50), EACH, the number of training images of each class (500, at most
4900: little data is what augmentation is for), FLAGS, further arguments of `cnn train` for both, and CNN, the program (default: it is built).

Exit status: 0 both were trained, 1 something failed, 2 wrong usage or something is missing.
END
}

take_help "CIFAR's archive" "$@"
(($# <= 2)) || fail_input "give CIFAR's archive and perhaps a folder: --help tells more."
[[ -f $1 ]] || fail_input "there is no archive $1."
archive=$(realpath "$1")
out=${2:-$(mktemp -d)}
epochs=${EPOCHS:-50} each=${EACH:-500}
read -ra flags <<<"${FLAGS:-}"
if [[ -z ${CNN:-} ]]; then
    build_program cnn
    CNN=$binaries/cnn
fi

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
        rows "$class" 1 "$each" "$label,train"
        rows "$class" 4901 5000 "$label,val"
        rows "$out/data/test/$label" 1 1000 "$label,test"
    done
} >"$out/data/list.csv"

train() {
    local name=$1
    shift
    say "$name, $epochs epochs of $((10 * each)) images."
    "$CNN" train --quiet --recipe resnet20-cifar10 --data "$out/data/list.csv" --out "$out/$name" --epochs "$epochs" \
        --set "training.schedule={\"name\": \"multi-step\", \"milestones\": [$((epochs * 3 / 5)), $((epochs * 4 / 5))], \"gamma\": 0.1}" \
        --set data.cache_mb=200 ${flags[@]+"${flags[@]}"} "$@"
}
train plain
train mixed --set 'data.augment={"crop_padding": 4, "flip": true, "policy": {"name": "rand-augment"}, "mixup": 0.2, "cutmix": 1}'
"$CNN" compare "$out/plain" "$out/mixed" --out "$out/compare.html"

accuracy() {
    sed -n '/"test": {/,/}/s/.*"accuracy": \([0-9.]*\).*/\1/p' "$out/$1/summary.json"
}
say "test accuracy $(accuracy plain) plain, $(accuracy mixed) mixed; $out/compare.html."
