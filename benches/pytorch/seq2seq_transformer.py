#!/usr/bin/env python3
"""seq2seq_transformer: the encoder-decoder of "Attention is all you need" with the layers of nn.Transformer, in training and translating.

Width 256, 3 layers each in encoder and decoder, 8 heads, inner width 512, ReLU, normalisation after each part, one more
LayerNorm at the end of both; 8,000 source and 8,000 target tokens with an embedding each, times sqrt(256), plus sinusoidal
positions; an output layer with bias: 10,106,688 parameters. Dropout 0.1 where nn.Transformer has it, attention weights
included. One projection for queries, keys and values. Attention by scaled_dot_product_attention.

--mode train: 64 pairs of 20 source and 20 target tokens, nothing is padding; cross-entropy with label smoothing 0.1, Adam
    1e-4, betas (0.9, 0.98), eps 1e-9. A sample is one target token.
--mode infer: 32 sources of 20 tokens, 30 target tokens for each, whatever they are; --beam 1 takes the likeliest token at
    each step, --beam N follows the N best texts of each source. Keys and values are kept in buffers made beforehand;
    --cache 0 runs the decoder over the whole text at each step instead. A sample is one token of a text that is returned.

Unit: samples/s.
"""

import math

import harness

WORDS, WIDTH, HEADS, INNER, LAYERS, DROPOUT = 8000, 256, 8, 512, 3, 0.1
PAD, BEGIN, FIRST_WORD = 0, 1, 4
SOURCE, TARGET, WRITTEN = 20, 20, 30


def network_of(torch):
    nn, functional = torch.nn, torch.nn.functional

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.project, self.output = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

        def heads(self, flat):
            return flat.unflatten(-1, (HEADS, -1)).transpose(1, 2)  # [batch, heads, length, 32]

        def own(self, x):
            return [self.heads(part) for part in self.project(x).chunk(3, dim=-1)]

        def query(self, x):
            return self.heads(functional.linear(x, self.project.weight[:WIDTH], self.project.bias[:WIDTH]))

        def memory(self, x):
            both = functional.linear(x, self.project.weight[WIDTH:], self.project.bias[WIDTH:])
            return [self.heads(part) for part in both.chunk(2, dim=-1)]

        def mix(self, query, key, value, causal=False):
            rate = DROPOUT if self.training else 0.0
            mixed = functional.scaled_dot_product_attention(query, key, value, dropout_p=rate, is_causal=causal)
            return self.output(mixed.transpose(1, 2).flatten(2))

    class Layer(nn.Module):
        def __init__(self, decoder):
            super().__init__()
            self.attention, self.cross = Attention(), Attention() if decoder else None
            self.inner, self.outer = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)
            self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3 if decoder else 2))
            self.drop = nn.Dropout(DROPOUT)

        def dense(self, x):
            return self.norms[-1](x + self.drop(self.outer(self.drop(functional.relu(self.inner(x))))))

        def encode(self, x):
            return self.dense(self.norms[0](x + self.drop(self.attention.mix(*self.attention.own(x)))))

        def decode(self, x, query, key, value, memory, causal):
            x = self.norms[0](x + self.drop(self.attention.mix(query, key, value, causal)))
            x = self.norms[1](x + self.drop(self.cross.mix(self.cross.query(x), *memory)))
            return self.dense(x)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.source, self.target = nn.Embedding(WORDS, WIDTH), nn.Embedding(WORDS, WIDTH)
            self.encoder = nn.ModuleList(Layer(False) for _ in range(LAYERS))
            self.decoder = nn.ModuleList(Layer(True) for _ in range(LAYERS))
            self.encoder_norm, self.decoder_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.output, self.drop = nn.Linear(WIDTH, WORDS), nn.Dropout(DROPOUT)
            rates = torch.exp(torch.arange(0, WIDTH, 2) * (-math.log(10000.0) / WIDTH))
            angles = torch.arange(256)[:, None] * rates
            self.register_buffer("positions", torch.stack([angles.sin(), angles.cos()], 2).flatten(1))
            for name, parameter in self.named_parameters():
                if name in ("source.weight", "target.weight"):
                    nn.init.normal_(parameter, std=WIDTH**-0.5)
                elif parameter.dim() > 1 and name != "output.weight":
                    nn.init.xavier_uniform_(parameter)

        def embed(self, table, tokens, first=0):
            return self.drop(table(tokens) * math.sqrt(WIDTH) + self.positions[first : first + tokens.shape[1]])

        def encode(self, source):
            x = self.embed(self.source, source)
            for layer in self.encoder:
                x = layer.encode(x)
            return self.encoder_norm(x)

        def decode(self, target, memories):
            x = self.embed(self.target, target)
            for layer, memory in zip(self.decoder, memories):
                x = layer.decode(x, *layer.attention.own(x), memory, causal=True)
            return self.decoder_norm(x)

        def memories(self, encoded):
            return [layer.cross.memory(encoded) for layer in self.decoder]

        def forward(self, pair):
            source, target = pair
            return self.output(self.decode(target, self.memories(self.encode(source))))

        def next(self, token, place, memories, buffers):
            """Scores [rows, words] of the token after `token` [rows]; keys and values of all before are in the buffers."""
            x = self.embed(self.target, token[:, None], place)
            for layer, memory, (keys, values) in zip(self.decoder, memories, buffers):
                query, key, value = layer.attention.own(x)
                keys[:, :, place], values[:, :, place] = key[:, :, 0], value[:, :, 0]
                x = layer.decode(x, query, keys[:, :, : place + 1], values[:, :, : place + 1], memory, causal=False)
            return self.output(self.decoder_norm(x)[:, 0])

    return Network()


