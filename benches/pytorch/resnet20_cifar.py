#!/usr/bin/env python3
"""resnet20_cifar: ResNet-20 for CIFAR-10 (He et al. 2015, section 4.2) on 32 x 32 colour images.

conv 3->16 3x3 padding 1, batch norm, ReLU; three groups of three blocks with 16, 32, 64 channels, the first block of
the second and third group with stride 2; a block is conv 3x3, batch norm, ReLU, conv 3x3, batch norm, plus the shortcut,
ReLU; where the shape changes the shortcut takes every second pixel and pads the channels with zeros on both sides; mean
over all pixels, linear 64->10. No biases but the last. 269,722 parameters; convolutions start normal with variance
2 / fan-in, batch norm has momentum 0.1 and eps 1e-5.

Input: bytes in 0..255, normalised in each step as (x / 255 - 0.5) / 0.25. Batch 128. Loss: mean cross-entropy.
SGD, rate 0.1, momentum 0.9, weight decay 1e-4 on everything. Unit: samples/s.
--mode infer: the forward pass in evaluation and inference mode, normalisation included.
"""

import harness


def main():
    options = harness.arguments(__doc__).parse_args()
    torch = harness.prepare(options)
    import images
    from networks import ResNet20

    images.run(
        "resnet20_cifar",
        ResNet20(),
        options,
        input_shape=(3, 32, 32),
        classes=10,
        batch=128,
        make_optimizer=lambda parameters, **flags: torch.optim.SGD(
            parameters, lr=0.1, momentum=0.9, weight_decay=1e-4, **flags
        ),
        criterion=torch.nn.functional.cross_entropy,
        usual=(40, 5, 1),
    )


if __name__ == "__main__":
    main()
