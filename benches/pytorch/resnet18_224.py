#!/usr/bin/env python3
"""resnet18_224: torchvision's ResNet-18 on 224 x 224 colour images, 1,000 classes, 11,689,512 parameters.

conv 3->64 7x7 stride 2, batch norm, ReLU, maxpool 3x3 stride 2; four groups of two blocks with 64, 128, 256, 512
channels, the first block of the last three with stride 2 and a 1x1 convolution with batch norm as its shortcut; mean over
all pixels, linear 512->1000. torchvision's initial values.

Input: bytes in 0..255, normalised in each step as (x / 255 - 0.5) / 0.25. Batch 16. Loss: mean cross-entropy.
SGD, rate 0.1, momentum 0.9, weight decay 1e-4 on everything. Unit: samples/s.
--mode infer: the forward pass in evaluation and inference mode, normalisation included.
"""

import harness


def main():
    options = harness.arguments(__doc__).parse_args()
    torch = harness.prepare(options)
    import images
    from torchvision.models import resnet18

    images.run(
        "resnet18_224",
        resnet18(weights=None),
        options,
        input_shape=(3, 224, 224),
        classes=1000,
        batch=16,
        make_optimizer=lambda parameters, **flags: torch.optim.SGD(
            parameters, lr=0.1, momentum=0.9, weight_decay=1e-4, **flags
        ),
        criterion=torch.nn.functional.cross_entropy,
        usual=(30, 5, 1),
    )


if __name__ == "__main__":
    main()
