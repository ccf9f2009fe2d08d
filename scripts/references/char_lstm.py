#!/usr/bin/env python3
"""The recipe `lstm-tinyshakespeare` in PyTorch: the same initial weights, order, dropout masks and schedule under the same seed, so that losses
agree step by step as far as rounding allows.

    python scripts/references/char_lstm.py input.txt [--epochs 16] [--seed 0] [--max-steps N]

With --fixture it takes 30 steps of a small network on the compiled-in text at a constant rate and writes their losses to tests/fixtures/char_lstm.json.

Prints one JSON line for every 100 steps (mean training loss), and one for each epoch: validation loss in nats per character over the whole last tenth of the text, state carried through it.
"""
import argparse
import gzip
import json
import math
import pathlib
import time

import torch
from torch import nn
from torch.nn import functional as F


REPOSITORY = pathlib.Path(__file__).parents[2]


class Net(nn.Module):
    def __init__(self, vocabulary, width, dropouts):
        super().__init__()
        between, embedding, output = dropouts
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, 2, batch_first=True, dropout=between)
        self.output = nn.Linear(width, vocabulary)
        self.embedding_dropout, self.output_dropout = nn.Dropout(embedding), nn.Dropout(output)

    def forward(self, tokens, state):
        hidden, state = self.lstm(self.embedding_dropout(self.embedding(tokens)), state)
        return self.output(self.output_dropout(hidden)), state


def windows(data, streams, window):
    """Every token but the first is a target once; behind the end of the last stream targets are -100."""
    length = math.ceil((len(data) - 1) / streams)
    tokens = torch.zeros(streams, length, dtype=torch.long)
    targets = torch.full((streams, length), -100)
    for stream in range(streams):
        start, end = stream * length, min((stream + 1) * length, len(data) - 1)
        if end > start:
            tokens[stream, : end - start] = data[start:end]
            targets[stream, : end - start] = data[start + 1 : end + 1]
    return [(tokens[:, i : i + window], targets[:, i : i + window]) for i in range(0, length, window)]


def evaluate(net, data, streams, window):
    net.eval()
    total, count, state = 0.0, 0, None
    with torch.inference_mode():
        for tokens, targets in windows(data, streams, window):
            logits, state = net(tokens, state)
            total += F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").item()
            count += int((targets >= 0).sum())
    net.train()
    return total / count


def main():
    p = argparse.ArgumentParser()
    p.add_argument("text", nargs="?")
    p.add_argument("--fixture", action="store_true")
    p.add_argument("--epochs", type=int, default=16)
    p.add_argument("--batch-size", type=int, default=32)
    p.add_argument("--eval-streams", type=int, default=1)
    p.add_argument("--window", type=int, default=64)
    p.add_argument("--width", type=int, default=256)
    p.add_argument("--dropouts", type=float, nargs=3, default=[0.3, 0.1, 0.3], help="between layers, embedding, output")
    p.add_argument("--lr", type=float, default=3e-3)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--max-steps", type=int, default=0, help="stop early, with the schedule of the whole run")
    p.add_argument("--log-every", type=int, default=100, help="steps between lines with the mean training loss since the line before")
    a = p.parse_args()
    if a.fixture:
        # So long a schedule stays where it begins.
        a.epochs, a.batch_size, a.window, a.width, a.max_steps, a.log_every, a.threads = 10**9, 8, 16, 24, 30, 1, 1
        text = gzip.decompress((REPOSITORY / "assets/texts/shakespeare-mini.txt.gz").read_bytes()).decode()
    else:
        text = open(a.text, encoding="utf-8").read()
    torch.set_num_threads(a.threads)
    characters = sorted(set(text))
    index = {c: i for i, c in enumerate(characters)}
    data = torch.tensor([index[c] for c in text])
    cut = int(0.9 * len(data))
    train, validation = data[:cut], data[cut:]

    torch.manual_seed(a.seed)
    net = Net(len(characters), a.width, a.dropouts)
    optimizer = torch.optim.Adam(net.parameters(), lr=a.lr)
    batches = windows(train, a.batch_size, a.window)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=a.epochs * len(batches))
    began, step = time.time(), 0
    for epoch in range(a.epochs):
        state, losses = None, []
        for tokens, targets in batches:
            logits, state = net(tokens, state)
            state = tuple(s.detach() for s in state)
            count = (targets >= 0).sum()
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / count
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            step += 1
            if a.fixture:
                if step == a.max_steps:
                    path = REPOSITORY / "tests/fixtures/char_lstm.json"
                    path.write_text(json.dumps({"torch": torch.__version__.split("+")[0], "losses": losses}) + "\n")
                    return
                continue
            if step % a.log_every == 0:
                recent = losses[-a.log_every :] if len(losses) >= a.log_every else losses
                print(json.dumps({"step": step, "loss": sum(recent) / len(recent)}), flush=True)
            if step == a.max_steps:
                break
        value = evaluate(net, validation, a.eval_streams, a.window)
        print(json.dumps({
            "epoch": epoch + 1, "step": step, "train_loss": sum(losses[-50:]) / len(losses[-50:]),
            "validation_loss": value, "perplexity": math.exp(value), "seconds": time.time() - began,
        }), flush=True)
        if step == a.max_steps:
            break


if __name__ == "__main__":
    main()
