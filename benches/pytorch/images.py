"""What the workloads on images share: batches of bytes, normalised in each step as a program that reads images does."""

import harness


def run(workload, network, options, *, input_shape, classes, batch, make_optimizer, criterion, usual):
    """Times training or inference of `network` on random images.

    `input_shape` is channels, height, width; `usual` is (steps, warmup, inner).
    """
    import torch

    size = options.batch or batch
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    network = network.to(memory_format=layout)
    pool = [
        (torch.randint(256, (size, *input_shape), dtype=torch.uint8), torch.randint(classes, (size,)))
        for _ in range(options.pool)
    ]

    def normalised(pixels):
        return pixels.float().div_(255).sub_(0.5).div_(0.25).contiguous(memory_format=layout)

    def batch_of(number):
        pixels, labels = pool[number % len(pool)]
        return normalised(pixels), labels

    name = harness.variant(options, options.mode, f"b{size}")
    if options.mode == "train":
        step = harness.trainer(options, network, criterion, make_optimizer, batch_of)
        harness.measure(workload, name, options, usual, size, step)
        return
    network.eval()
    if options.dtype == "bf16":
        network = network.bfloat16()
    kind = torch.bfloat16 if options.dtype == "bf16" else torch.float32
    forward = torch.compile(network) if options.compile else network
    with torch.no_grad() if options.compile else torch.inference_mode():
        harness.measure(
            workload, name, options, usual, size, lambda number: forward(batch_of(number)[0].to(kind))
        )
