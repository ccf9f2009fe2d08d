#!/usr/bin/env python3
"""Makes 2,000 JPEG files of 500 x 375 pixels in ten class folders, FOLDER/CLASS/FILE: discs and stripes with soft light and grain, at quality 85
about as large as photographs are.

    python3 benches/pytorch/photographs.py FOLDER
"""

import sys
from pathlib import Path

import numpy
from PIL import Image

WIDTH, HEIGHT, COUNT = 500, 375, 2000


def scene(random):
    row, column = numpy.mgrid[:HEIGHT, :WIDTH]
    light = 90 + 60 * numpy.sin(column / random.uniform(60, 200) + row / random.uniform(60, 200))
    image = light[..., None] * random.uniform(0.6, 1.2, 3)
    for _ in range(random.integers(15, 40)):
        x, y, radius = random.uniform(0, WIDTH), random.uniform(0, HEIGHT), random.uniform(8, 90)
        disc = (column - x) ** 2 + (row - y) ** 2 < radius**2
        stripes = 40 * numpy.sin((column * random.uniform(-1, 1) + row * random.uniform(-1, 1)) / random.uniform(0.7, 4))
        image[disc] = random.uniform(20, 230, 3) + stripes[disc, None]
    return (image + random.normal(0, 7, (HEIGHT, WIDTH, 1))).clip(0, 255).astype(numpy.uint8)


def main():
    folder = Path(sys.argv[1])
    for number in range(COUNT):
        path = folder / f"class{number % 10}" / f"{number:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene(numpy.random.default_rng(number))).save(path, quality=85)


if __name__ == "__main__":
    main()
