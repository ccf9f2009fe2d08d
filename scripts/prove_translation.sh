#!/usr/bin/env bash
# Trains translators on Multi30k and holds their BLEU against what is known; --help tells the rest.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# The least BLEU on test_2016_flickr.
required_quick=32.35
required_best=36

usage() {
    cat <<END
usage: scripts/prove_translation.sh quick|best|all DATA_FOLDER

quick     trains multi30k-en-de, 8 epochs, about ten minutes on two cores: BLEU of greedy translations at least $required_quick (PyTorch on the same
          recipe: 33.05)
best      trains multi30k-en-de-tiny, about half an hour: BLEU with a beam of 5 and the mean of the last ten checkpoints at least $required_best
all       both

Prints BLEU, chrF and TER of test_2016_flickr, and ten translations beside source and reference. DATA_FOLDER holds multi30k/ with train, val and
test_2016_flickr, each .en and .de.

In the environment: RUNS, the folder of the runs (default: a temporary one), and FLAGS, further arguments of \`transformer train\`.

Exit status: 0 it holds, 1 it does not, 2 wrong usage or something is missing.
END
}

case ${1:-} in
    --help | -h)
        usage
        exit
        ;;
    quick | best | all) part=$1 ;;
    *) fail_input "say what to prove: quick, best or all; --help tells more." ;;
esac
(($# <= 2)) || fail_input "unknown argument '$3': --help lists what there is."
[[ -d ${2:-}/multi30k ]] || fail_input "'${2:-}' has no folder multi30k."
data=$(realpath "$2/multi30k")
read -ra flags <<<"${FLAGS:-}"
build_program transformer
transformer=$binaries/transformer
runs=${RUNS:-$(mktemp -d)}

# Trains a recipe, shows what it translates, and requires a BLEU of it.
prove() {
    local recipe=$1 checkpoint=$2 beam=$3 least=$4 run=$runs/$1 scores began=$SECONDS
    "$transformer" train --task translate --recipe "$recipe" --data "$data" --out "$run" --no-progress "${flags[@]}"
    say "$recipe: trained in $(((SECONDS - began) / 60)) min"
    scores=$("$transformer" eval "$run" --checkpoint "$checkpoint" --set "model.search.beam=$beam")
    printf '%s\n' "$scores"
    sed -n 1,10p "$data/test_2016_flickr.en" | "$transformer" translate "$run" --checkpoint "$checkpoint" --beam "$beam" |
        paste -d '\n' <(sed -n 1,10p "$data/test_2016_flickr.en") - <(sed -n 1,10p "$data/test_2016_flickr.de")
    awk -v least="$least" '$1 == "bleu" { found = 1; exit ($2 < least) } END { if (!found) exit 1 }' <<<"$scores" ||
        fail "$recipe: BLEU is below $least."
}

[[ $part == best ]] || prove multi30k-en-de best 1 "$required_quick"
[[ $part == quick ]] || prove multi30k-en-de-tiny average:10 5 "$required_best"
say "all of it holds; the runs are in $runs"
