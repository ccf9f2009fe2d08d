#!/usr/bin/env bash
# Checks in Python what `transformer export` writes of translators and language models; --help tells the rest.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=python_environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/python_environment.sh"

usage() {
    cat <<'END'
usage: scripts/prove_decoder_exports.sh [PYTHON]

Trains a small translator of number words and small language models (GPT-2, LLaMA, with and without adapters), exports them, and checks in Python: decoding with
the TorchScript encoder and step gives the program's translations, a step with its cache gives transformers' scores, PEFT puts the adapters onto their base.
PYTHON is one with the packages of benches/pytorch/requirements.txt, tokenizers, and peft and accelerate for the adapters, which are left out without
them; without PYTHON an environment is made in target/python. Takes a minute or two.

Exit status: 0 all holds, 1 something does not, 2 wrong usage or something is missing.
END
}

take_help "" "$@"
(($# <= 1)) || fail_input "unknown argument '$2': --help lists what there is."
find_python "${1:-}"
build_program transformer
transformer=$binaries/transformer
references=$repository/scripts/references
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

say "a translator."
"$python" - "$work" <<'END'
import json, random, sys
from pathlib import Path

work = Path(sys.argv[1])
words = dict(one="eins", two="zwei", three="drei", four="vier", five="fünf", six="sechs", seven="sieben", eight="acht")
random.seed(0)
(work / "pairs").mkdir()
for part, count in (("train", 1500), ("val", 50)):
    rows = [random.choices(list(words), k=random.randint(1, 6)) for _ in range(count)]
    (work / "pairs" / f"{part}.en").write_text("".join(" ".join(row) + "\n" for row in rows))
    (work / "pairs" / f"{part}.de").write_text("".join(" ".join(words[word] for word in row) + "\n" for row in rows))
shared = dict(threads=2, clip_norm=1.0, warmup=20)
translate = dict(
    name="numbers",
    model=dict(task="translate", search=dict(beam=1, max_length=24),
               config=dict(model_type="transformer", d_model=32, nhead=4, num_encoder_layers=2, num_decoder_layers=2,
                           dim_feedforward=64, dropout=0.1, max_length=40, norm_first=True)),
    data=dict(source="en", target="de", max_length=40, tokenizer=dict(kind="bpe", vocab_size=300)),
    training=dict(epochs=6, batch_size=16, optimizer=dict(name="adam", lr=0.003), **shared),
)
(work / "translate.json").write_text(json.dumps(translate))
models = dict(
    gpt2=dict(model_type="gpt2", vocab_size=0, n_positions=64, n_embd=32, n_layer=2, n_head=2),
    llama=dict(model_type="llama", vocab_size=0, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
               num_key_value_heads=2, max_position_embeddings=64),
)
for name, config in models.items():
    recipe = dict(name=name, model=dict(task="lm", config=config), data=dict(builtin="shakespeare-mini", tokenizer=dict(kind="characters"), block=32),
                  training=dict(steps=150, batch_size=16, optimizer=dict(name="adamw", lr=0.003), **shared))
    (work / f"{name}.json").write_text(json.dumps(recipe))
END
"$transformer" train --quiet --recipe "$work/translate.json" --data "$work/pairs" --out "$work/translator"
"$transformer" export "$work/translator" --format torchscript --out "$work/scripts"
"$transformer" translate "$work/translator" --beam 1 --format jsonl "$work/pairs/val.en" >"$work/translations.jsonl"
"$python" "$references/check_translation_scripts.py" "$work/scripts" --run "$work/translator" --source "$work/pairs/val.en" \
    --translations "$work/translations.jsonl"

for name in gpt2 llama; do
    say "$name."
    "$transformer" train --quiet --recipe "$work/$name.json" --out "$work/$name"
    "$transformer" export "$work/$name" --format torchscript --out "$work/$name.pt"
    "$transformer" export "$work/$name" --format hf --out "$work/$name-hf"
    "$python" "$references/check_translation_scripts.py" "$work/$name.pt" --hf "$work/$name-hf"
    "$transformer" train --quiet --task lm --init-from "$work/$name-hf" --data "$work/pairs/train.en" --lora-rank 4 --steps 30 \
        --lr 0.01 --set data.block=32 --out "$work/$name-lora"
    "$transformer" export "$work/$name-lora" --format hf --out "$work/$name-merged"
    "$transformer" export "$work/$name-lora" --format peft --out "$work/$name-adapters"
    if "$python" -c 'import peft, accelerate' 2>/dev/null; then
        "$python" "$references/check_transformer_export.py" "$work/$name-merged" --peft "$work/$name-adapters" --base "$work/$name-hf"
    else
        say "this Python has no peft: the adapters are not checked there."
    fi
done
say "all holds."
