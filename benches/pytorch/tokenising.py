#!/usr/bin/env python3
"""tokenising: the sentences of SST-2's train.tsv into the tokens of MiniLM's tokenizer, as a fine-tuning begins.

--folder holds sst2/train.tsv and pretrained/minilm-l6-h384/tokenizer.json. All sentences in one call, with [CLS] and [SEP], cut
at 128 tokens, no padding. Unit: texts/s; one timed sample is all 67,349. In Python: the package `tokenizers`, which is written
in Rust, on all threads, and the numbers of each text as a list.
"""

import os
from pathlib import Path

import harness


def main():
    parser = harness.arguments(__doc__)
    parser.add_argument("--folder", required=True, type=Path, metavar="FOLDER", help="where the data are")
    options = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = str(options.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    import torch
    from tokenizers import Tokenizer

    options.mode = "load"
    texts = [line.partition("\t")[0] for line in (options.folder / "sst2" / "train.tsv").read_text().splitlines()[1:]]
    tokenizer = Tokenizer.from_file(str(options.folder / "pretrained" / "minilm-l6-h384" / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(128)

    def step(number):
        encoded = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
        return torch.tensor(float(sum(map(len, encoded))))

    rates, further = harness.timed(options, (8, 1, 1), len(texts), step)
    del further["startup_s"]
    harness.emit("tokenising", harness.variant(options, "sst2"), "texts/s", rates, **further)


if __name__ == "__main__":
    main()
