#!/usr/bin/env python3
"""gpt: a GPT-2 of nanoGPT's size for a CPU, learning and writing characters.

65 characters, context 64, 4 layers of width 128, 4 heads, inner width 512, GELU, normalisation before each part, no
dropout, output layer tied to the embedding, biases everywhere: 809,856 parameters. Attention by
scaled_dot_product_attention.

--mode train: 12 windows of 64 characters, mean cross-entropy, AdamW 1e-3, betas (0.9, 0.99), weight decay 0.1 but for
    biases and norms, gradients clipped to norm 1.
--mode infer: 63 characters drawn one by one after a first, for --batch texts (1) at a time; keys and values are kept in
    buffers made beforehand. Each step draws from the softmax of the scores.

Unit: samples/s, a sample being one character.
"""

import harness

CHARACTERS, CONTEXT, WIDTH, HEADS, LAYERS = 65, 64, 128, 4, 4


def network_of(torch):
    nn, functional = torch.nn, torch.nn.functional

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.attention, self.mixed = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.inner, self.outer = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

        def forward(self, x, kept=None, place=0):
            parts = self.attention(self.norm_1(x)).split(WIDTH, dim=-1)
            query, key, value = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
            if kept is not None:
                keys, values = kept
                keys[:, :, place], values[:, :, place] = key[:, :, 0], value[:, :, 0]
                key, value = keys[:, :, : place + 1], values[:, :, : place + 1]
            mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=kept is None)
            x = x + self.mixed(mixed.transpose(1, 2).flatten(2))
            return x + self.outer(functional.gelu(self.inner(self.norm_2(x))))

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.places = nn.Embedding(CHARACTERS, WIDTH), nn.Embedding(CONTEXT, WIDTH)
            self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
            self.norm = nn.LayerNorm(WIDTH)
            for name, parameter in self.named_parameters():
                if parameter.dim() > 1:
                    added = "mixed" in name or "outer" in name
                    nn.init.normal_(parameter, std=0.02 / (2 * LAYERS) ** 0.5 if added else 0.02)
                elif name.endswith("bias"):
                    nn.init.zeros_(parameter)

        def forward(self, tokens):
            x = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
            for block in self.blocks:
                x = block(x)
            return functional.linear(self.norm(x), self.tokens.weight)

        def next(self, token, place, buffers):
            """Scores [rows, characters] of the character after `token` [rows]."""
            x = (self.tokens(token) + self.places.weight[place])[:, None]
            for block, kept in zip(self.blocks, buffers):
                x = block(x, kept, place)
            return functional.linear(self.norm(x)[:, 0], self.tokens.weight)

    return Network()


def main():
    options = harness.arguments(__doc__).parse_args()
    torch = harness.prepare(options)
    network = network_of(torch)
    assert sum(parameter.numel() for parameter in network.parameters()) == 809_856
    train = options.mode == "train"
    size = options.batch or (12 if train else 1)
    name = harness.variant(options, options.mode, f"b{size}")
    if train:
        pool = [torch.randint(CHARACTERS, (size, CONTEXT + 1)) for _ in range(options.pool)]
        criterion = torch.nn.CrossEntropyLoss()

        def make_optimizer(parameters, **flags):
            parameters = list(parameters)
            groups = [
                {"params": [one for one in parameters if one.dim() > 1], "weight_decay": 0.1},
                {"params": [one for one in parameters if one.dim() <= 1], "weight_decay": 0.0},
            ]
            return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), **flags)

        def batch_of(number):
            window = pool[number % len(pool)]
            return window[:, :-1], window[:, 1:].flatten()

        step = harness.trainer(
            options,
            network,
            lambda scores, targets: criterion(scores.flatten(0, 1), targets),
            make_optimizer,
            batch_of,
            clip_norm=1.0,
        )
        harness.measure("gpt", name, options, (60, 5, 1), size * CONTEXT, step)
        return
    network.eval()
    if options.dtype == "bf16":
        network.bfloat16()
    kind = network.tokens.weight.dtype
    buffers = [
        [torch.empty(size, HEADS, CONTEXT, WIDTH // HEADS, dtype=kind) for _ in range(2)] for _ in range(LAYERS)
    ]
    with torch.inference_mode():

        def text(_):
            token = torch.zeros(size, dtype=torch.long)
            for place in range(CONTEXT - 1):
                scores = network.next(token, place, buffers)
                token = torch.multinomial(scores.float().softmax(-1), 1)[:, 0]
            return scores

        harness.measure("gpt", name, options, (20, 3, 1), size * (CONTEXT - 1), text)


if __name__ == "__main__":
    main()
