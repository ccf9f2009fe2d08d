#!/usr/bin/env python3
"""Holds a masked language model against its text: the loss of hidden tokens against their unigram entropy, and `fill` against the words that were there.
Needs tokenizers (with transformers==5.23.0).

    check_pretraining.py PROGRAM RUN HELD_OUT_FILE [--gain NATS] [--filled SHARE]

The entropy is that of the tokens of HELD_OUT_FILE under their own frequencies there, which no model without context can beat. For `fill`, in each of
200 sentences one word of at least three letters that is a single token is hidden, by turns at another place.

Exit status: 0 all holds, 1 something does not.
"""

import argparse
import collections
import json
import math
import re
import subprocess
import sys
from pathlib import Path

from tokenizers import Tokenizer

CASES = 200


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", metavar="PROGRAM")
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("text", type=Path, metavar="HELD_OUT_FILE")
    parser.add_argument("--gain", type=float, default=1.0, metavar="NATS")
    parser.add_argument("--filled", type=float, default=0.3, metavar="SHARE")
    options = parser.parse_args()

    tokenizer = Tokenizer.from_file(str(options.run / "tokenizer.json"))
    lines = [line for line in options.text.read_text().splitlines() if line.strip()]
    counts = collections.Counter(id for line in lines for id in tokenizer.encode(line, add_special_tokens=False).ids)
    total = sum(counts.values())
    entropy = -sum(count / total * math.log(count / total) for count in counts.values())
    loss = json.loads((options.run / "summary.json").read_text())["best"]["loss"]
    print(f"loss of hidden tokens {loss:.3f}, unigram entropy {entropy:.3f}: {entropy - loss:.3f} nats below (required: {options.gain})")

    cases = []
    for number, line in enumerate(lines):
        words = [match for match in re.finditer(r"[A-Za-z]{3,}", line)]
        words = [word for word in words if len(tokenizer.encode(word.group(), add_special_tokens=False).ids) == 1]
        if words and len(cases) < CASES:
            word = words[number % len(words)]
            cases.append((line[: word.start()] + "[MASK]" + line[word.end() :], word.group().lower()))
    command = [options.program, "fill", str(options.run), "-", "--top-k", "5", "--format", "json"]
    asked = "".join(text + "\n" for text, _ in cases)
    answer = subprocess.run(command, input=asked, capture_output=True, text=True, check=True).stdout
    found = 0
    for (_, word), line in zip(cases, answer.splitlines(), strict=True):
        found += word in [guess["word"].lower() for guess in json.loads(line)["masks"][0]]
    share = found / len(cases)
    print(f"{found} of {len(cases)} hidden words are among the five best: {share:.2f} (required: {options.filled})")
    sys.exit(entropy - loss < options.gain or share < options.filled)


if __name__ == "__main__":
    main()
