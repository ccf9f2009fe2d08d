#!/usr/bin/env python3
"""lenet5: LeNet-5 on 28 x 28 grey images.

conv 1->6 5x5 padding 2, ReLU, maxpool 2    -> 6 x 14 x 14
conv 6->16 5x5, ReLU, maxpool 2             -> 16 x 5 x 5
linear 400->120, ReLU; 120->84, ReLU; 84->10     61,706 parameters, PyTorch's initial values

Input: bytes in 0..255, normalised in each step as (x / 255 - 0.5) / 0.25. Batch 128. Loss: mean cross-entropy.
Adam, rate 1e-3, betas 0.9 and 0.999, eps 1e-8. Unit: samples/s.
--mode infer: the forward pass in evaluation and inference mode, normalisation included.
"""

import harness


def main():
    options = harness.arguments(__doc__).parse_args()
    torch = harness.prepare(options)
    import images
    from networks import LeNet5

    images.run(
        "lenet5",
        LeNet5(),
        options,
        input_shape=(1, 28, 28),
        classes=10,
        batch=128,
        make_optimizer=lambda parameters, **flags: torch.optim.Adam(parameters, lr=1e-3, **flags),
        criterion=torch.nn.functional.cross_entropy,
        usual=(200, 20, 1),
    )


if __name__ == "__main__":
    main()
