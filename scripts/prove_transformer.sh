#!/usr/bin/env bash
# Fine-tunes, pretrains and exports encoders, and holds them against what is known; --help tells the rest.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=python_environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/python_environment.sh"

# The least validation accuracies on SST-2, of the 6,920 sentences and of the whole training file.
required_quick=0.86
required_full=0.90
# By how many nats the loss of hidden tokens must be below their unigram entropy, and the least share of hidden words among the five best.
required_gain=1.0
required_filled=0.30

usage() {
    cat <<END
usage: scripts/prove_transformer.sh quick|full|pretrain|all DATA_FOLDER [PYTHON]

quick     fine-tunes MiniLM-L6-H384 on the 6,920 whole sentences of SST-2 for three epochs (recipe sst2-quick): validation accuracy at
          least $required_quick; then the exports: transformers loads the folder strictly and agrees to 1e-5, with its own tokenizer too, the
          TorchScript module agrees at other batch sizes and lengths, and a training that begins with the exported folder has its accuracy;
          then adapters (LoRA) for one epoch: PEFT loads them, and they agree with the merged weights
full      recipe sst2-full on all 67,349 phrases, three epochs, judged every 500 steps: validation accuracy at least $required_full
pretrain  a small BERT from scratch on Multi30k's English sentences with its own WordPiece vocabulary (recipe bert-mini-mlm): the loss of hidden
          tokens at least $required_gain nats below the unigram entropy of the held-out text; of 200 held-out sentences with one word hidden, that word
          is among the five best of fill in at least $required_filled
all       each of them

DATA_FOLDER holds sst2/, multi30k/ and pretrained/minilm-l6-h384/. PYTHON is one with the packages of benches/pytorch/requirements.txt, and
with peft for the adapters, which are left out without it; without PYTHON an environment is made in target/python.

In the environment: THREADS, the threads of the trainings (default: all cores); FLAGS, further arguments of the trainings (as --precision bf16). Runs
are made in a temporary folder and removed, unless something failed.

Exit status: 0 all holds, 1 something does not, 2 wrong usage or something is missing.
END
}

case ${1:-} in
    --help | -h)
        usage
        exit
        ;;
    quick | full | pretrain | all) part=$1 ;;
    *) fail_input "say what to prove: quick, full, pretrain or all; --help tells more." ;;
esac
[[ -d ${2:-} ]] || fail_input "there is no folder '${2:-}': give the folder with the data."
(($# <= 3)) || fail_input "unknown argument '$4': --help lists what there is."
data=$(cd "$2" && pwd)
find_python "${3:-}"
build_program transformer

work=$(mktemp -d)
trap '[[ $? == 0 ]] && rm -rf "$work" || say "what was made is in $work."' EXIT
transformer=$binaries/transformer
minilm=$data/pretrained/minilm-l6-h384
read -ra further <<<"${FLAGS:-}"
if [[ -n ${THREADS:-} ]]; then
    further+=(--threads "$THREADS")
fi

# require_metric RUN PART METRIC LEAST: a metric of summary.json.
require_metric() {
    "$python" - "$1/summary.json" "$2" "$3" "$4" <<'END' || fail "$3 is below $4."
import json, sys
path, part, metric, least = sys.argv[1:]
value = json.load(open(path))[part][metric]
print(f"{metric}: {value:.4f} (required: {least})")
sys.exit(value < float(least))
END
}

sst2=(--init-from "$minilm" --validation "$data/sst2/dev.tsv" ${further[@]+"${further[@]}"})

quick() {
    say "SST-2, 6,920 sentences."
    "$transformer" train --quiet --recipe sst2-quick "${sst2[@]}" --data "$data/sst2/train_6920.tsv" --out "$work/quick"
    require_metric "$work/quick" best accuracy "$required_quick"
    "$transformer" export "$work/quick" --format hf --out "$work/quick-hf"
    "$transformer" export "$work/quick" --format torchscript --out "$work/quick.pt"
    "$transformer" predict "$work/quick" "$data/sst2/dev.tsv" --format jsonl >"$work/quick.jsonl"
    check=("$python" "$repository/scripts/references/check_transformer_export.py")
    "${check[@]}" "$work/quick-hf" --torchscript "$work/quick.pt" --predictions "$work/quick.jsonl"
    "$transformer" eval "$work/quick-hf" --data "$data/sst2/dev.tsv" --format json >"$work/again.json"
    "$python" - "$work/quick/summary.json" "$work/again.json" <<'END' || fail "the exported folder has another accuracy."
import json, sys
ours, again = (json.load(open(path)) for path in sys.argv[1:])
sys.exit(abs(ours["best"]["accuracy"] - again["metrics"]["accuracy"]) > 1e-9)
END
    say "adapters."
    "$transformer" train --quiet --recipe sst2-quick "${sst2[@]}" --data "$data/sst2/train_6920.tsv" --out "$work/lora" \
        --lora-rank 8 --lr 0.0005 --epochs 1
    require_metric "$work/lora" best accuracy 0.80
    "$transformer" export "$work/lora" --format hf --out "$work/lora-hf"
    "$transformer" export "$work/lora" --format peft --out "$work/lora-peft"
    if "$python" -c 'import peft' 2>/dev/null; then
        "${check[@]}" "$work/lora-hf" --peft "$work/lora-peft" --base "$minilm"
    else
        say "this Python has no peft: the adapters are not checked there."
    fi
}

full() {
    say "SST-2, 67,349 phrases."
    "$transformer" train --quiet --recipe sst2-full "${sst2[@]}" --data "$data/sst2/train.tsv" --out "$work/full"
    require_metric "$work/full" best accuracy "$required_full"
}

pretrain() {
    say "pretraining on Multi30k's English sentences."
    "$transformer" train --quiet --recipe bert-mini-mlm ${further[@]+"${further[@]}"} --data "$data/multi30k/train.en" \
        --validation "$data/multi30k/val.en" --line-by-line --epochs "${EPOCHS:-12}" --out "$work/mlm"
    "$python" "$repository/scripts/references/check_pretraining.py" "$transformer" "$work/mlm" "$data/multi30k/val.en" \
        --gain "$required_gain" --filled "$required_filled"
}

case $part in
    all)
        quick
        pretrain
        full
        ;;
    *) "$part" ;;
esac
say "all holds."
