#!/usr/bin/env python3
"""The recipe `lstm-sst2` in PyTorch: words of the training part, LSTM 256, the largest value of each feature over time.

    python scripts/references/text_lstm.py sst2_folder [--epochs 3] [--seed 0]

Batches are drawn anew by Python (texts of like lengths together), so results agree with the suite's up to chance. Prints one JSON line for each epoch.
"""
import argparse
import collections
import json
import pathlib
import random
import time

import torch
from torch import nn
from torch.nn import functional as F


def read(path):
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")[1:]
    rows = [line.rstrip("\r").split("\t") for line in lines]
    return [(sentence.lower().split(), int(label)) for sentence, label in rows]


class Net(nn.Module):
    def __init__(self, vocabulary):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 200)
        self.lstm = nn.LSTM(200, 256, batch_first=True)
        self.output = nn.Linear(256, 2)
        self.drop_embedding, self.drop_output = nn.Dropout(0.4), nn.Dropout(0.4)

    def forward(self, tokens, lengths):
        hidden, _ = self.lstm(self.drop_embedding(self.embedding(tokens)))
        outside = torch.arange(tokens.shape[1]) >= lengths[:, None]
        return self.output(self.drop_output(hidden.masked_fill(outside[..., None], -torch.inf).amax(1)))


def batches(rows, size, generator=None):
    order = list(range(len(rows)))
    if generator is not None:
        generator.shuffle(order)
    pool = 100 * size
    order = [i for start in range(0, len(order), pool) for i in sorted(order[start : start + pool], key=lambda i: -len(rows[i][0]))]
    cut = [order[start : start + size] for start in range(0, len(order), size)]
    if generator is not None:
        generator.shuffle(cut)
    for batch in cut:
        lengths = torch.tensor([len(rows[i][0]) for i in batch])
        tokens = torch.zeros(len(batch), int(lengths.max()), dtype=torch.long)
        for row, i in enumerate(batch):
            tokens[row, : len(rows[i][0])] = torch.tensor(rows[i][0])
        yield tokens, lengths, torch.tensor([rows[i][1] for i in batch])


def main():
    p = argparse.ArgumentParser()
    p.add_argument("folder", type=pathlib.Path)
    p.add_argument("--epochs", type=int, default=3)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--threads", type=int, default=2)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    train, dev = read(a.folder / "train.tsv"), read(a.folder / "dev.tsv")
    counts = collections.Counter(word for words, _ in train for word in words)
    # Words seen once stand for unknown ones, whose embedding is trained so.
    known = sorted((word for word in counts if counts[word] > 1), key=lambda word: (-counts[word], word))[: 20000 - 3]
    index = {word: i + 3 for i, word in enumerate(known)}
    encode = lambda rows: [([index.get(word, 1) for word in words], label) for words, label in rows]
    train, dev = encode(train), encode(dev)

    torch.manual_seed(a.seed)
    net = Net(len(index) + 3)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    total = a.epochs * -(-len(train) // 64)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
    generator, began = random.Random(a.seed), time.time()
    for epoch in range(a.epochs):
        net.train()
        for tokens, lengths, labels in batches(train, 64, generator):
            optimizer.zero_grad()
            F.cross_entropy(net(tokens, lengths), labels).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        net.eval()
        with torch.inference_mode():
            right = sum(int((net(t, n).argmax(1) == y).sum()) for t, n, y in batches(dev, 256))
        print(json.dumps({"epoch": epoch + 1, "dev_accuracy": right / len(dev), "seconds": time.time() - began}), flush=True)


if __name__ == "__main__":
    main()
