#!/usr/bin/env python3
"""cnn_small: the small network of TensorFlow's CIFAR-10 tutorial on 32 x 32 colour images.

conv 3->32 3x3, ReLU, maxpool 2     -> 32 x 15 x 15
conv 32->64 3x3, ReLU, maxpool 2    -> 64 x 6 x 6
conv 64->64 3x3, ReLU               -> 64 x 4 x 4
linear 1024->64, ReLU; 64->10          122,570 parameters, PyTorch's initial values

Input: bytes in 0..255, normalised in each step as (x / 255 - 0.5) / 0.25. Batch 64. Loss: mean cross-entropy.
Adam, rate 1e-3, betas 0.9 and 0.999, eps 1e-8. Unit: samples/s.
--mode infer: the forward pass in evaluation and inference mode, normalisation included.
"""

import harness


def main():
    options = harness.arguments(__doc__).parse_args()
    torch = harness.prepare(options)
    import images
    from networks import KerasCnn

    images.run(
        "cnn_small",
        KerasCnn(),
        options,
        input_shape=(3, 32, 32),
        classes=10,
        batch=64,
        make_optimizer=lambda parameters, **flags: torch.optim.Adam(parameters, lr=1e-3, **flags),
        criterion=torch.nn.functional.cross_entropy,
        usual=(200, 20, 1),
    )


if __name__ == "__main__":
    main()
