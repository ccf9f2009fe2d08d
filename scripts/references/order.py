#!/usr/bin/env python3
"""Permutations that src/data/order.rs must reproduce. Needs torch==2.13.0.

    python3 scripts/references/order.py

prints one line for each case; the expected values in the tests of src/data/order.rs and src/native/random.rs are copied
from it.
"""

import torch

for length, seed in [(10, 0), (10, 7), (10, 8)]:
    order = torch.randperm(length, generator=torch.Generator().manual_seed(seed))
    print(f"length {length}, seed {seed}: {order.tolist()}")

# A pass of the run's second epoch over classes of six, three and one samples, drawn so that each class comes equally often.
weights = [1 / 6] * 6 + [1 / 3] * 3 + [1.0]
print(list(torch.utils.data.WeightedRandomSampler(weights, 10, True, torch.Generator().manual_seed(8))))
