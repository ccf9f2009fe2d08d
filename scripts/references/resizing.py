"""Images scaled and cut by torchvision on Pillow images: tests/fixtures/resizing.json.

    python scripts/references/resizing.py tests/fixtures/resizing.json

Written with torchvision 0.28 and Pillow 13. The input is a formula that the test computes too.
"""

import json
import sys
from pathlib import Path

import numpy
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

CASES = [
    # height, width, shorter side, cut
    (31, 47, 16, [14, 14]),
    (47, 31, 20, [20, 17]),
    (9, 13, 24, [22, 24]),
    (40, 40, 40, [33, 32]),
    (100, 7, 5, [5, 5]),
]


def image(height, width):
    rows, columns = numpy.indices((height, width))
    values = (rows * 37 + columns * 91 + rows * columns * 13 + (rows // 5 + columns // 7) % 2 * 128) % 256
    return Image.fromarray(values.astype(numpy.uint8), "L")


def main():
    cases = []
    for height, width, shorter, cut in CASES:
        for interpolation in ("bilinear", "bicubic"):
            mode = InterpolationMode(interpolation)
            scaled = F.resize(image(height, width), [shorter], interpolation=mode, antialias=True)
            result = numpy.asarray(F.center_crop(scaled, cut))
            cases.append({
                "image": [height, width], "shorter_side": shorter, "interpolation": interpolation, "input": cut,
                "pixels": result.flatten().tolist(),
            })  # fmt: skip
    Path(sys.argv[1]).write_text(json.dumps(cases) + "\n")


if __name__ == "__main__":
    main()
