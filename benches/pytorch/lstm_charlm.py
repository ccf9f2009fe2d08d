#!/usr/bin/env python3
"""lstm_charlm: a character language model on random tokens.

Tokens [32, 65] int64 in 0..64; inputs are the first 64, targets the last 64 of each row. Embedding 65 x 256, LSTM(256, 256, 2 layers, both
biases, no dropout, zero initial state), linear 256->65: 1,086,017 parameters, PyTorch's initial values.

Loss: mean cross-entropy over 2,048 positions. Adam, rate 2e-3; the gradients' 2-norm is clipped to 5. Unit: samples/s, a sample being one token.
--mode infer: the forward pass in evaluation and inference mode.
"""

import harness

VOCABULARY, STEPS = 65, 64


def main():
    options = harness.arguments(__doc__).parse_args()
    torch = harness.prepare(options)
    nn, F = torch.nn, torch.nn.functional

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(VOCABULARY, 256)
            self.lstm = nn.LSTM(256, 256, 2, batch_first=True)
            self.output = nn.Linear(256, VOCABULARY)

        def forward(self, tokens):
            return self.output(self.lstm(self.embedding(tokens))[0])

    network = Network()
    size = options.batch or 32
    pool = []
    for _ in range(max(1, options.pool)):
        tokens = torch.randint(VOCABULARY, (size, STEPS + 1))
        pool.append((tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()))

    def batch_of(number):
        return pool[number % len(pool)]

    name = harness.variant(options, options.mode, f"b{size}", f"s{STEPS}")
    usual = (40, 5, 1)
    if options.mode == "train":

        def criterion(logits, targets):
            return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

        def make_optimizer(parameters, **flags):
            return torch.optim.Adam(parameters, lr=2e-3, **flags)

        step = harness.trainer(options, network, criterion, make_optimizer, batch_of, clip_norm=5.0)
        harness.measure("lstm_charlm", name, options, usual, size * STEPS, step)
        return
    kind = torch.bfloat16 if options.dtype == "bf16" else torch.float32
    network = network.eval().to(kind)
    forward = torch.compile(network) if options.compile else network
    with torch.no_grad() if options.compile else torch.inference_mode():
        harness.measure("lstm_charlm", name, options, usual, size * STEPS, lambda number: forward(batch_of(number)[0]))


if __name__ == "__main__":
    main()
