#!/usr/bin/env bash
# Fine-tunes a TorchScript module, kills and resumes it, and compares it with Python; --help tells the rest.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<END
usage: scripts/prove_torchscript.sh CIFAR_ARCHIVE MODULE PYTHON [OUT]

Fine-tunes MODULE (mobilenet_v3_small for ten classes, scripted, with random weights) on 5,000 images of CIFAR-10 scaled to 64 × 64, and requires

  - that its test accuracy on 1,000 images gains 20 points over its start;
  - that the exported module has that accuracy in Python (within 0.01: its JPEG decoder rounds otherwise);
  - that a training that was killed by SIGKILL in the middle and resumed ends with the same bytes;
  - that a package that PYTHON compiles with AOTInductor computes what Python computes;

and prints latencies of both sides. PYTHON is one with torch, safetensors and pillow. OUT is a folder that does not exist yet (default: a temporary
one). THREADS in the environment sets the threads (default: all cores).

Exit status: 0 it holds, 1 it does not, 2 wrong usage or something is missing.
END
}

case ${1:-} in
    --help | -h)
        usage
        exit
        ;;
esac
(($# >= 3 && $# <= 4)) || fail_input "give CIFAR's archive, the module and a Python: --help tells more."
[[ -f $1 ]] || fail_input "there is no archive $1."
[[ -f $2 ]] || fail_input "there is no module $2."
"$3" -c 'import torch, PIL, safetensors' || fail_input "$3 lacks torch, pillow or safetensors."
archive=$(realpath "$1")
module=$(realpath "$2")
python=$3
out=${4:-$(mktemp -d)}
build_program torchscript
script=$binaries/torchscript
threads=${THREADS:-$(nproc)}

mkdir -p "$out/data"
tar -xzf "$archive" -C "$out"
# The first so many images of each class.
for part in train:500 test:100; do
    for class in "$out/${part%%:*}"/*/; do
        kept=$out/data/${part%%:*}/$(basename "$class")
        mkdir -p "$kept"
        find "$class" -type f | sort | sed -n "1,${part##*:}p" | xargs -I{} mv {} "$kept/"
    done
done
rm -rf "$out/train" "$out/test"

common=(--data "$out/data" --set 'data.image_size=[64,64]' --set 'data.mean=[0.5]' --set 'data.std=[0.5]')
measure() {
    "$script" eval "$@" --split test --format json | "$python" -c 'import json, sys; print(json.load(sys.stdin)["metrics"]["accuracy"])'
}
before=$(measure "$module" "${common[@]}" --threads "$threads")
train=("$script" train "$module" "${common[@]}" --quiet --no-progress --threads "$threads" --epochs 8 --optimizer adam --lr 0.002 --save-every 100)
"${train[@]}" --out "$out/whole"
after=$(measure "$out/whole" --threads "$threads")
say "test accuracy $before before, $after after"
"$python" -c "import sys; sys.exit(not $after - $before >= 0.2)" || fail "that is a gain of less than 20 points."

"$script" export "$out/whole" --format torchscript --out "$out/tuned.pt"
there=$("$python" "$repository/scripts/references/check_module.py" accuracy "$out/tuned.pt" "$out/data/test" 64)
say "the exported module in Python: $there"
# Pillow's JPEG decoder rounds colours otherwise, which may tip a few images.
"$python" -c "import sys; sys.exit(not abs($there - $after) <= 0.01)" || fail "Python finds another accuracy."

"${train[@]}" --out "$out/killed" &
until [[ -d $out/killed/checkpoints/last ]]; do sleep 0.2; done
sleep 2
kill -9 $! && wait $! 2>/dev/null || true
"$script" train --quiet --no-progress --resume "$out/killed"
for file in last/model last/optimizer best/model; do
    cmp "$out/whole/checkpoints/$file.safetensors" "$out/killed/checkpoints/$file.safetensors" || fail "the resumed run ends with other bytes."
done
say "killed and resumed: the same bytes"

"$python" "$repository/scripts/references/check_module.py" package "$out"
"$script" run "$out/net.pt2" --input "$out/net.safetensors#x" --check "$out/net.safetensors" --rtol 1e-5 --atol 1e-5
"$script" info "$out/net.pt2" | sed -n 1,4p

"$script" bench "$module" --input x=random:1x3x64x64 --batch 1,8,32 --threads "$threads" --freeze
"$python" "$repository/scripts/references/check_module.py" time "$module" 64 1,8,32 "$threads"
say "all of it holds; everything is in $out"
