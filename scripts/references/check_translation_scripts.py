#!/usr/bin/env python3
"""Checks that Python decodes with the TorchScript files of `transformer export` as the program itself does. Needs torch 2.13, tokenizers, and for --hf transformers 5.23.

    check_translation_scripts.py FOLDER --run RUN --source FILE --translations FILE
    check_translation_scripts.py STEP.pt --hf FOLDER

FOLDER holds encoder.pt and decoder.pt of the translator RUN, whose tokenizers are used. FILE of --source has a text on each line, FILE of --translations what
`transformer translate RUN --beam 1 --format jsonl` made of them: the texts must be equal and their log-probabilities agree to 1e-4, decoded in one batch.

STEP.pt is the step of a language model, FOLDER the same model as `export --format hf` writes it: scores must agree to 1e-4, read at once, one token after the
other, and with rows filled up on the left.

Exit status: 0 all holds, 1 something does not.
"""

import argparse
import json
import sys
from pathlib import Path

import torch


def require(condition, otherwise):
    if not condition:
        sys.exit(f"check_translation_scripts.py: {otherwise}")


def translator(folder, run, source, translations):
    from tokenizers import Tokenizer

    joint = run / "tokenizer.json"
    files = [joint, joint] if joint.is_file() else [run / f"{side}_tokenizer.json" for side in ("source", "target")]
    tokenizers = [Tokenizer.from_file(str(file)) for file in files]

    def mark(tokenizer, *names):
        return next(number for number in map(tokenizer.token_to_id, names) if number is not None)

    pad = mark(tokenizers[0], "<pad>", "[PAD]")
    begin, end = mark(tokenizers[1], "<s>", "[BOS]"), mark(tokenizers[1], "</s>", "[EOS]")
    source_end = mark(tokenizers[0], "</s>", "[EOS]")
    texts = source.read_text(encoding="utf-8").splitlines()
    rows = [tokenizers[0].encode(text, add_special_tokens=False).ids + [source_end] for text in texts]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    search = json.loads((run / "recipe.json").read_text())["model"]["search"]
    encoder, decoder = (torch.jit.load(folder / name) for name in ("encoder.pt", "decoder.pt"))
    with torch.inference_mode():
        _, memory = encoder(ids, mask)
        past = memory[..., :0, :]
        newest = torch.full((len(rows), 1), begin)
        done = torch.zeros(len(rows), dtype=torch.bool)
        sums, written = torch.zeros(len(rows), dtype=torch.float64), [[] for _ in rows]
        for _ in range(search["max_length"]):
            scores, past = decoder(newest, mask, memory, past)
            logs = scores[:, -1].log_softmax(-1)
            # Padding is no word.
            logs[:, pad] = -torch.inf
            best, tokens = logs.max(-1)
            sums += torch.where(done, 0.0, best.double())
            done |= tokens == end
            for row, token in enumerate(tokens.tolist()):
                if not done[row]:
                    written[row].append(token)
            if done.all():
                break
            newest = tokens[:, None]
    expected = [json.loads(line) for line in translations.read_text(encoding="utf-8").splitlines()]
    require(len(expected) == len(texts), f"{translations} has {len(expected)} lines, {source} {len(texts)}")
    largest = 0.0
    for text, tokens, total, line in zip(texts, written, sums.tolist(), expected):
        found = tokenizers[1].decode(tokens)
        require(found.strip() == line["text"].strip(), f"{text!r} becomes {found!r} here and {line['text']!r} there")
        length = len(tokens) + 1
        difference = abs(total / length - line["score"])
        require(difference <= 1e-4, f"the scores of {found!r} are {difference:.1e} apart")
        largest = max(largest, difference)
    print(f"{len(texts)} translations are equal, their scores at most {largest:.1e} apart")


def language_model(step, folder):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    module = torch.jit.load(step)
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    torch.manual_seed(0)
    tokens = torch.randint(config.vocab_size, (3, 12))
    mask = torch.ones_like(tokens)
    mask[1, :5], mask[2, :2] = 0, 0
    with torch.inference_mode():
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        expected = model(tokens, attention_mask=mask, position_ids=positions).logits * mask[..., None]
        for parts in ([12], [1] * 12, [6, 1, 5]):
            past = torch.zeros(config.num_hidden_layers, 2, 3, heads, 0, width)
            scores, start = [], 0
            for count in parts:
                new, past = module(tokens[:, start : start + count], mask[:, : start + count], past)
                scores.append(new)
                start += count
            difference = (torch.cat(scores, 1) * mask[..., None] - expected).abs().max().item()
            require(difference <= 1e-4, f"read in parts of {parts}: {difference:.1e} apart")
            print(f"read in parts of {parts}: scores at most {difference:.1e} apart")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script", type=Path, metavar="FOLDER|STEP.pt")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--source", type=Path, metavar="FILE")
    parser.add_argument("--translations", type=Path, metavar="FILE")
    parser.add_argument("--hf", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    if options.hf:
        language_model(options.script, options.hf)
    else:
        translator(options.script, options.run, options.source, options.translations)


if __name__ == "__main__":
    main()
