#!/usr/bin/env python3
"""mlp_small: two tiny dense networks, where the framework's overhead is the cost.

--net keras: linear 100->2, ReLU, 2->1: 205 parameters. Batch 10 of normal inputs; targets 0 or 1, [batch, 1]; loss: mean
             binary cross-entropy on logits (--loss bce: of the sigmoid's probabilities).
--net mnist: linear 784->256, ReLU, 256->10: 203,530 parameters. Batch 64; loss: mean cross-entropy. --width in place of 256.

Adam, rate 1e-3. Unit: samples/s; one timed sample is 100 steps (keras) or 20 (mnist).
--loop epoch: instead of a pool, 1000 rows in one tensor, gathered by index_select in a new random order each epoch.
--mode infer: the forward pass in evaluation and inference mode.
"""

import harness


def main():
    parser = harness.arguments(__doc__)
    parser.add_argument("--net", choices=["keras", "mnist"], default="keras", help="which network")
    parser.add_argument("--width", type=int, default=256, help="inner width of mnist")
    parser.add_argument("--loop", choices=["resident", "epoch"], default="resident", help="where batches come from")
    parser.add_argument("--loss", choices=["logits", "bce"], default="logits", help="form of the loss of keras")
    options = parser.parse_args()
    torch = harness.prepare(options)
    nn, F = torch.nn, torch.nn.functional

    keras = options.net == "keras"
    size = options.batch or (10 if keras else 64)
    inputs, hidden, outputs = (100, 2, 1) if keras else (784, options.width, 10)
    network = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))

    def rows(count):
        targets = torch.randint(2, (count, 1)).float() if keras else torch.randint(10, (count,))
        return torch.randn(count, inputs), targets

    if not keras:
        criterion = F.cross_entropy
    elif options.loss == "logits":
        criterion = F.binary_cross_entropy_with_logits
    else:

        def criterion(logits, targets):
            return F.binary_cross_entropy(logits.float().sigmoid(), targets)

    batch_of = resident(rows, size, options.pool) if options.loop == "resident" else epochs(torch, rows, size)
    name = harness.variant(options, options.net, options.mode, f"b{size}", options.loop)
    usual = (50, 100, 100 if keras else 20)
    if options.mode == "train":

        def make_optimizer(parameters, **flags):
            return torch.optim.Adam(parameters, lr=1e-3, **flags)

        step = harness.trainer(options, network, criterion, make_optimizer, batch_of)
        harness.measure("mlp_small", name, options, usual, size, step)
        return
    kind = torch.bfloat16 if options.dtype == "bf16" else torch.float32
    network = network.eval().to(kind)
    forward = torch.compile(network) if options.compile else network
    with torch.no_grad() if options.compile else torch.inference_mode():
        harness.measure("mlp_small", name, options, usual, size, lambda number: forward(batch_of(number)[0].to(kind)))


def resident(rows, size, count):
    """A pool of batches, used in turn."""
    pool = [rows(size) for _ in range(count)]
    return lambda number: pool[number % count]


def epochs(torch, rows, size):
    """Batches gathered from 1000 rows (or as many as make whole batches) in a new order each epoch."""
    per_epoch = max(1, 1000 // size)
    inputs, targets = rows(per_epoch * size)
    order = ()

    def batch_of(number):
        nonlocal order
        if number % per_epoch == 0 or not order:
            order = torch.randperm(per_epoch * size).split(size)
        chosen = order[number % per_epoch]
        return inputs.index_select(0, chosen), targets.index_select(0, chosen)

    return batch_of


if __name__ == "__main__":
    main()
