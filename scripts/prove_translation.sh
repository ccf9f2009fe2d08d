#!/usr/bin/env bash
# Trains multi30k-en-de (8 epochs, about 40 minutes on two cores), and scores its translations of test_2016_flickr, greedily and with a beam of 5.
#
#   TCH_SUITE_DATA=DATA scripts/prove_translation.sh [--recipe NAME] [--out FOLDER] [FLAG OF train]...
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(mktemp -d) recipe=multi30k-en-de flags=()
while [ $# -gt 0 ]; do
  case "$1" in
    --out) out=$2; shift 2 ;;
    --recipe) recipe=$2; shift 2 ;;
    *) flags+=("$1"); shift ;;
  esac
done
data=${TCH_SUITE_DATA:?TCH_SUITE_DATA names the folder of the data}/multi30k
cargo build --release --bin transformer
transformer=target/release/transformer
"$transformer" train --recipe "$recipe" --data "$data" --out "$out/$recipe" --no-progress "${flags[@]}"
"$transformer" eval "$out/$recipe"
"$transformer" translate "$out/$recipe" --beam 5 < "$data/test_2016_flickr.en" > "$out/translations.de"
head -10 "$out/translations.de" | paste -d '\n' <(head -10 "$data/test_2016_flickr.en") - <(head -10 "$data/test_2016_flickr.de")
"$transformer" eval "$out/$recipe" --set model.search.beam=5
