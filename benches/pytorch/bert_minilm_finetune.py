#!/usr/bin/env python3
"""bert_minilm_finetune: transformers' BertForSequenceClassification with MiniLM-L6-H384's shape and random weights. Needs transformers==5.23.0.

30,522 words, 6 layers, width 384, 12 heads, inner width 1536, GELU, 512 positions, dropout 0.1, two classes: 22,713,986
parameters. Attention by scaled_dot_product_attention. AdamW 2e-5, weight decay 0.01 but for biases and norms; mean
cross-entropy; batch 32.

--lengths fixed:    every text has --seq tokens (64), nothing is padding.
--lengths dynamic:  lengths are drawn from LENGTHS, padded to the longest of the batch.
--lengths bucketed: likewise, but sorted within the pool before they are cut into batches.
--mode infer: the forward pass in evaluation and inference mode.

Unit: samples/s.
"""

import harness

LENGTHS = [5, 7, 8, 9, 10, 11, 12, 12, 13, 14, 15, 16, 18, 19, 20, 21, 22, 24, 25, 26, 28, 30, 32, 35, 38, 42, 48, 56]
VOCABULARY, FIRST_WORD = 30522, 1000


def main():
    parser = harness.arguments(__doc__)
    parser.add_argument("--lengths", choices=["fixed", "dynamic", "bucketed"], default="fixed", help="lengths of the texts")
    parser.add_argument("--seq", type=int, default=64, help="tokens of a text, where all have as many")
    options = parser.parse_args()
    torch = harness.prepare(options)
    from transformers import BertConfig, BertForSequenceClassification

    size = options.batch or 32
    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, num_labels=2)
    config._attn_implementation = "sdpa"
    network = BertForSequenceClassification(config)

    count = size * options.pool
    lengths = [options.seq] * count
    if options.lengths != "fixed":
        lengths = [LENGTHS[place] for place in torch.randint(len(LENGTHS), (count,)).tolist()]
    if options.lengths == "bucketed":
        lengths.sort()
    pool = []
    for start in range(0, count, size):
        present = torch.tensor(lengths[start : start + size])
        mask = (torch.arange(int(present.max()))[None] < present[:, None]).long()
        ids = torch.randint(FIRST_WORD, VOCABULARY, mask.shape) * mask
        pool.append((dict(input_ids=ids, attention_mask=mask), torch.randint(2, (size,))))

    length = f"s{options.seq}" if options.lengths == "fixed" else options.lengths
    name = harness.variant(options, options.mode, f"b{size}", length)
    usual = (20, 3, 1)

    def forward(inputs):
        return network(**inputs).logits

    if options.mode == "train":

        def make_optimizer(parameters, **flags):
            named = dict(network.named_parameters())
            plain = [tensor for name, tensor in named.items() if name.endswith("bias") or "LayerNorm" in name]
            others = [tensor for name, tensor in named.items() if not (name.endswith("bias") or "LayerNorm" in name)]
            groups = [{"params": others, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
            return torch.optim.AdamW(groups, lr=2e-5, **flags)

        network.train()
        optimizer = make_optimizer(None, **harness.optimizer_flags(options))
        compiled = torch.compile(network) if options.compile else network

        def step(number):
            inputs, targets = pool[number % len(pool)]
            optimizer.zero_grad(set_to_none=True)
            with harness.autocast(options):
                loss = torch.nn.functional.cross_entropy(compiled(**inputs).logits, targets)
            loss.backward()
            optimizer.step()
            return loss.detach()

        harness.measure("bert_minilm_finetune", name, options, usual, size, step)
        return
    network.eval()
    if options.dtype == "bf16":
        network.bfloat16()
    with torch.inference_mode():
        harness.measure(
            "bert_minilm_finetune", name, options, usual, size, lambda number: forward(pool[number % len(pool)][0])
        )


if __name__ == "__main__":
    main()
