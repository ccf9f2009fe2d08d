#!/usr/bin/env bash
# Trains a translator on Multi30k and scores its translations, greedily and with a beam of 5; --help tells the rest.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'END'
usage: scripts/prove_translation.sh DATA_FOLDER [RECIPE]

DATA_FOLDER holds multi30k/ with train, val and test_2016_flickr, each .en and .de. Trains RECIPE (default: multi30k-en-de, 8 epochs, about 40
minutes on two cores), prints BLEU, chrF and TER of test_2016_flickr greedily and with a beam of 5, and ten translations beside source and
reference.

In the environment: RUNS, the folder of the run (default: a temporary one), and FLAGS, further arguments of `transformer train`.

Exit status: 0 it was trained and scored, 1 something failed, 2 wrong usage or something is missing.
END
}

take_help "the folder of the data" "$@"
(($# <= 2)) || fail_input "unknown argument '$3': --help lists what there is."
[[ -d $1/multi30k ]] || fail_input "$1 has no folder multi30k."
data=$(realpath "$1/multi30k")
recipe=${2:-multi30k-en-de}
read -ra flags <<<"${FLAGS:-}"
build_program transformer
run=${RUNS:-$(mktemp -d)}/translation
"$binaries/transformer" train --task translate --recipe "$recipe" --data "$data" --out "$run" --no-progress "${flags[@]}"
"$binaries/transformer" eval "$run"
"$binaries/transformer" eval "$run" --set model.search.beam=5
head -10 "$data/test_2016_flickr.en" | "$binaries/transformer" translate "$run" --beam 5 |
    paste -d '\n' <(head -10 "$data/test_2016_flickr.en") - <(head -10 "$data/test_2016_flickr.de")
