#!/usr/bin/env python3
"""Checks that Python takes the exports of a `transformer` run as they are. Needs transformers==5.23.0, and peft==0.21.2 with accelerate for adapters.

    check_transformer_export.py HF_FOLDER [--torchscript FILE] [--peft FOLDER --base FOLDER] [--predictions FILE]

HF_FOLDER must load strictly: no tensor missing, none left over, in every class that its configuration names. With --torchscript the traced
module must agree with it to 1e-5 at other batch sizes and lengths than it was traced with. With --peft the adapters must load on top of
the base model and agree with HF_FOLDER, where they are merged. With --predictions, JSON lines of `transformer predict --format jsonl`, the
probabilities of transformers' own pipeline must agree to 1e-5.

Exit status: 0 all holds, 1 something does not.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoTokenizer

TOLERANCE = 1e-5
SIZES = ((1, 5), (3, 31), (7, 16))


def require(condition, otherwise):
    if not condition:
        sys.exit(f"check_transformer_export.py: {otherwise}")


def load(folder):
    config = json.loads((folder / "config.json").read_text())
    kind = getattr(transformers, config["architectures"][0])
    model, report = kind.from_pretrained(folder, output_loading_info=True)
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        require(not report[key], f"{folder}: {key}: {report[key]}")
    print(f"{folder}: {config['architectures'][0]} loads, nothing missing, nothing left over")
    return model.eval()


def inputs(model, batch, length):
    ids = torch.randint(5, model.config.vocab_size, (batch, length))
    mask = torch.ones_like(ids)
    if batch > 1:
        mask[1, length // 2 :] = 0
        ids[1, length // 2 :] = model.config.pad_token_id or 0
    given = {"input_ids": ids, "attention_mask": mask}
    if getattr(model.config, "type_vocab_size", 1) > 1:
        given["token_type_ids"] = torch.zeros_like(ids)
    return given


def scores(model, given):
    outputs = model(**given)
    if hasattr(outputs, "start_logits"):
        return torch.stack([outputs.start_logits, outputs.end_logits], -1)
    return outputs.logits if hasattr(outputs, "logits") else outputs.last_hidden_state


def compare(found, expected, given, what):
    if found.dim() == 3:
        # What stands at padding means nothing.
        found, expected = (value * given["attention_mask"][..., None] for value in (found, expected))
    difference = (found - expected).abs().max().item()
    require(difference <= TOLERANCE, f"{what}: {difference:.1e} apart")
    print(f"{what}: at most {difference:.1e} apart")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="HF_FOLDER")
    parser.add_argument("--torchscript", type=Path, metavar="FILE")
    parser.add_argument("--peft", type=Path, metavar="FOLDER")
    parser.add_argument("--base", type=Path, metavar="FOLDER")
    parser.add_argument("--predictions", type=Path, metavar="FILE")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = load(options.folder)
    with torch.inference_mode():
        if options.torchscript:
            module = torch.jit.load(options.torchscript)
            for batch, length in SIZES:
                given = inputs(model, batch, length)
                what = f"TorchScript, batch {batch}, {length} tokens"
                compare(module(*given.values()), scores(model, given), given, what)
        if options.peft:
            from peft import PeftModel

            config = json.loads((options.folder / "config.json").read_text())
            kind = getattr(transformers, config["architectures"][0])
            labels = len(config.get("id2label", {})) or 2
            base = kind.from_pretrained(options.base, num_labels=labels, ignore_mismatched_sizes=True)
            adapted = PeftModel.from_pretrained(base, options.peft).eval()
            for batch, length in SIZES:
                given = inputs(model, batch, length)
                compare(scores(adapted, given), scores(model, given), given, f"PEFT, batch {batch}, {length} tokens")
        if options.predictions:
            tokenizer = AutoTokenizer.from_pretrained(options.folder)
            largest = 0.0
            rows = [json.loads(line) for line in options.predictions.read_text().splitlines()]
            for row in rows:
                given = tokenizer(row["text"], row.get("pair"), return_tensors="pt", truncation=True, max_length=128)
                probabilities = model(**given).logits.softmax(-1)[0]
                label = int(probabilities.argmax())
                require(model.config.id2label[label] == row["label"], f"{row['text']}: {row['label']} there, {label} here")
                largest = max(largest, abs(probabilities[label].item() - row["probability"]))
            require(largest <= TOLERANCE, f"predictions are {largest:.1e} apart")
            print(f"{len(rows)} predictions: probabilities at most {largest:.1e} apart")


if __name__ == "__main__":
    main()
