#!/usr/bin/env python3
"""Entity scores of seqeval and answer scores of SQuAD's official script, on cases of many kinds. Needs seqeval==1.2.2 and transformers==4.57.1,
whose squad_metrics.py holds the functions of the official script (version 5 has it no more). The file is read without importing the package, so
that its dependencies need not be there.

    python3 scripts/references/text_metrics.py > tests/fixtures/text_metrics.json
"""

import ast
import collections
import importlib.util
import json
import random
import re
import string
import warnings
from pathlib import Path

from seqeval.metrics import f1_score, precision_score, recall_score


def squad_functions():
    package = Path(importlib.util.find_spec("transformers").submodule_search_locations[0])
    tree = ast.parse((package / "data" / "metrics" / "squad_metrics.py").read_text())
    wanted = {"normalize_answer", "get_tokens", "compute_exact", "compute_f1"}
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in wanted]
    names = {"re": re, "string": string, "collections": collections}
    exec(compile(tree, "squad_metrics.py", "exec"), names)
    return names


squad = squad_functions()
compute_exact, compute_f1, normalize_answer = squad["compute_exact"], squad["compute_f1"], squad["normalize_answer"]

SCHEMES = {
    "bio": ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"],
    "io": ["O", "I-PER", "I-LOC"],
    "bioes": ["O", "B-PER", "I-PER", "E-PER", "S-PER", "B-LOC", "I-LOC", "E-LOC", "S-LOC"],
    "hyphen": ["O", "B-a-b", "I-a-b", "I-c"],
    "bare": ["O", "B", "I"],
}
ANSWERS = [
    ("the cat", ["The Cat!"]),
    ("cat", ["a cat", "the dog"]),
    ("", ["cat"]),
    ("", []),
    ("cat", []),
    ("the", ["the"]),
    ("a an the", []),
    ("the the cat cat", ["cat the cat"]),
    ("10,000 people", ["10000 people"]),
    ("New  York\tCity", ["New York", "york city new"]),
    ("well-known", ["well known", "wellknown"]),
    ("naïve café", ["Naïve Café", "naive cafe"]),
    ("Anna and the king", ["and king"]),
    ("theatre a-b", ["theatre ab"]),
    ("it's a test", ["its test"]),
    ("“quoted”", ["quoted"]),
    ("3.5 %", ["35"]),
    ("an_apple the_end", ["apple end"]),
]


def entities(seed):
    random.seed(seed)
    scheme = list(SCHEMES.values())[seed % len(SCHEMES)]

    def sentences(lengths):
        return [[random.choice(scheme) for _ in range(length)] for length in lengths]

    lengths = [random.randint(1, 9) for _ in range(6)]
    given = sentences(lengths)
    # Mostly right, so that every count is above 0 in most cases.
    predicted = [[tag if random.random() < 0.7 else random.choice(scheme) for tag in sentence] for sentence in given]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores = {
            "precision": precision_score(given, predicted),
            "recall": recall_score(given, predicted),
            "f1": f1_score(given, predicted),
        }
    return {"given": given, "predicted": predicted, **{name: float(value) for name, value in scores.items()}}


def answer(found, given):
    # As get_raw_scores: answers that are nothing but articles do not count, and without any the empty one is right.
    kept = [text for text in given if normalize_answer(text)] or [""]
    return {
        "answer": found,
        "given": given,
        "exact": max(compute_exact(text, found) for text in kept),
        "f1": float(max(compute_f1(text, found) for text in kept)),
    }


if __name__ == "__main__":
    cases = [entities(seed) for seed in range(30)]
    print(json.dumps({"entities": cases, "answers": [answer(*case) for case in ANSWERS]}, ensure_ascii=False))
