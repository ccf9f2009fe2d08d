#!/usr/bin/env python3
"""The recipe gpt-tinyshakespeare in PyTorch. Needs torch 2.13 and transformers 5.23.

    python3 scripts/references/gpt_tinyshakespeare.py FOLDER/tinyshakespeare/input.txt [SEED]

transformers' GPT-2 with 4 layers of width 128 on characters, context 64, no dropout; 2,000 steps of 12 random crops with AdamW (0.9, 0.99), weight decay
0.1 on matrices, rate 1e-3 after 100 steps of warm-up down to 1e-4 by a cosine, gradients clipped to 1. Prints the loss over the whole last tenth of the
text in blocks of 64, in nats per character.
"""

import math
import sys
import time

import torch
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

STEPS, WARMUP, BATCH, CONTEXT, RATE, LEAST = 2000, 100, 12, 64, 1e-3, 1e-4


def main():
    text = open(sys.argv[1], encoding="utf-8").read()
    torch.manual_seed(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    characters = sorted(set(text))
    numbers = {character: number for number, character in enumerate(characters)}
    tokens = torch.tensor([numbers[character] for character in text])
    kept = int(0.9 * len(tokens))
    train, validation = tokens[:kept], tokens[kept:]
    config = GPT2Config(vocab_size=len(characters), n_positions=CONTEXT, n_embd=128, n_layer=4, n_head=4, activation_function="gelu",
                        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None)
    model = GPT2LMHeadModel(config)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=RATE, betas=(0.9, 0.99))
    began = time.perf_counter()
    for step in range(STEPS):
        share = (step - WARMUP) / (STEPS - WARMUP)
        rate = RATE * (step + 1) / WARMUP if step < WARMUP else LEAST + (RATE - LEAST) * 0.5 * (1 + math.cos(math.pi * share))
        for group in optimizer.param_groups:
            group["lr"] = rate
        starts = torch.randint(len(train) - CONTEXT, (BATCH,))
        block = torch.stack([train[start:start + CONTEXT + 1] for start in starts])
        loss = F.cross_entropy(model(block[:, :-1]).logits.flatten(0, 1), block[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    seconds = time.perf_counter() - began
    model.eval()
    total = count = 0
    with torch.no_grad():
        for start in range(0, len(validation) - 1, CONTEXT * 64):
            piece = validation[start:start + CONTEXT * 64 + 1]
            whole = (len(piece) - 1) // CONTEXT
            rows = [(piece[:whole * CONTEXT].view(whole, CONTEXT), piece[1:whole * CONTEXT + 1].view(whole, CONTEXT))] if whole else []
            if (len(piece) - 1) % CONTEXT:
                rows.append((piece[whole * CONTEXT:-1][None], piece[whole * CONTEXT + 1:][None]))
            for inputs, labels in rows:
                total += F.cross_entropy(model(inputs).logits.flatten(0, 1), labels.flatten(), reduction="sum").item()
                count += labels.numel()
    print(f"validation loss {total / count:.4f} over {count} characters; {STEPS * BATCH * CONTEXT / seconds:.0f} tokens/s in training")


main()
