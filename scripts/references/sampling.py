#!/usr/bin/env python3
"""Makes tests/fixtures/sampling.json: what Hugging Face's logits processors leave of some logits.

Run with transformers 5 and torch 2.13:  python scripts/references/sampling.py
"""
import json
import pathlib

import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

DEFAULTS = dict(temperature=1.0, top_k=None, top_p=1.0, min_p=0.0, repetition_penalty=1.0)
CONFIGS = [
    {},
    {"temperature": 0.7},
    {"temperature": 1.9},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 500},
    {"top_p": 0.3},
    {"top_p": 0.9},
    {"min_p": 0.2},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.8, "temperature": 0.5},
    {"temperature": 0.8, "top_k": 10, "top_p": 0.85, "min_p": 0.05, "repetition_penalty": 1.2},
]


def main():
    generator = torch.Generator().manual_seed(11)
    cases = []
    for settings in CONFIGS:
        config = {**DEFAULTS, **settings}
        logits = (3 * torch.randn(1, 40, generator=generator)).round(decimals=3)
        before = torch.randint(0, 40, (1, 12), generator=generator)
        steps = LogitsProcessorList()
        if config["repetition_penalty"] != 1.0:
            steps.append(RepetitionPenaltyLogitsProcessor(config["repetition_penalty"]))
        if config["temperature"] != 1.0:
            steps.append(TemperatureLogitsWarper(config["temperature"]))
        if config["top_k"] is not None:
            steps.append(TopKLogitsWarper(config["top_k"]))
        if config["top_p"] < 1.0:
            steps.append(TopPLogitsWarper(config["top_p"]))
        if config["min_p"] > 0.0:
            steps.append(MinPLogitsWarper(config["min_p"]))
        scores = steps(before, logits.clone()).double()
        cases.append({
            "config": config,
            "logits": [round(x, 3) for x in logits[0].tolist()],
            "before": before[0].tolist(),
            "probabilities": scores.softmax(-1)[0].tolist(),
        })
    path = pathlib.Path(__file__).parents[2] / "tests/fixtures/sampling.json"
    path.write_text(json.dumps({"cases": cases}) + "\n")
    print(f"wrote {path.name}: {len(cases)} cases")


if __name__ == "__main__":
    main()
