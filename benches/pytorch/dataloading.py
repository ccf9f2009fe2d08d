#!/usr/bin/env python3
"""dataloading: batches of 32 x 32 colour images out of a folder of JPEG files, FOLDER/CLASS/FILE.

Each image is decoded, cut to 32 x 32 at a random place after 4 pixels of black were added on each side, mirrored with
probability 1/2, and normalised as (x / 255 - mean) / std, mean (0.4914, 0.4822, 0.4465), std (0.2470, 0.2435, 0.2616).
In a new random order each epoch, batch 128, no smaller last batch. Unit: images/s; one timed sample is 10 batches.

With --photographs a random part of each image (RandomResizedCrop) is scaled to 224 x 224 in place of the shift, batch 32.
--cache-mb: megabytes of decoded images that tch-suite keeps from one epoch to the next; a DataLoader keeps none.

Timed once for each number of --workers that load beside the main program (default: 0 and 2); the fastest is printed.
Workers are warm and may be ahead when the clock starts, and go on from epoch to epoch.
In PyTorch: torchvision's ImageFolder with Pillow and transforms.v2, workers are processes (rss_mb is without them). In
tch-suite: workers are threads, and the main program normalises.
"""

import harness


def main():
    parser = harness.arguments(__doc__)
    parser.add_argument("--folder", required=True, metavar="FOLDER", help="where the images are")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], metavar="N", help="numbers of workers to try")
    parser.add_argument("--photographs", action="store_true", help="random parts of large images, scaled to 224 x 224")
    parser.add_argument("--cache-mb", type=int, default=0, metavar="MB", help="without effect: a DataLoader keeps no images")
    options = parser.parse_args()
    torch = harness.prepare(options)
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    options.mode = "load"
    size = options.batch or (32 if options.photographs else 128)
    transform = v2.Compose(
        [
            v2.ToImage(),
            v2.RandomResizedCrop(224, antialias=True) if options.photographs else v2.RandomCrop(32, padding=4),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        ]
    )
    images = ImageFolder(options.folder, transform=transform)
    if len(images) < size:
        parser.error(f"{options.folder} holds {len(images)} images, fewer than a batch of {size}")
    best = None
    for workers in options.workers:
        loader = DataLoader(
            images, batch_size=size, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
        )
        batches = iter(())

        def step(number):
            nonlocal batches
            batch = next(batches, None)
            if batch is None:
                batches = iter(loader)
                batch = next(batches)
            return batch[0]

        rates, further = harness.timed(options, (20, 10, 10), size, step)
        del further["loss_first"], further["loss_last"], further["startup_s"]
        kind = "photographs-" if options.photographs else ""
        name = harness.variant(options, f"{kind}workers{workers}", f"b{size}")
        if best is None or harness.percentile(rates, 50) > harness.percentile(best[1], 50):
            best = name, rates, further
        del loader, batches
    name, rates, further = best
    harness.emit("dataloading", name, "images/s", rates, files=len(images), **further)


if __name__ == "__main__":
    main()