def write(torch, network, source, beam, cache):
    """The tokens [sources, WRITTEN] of the best texts."""
    sources = source.shape[0]
    memories = network.memories(network.encode(source))
    if beam > 1:
        memories = [[part.repeat_interleave(beam, 0) for part in memory] for memory in memories]
    rows = sources * beam
    kind = network.positions.dtype
    buffers = [
        [torch.empty(rows, HEADS, WRITTEN, WIDTH // HEADS, dtype=kind) for _ in range(2)] for _ in range(LAYERS)
    ]
    texts = torch.full((rows, WRITTEN + 1), BEGIN)
    sums = torch.full((sources, beam), -math.inf)
    sums[:, 0] = 0.0
    first_row = torch.arange(sources)[:, None] * beam
    for place in range(WRITTEN):
        if cache:
            scores = network.next(texts[:, place], place, memories, buffers)
        else:
            scores = network.output(network.decode(texts[:, : place + 1], memories)[:, -1])
        if beam == 1:
            texts[:, place + 1] = scores.argmax(-1)
            continue
        scores = scores.float().log_softmax(-1).view(sources, beam, WORDS) + sums[:, :, None]
        sums, best = scores.flatten(1).topk(beam)
        origin = (first_row + best // WORDS).flatten()
        texts = texts[origin]
        texts[:, place + 1] = (best % WORDS).flatten()
        if cache:
            for pair in buffers:
                for buffer in pair:
                    buffer[:, :, : place + 1] = buffer[:, :, : place + 1].index_select(0, origin)
    return texts.view(sources, beam, -1)[:, 0, 1:]


def main():
    parser = harness.arguments(__doc__)
    parser.add_argument("--beam", type=int, default=1, help="texts that are followed side by side")
    parser.add_argument("--cache", type=int, choices=[0, 1], default=1, help="keep keys and values")
    options = parser.parse_args()
    torch = harness.prepare(options)
    network = network_of(torch)
    assert sum(parameter.numel() for parameter in network.parameters()) == 10_106_688
    train = options.mode == "train"
    size = options.batch or (64 if train else 32)
    pool = [
        (torch.randint(FIRST_WORD, WORDS, (size, SOURCE)), torch.randint(FIRST_WORD, WORDS, (size, TARGET + 1)))
        for _ in range(options.pool)
    ]
    parts = ["train", f"b{size}"] if train else ["infer", f"b{size}", f"beam{options.beam}"]
    name = harness.variant(options, *parts, *([] if options.cache else ["nocache"]))
    if train:

        def batch_of(number):
            source, target = pool[number % len(pool)]
            return (source, target[:, :-1]), target[:, 1:].flatten()

        criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
        step = harness.trainer(
            options,
            network,
            lambda scores, targets: criterion(scores.flatten(0, 1), targets),
            lambda parameters, **flags: torch.optim.Adam(parameters, lr=1e-4, betas=(0.9, 0.98), eps=1e-9, **flags),
            batch_of,
        )
        harness.measure("seq2seq_transformer", name, options, (20, 3, 1), size * TARGET, step)
        return
    network.eval()
    if options.dtype == "bf16":
        network.bfloat16()
    with torch.inference_mode():
        harness.measure(
            "seq2seq_transformer",
            name,
            options,
            (8, 2, 1),
            size * WRITTEN,
            lambda number: write(torch, network, pool[number % len(pool)][0], options.beam, options.cache),
        )


if __name__ == "__main__":
    main()
