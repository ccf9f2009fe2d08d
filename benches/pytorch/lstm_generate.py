#!/usr/bin/env python3
"""lstm_generate: the network of lstm_charlm writing, one token at a time.

Each step computes the scores of one token with the state carried along, and draws the next token from their softmax. Unit: samples/s, a sample
being one token.
"""

import harness

VOCABULARY = 65


def main():
    options = harness.arguments(__doc__).parse_args()
    torch = harness.prepare(options)
    nn = torch.nn
    embedding, lstm = nn.Embedding(VOCABULARY, 256), nn.LSTM(256, 256, 2, batch_first=True)
    output = nn.Linear(256, VOCABULARY)
    for part in (embedding, lstm, output):
        part.to(torch.bfloat16 if options.dtype == "bf16" else torch.float32)
    with torch.inference_mode():
        token = torch.zeros(1, 1, dtype=torch.long)
        state = None

        def step(_):
            nonlocal token, state
            hidden, state = lstm(embedding(token), state)
            scores = output(hidden).flatten().float()
            token = torch.multinomial(scores.softmax(-1), 1).view(1, 1)
            return scores

        harness.measure("lstm_generate", harness.variant(options, "b1"), options, (20, 50, 200), 1, step)


if __name__ == "__main__":
    main()
