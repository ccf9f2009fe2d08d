#!/usr/bin/env python3
"""Makes assets/mnist-mini/ and assets/digits/ from the official MNIST files.

    scripts/make_assets.py MNIST_FOLDER [ASSETS_FOLDER]

MNIST_FOLDER holds train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and
t10k-labels-idx1-ubyte, each gzipped (.gz) or not. Only the standard library is used.

An image is chosen by the SHA-256 of "SPLIT POSITION" (train 0, test 9999, ...): the images of a split are put in the
order of these digests. The first 10,000 training and the first 2,000 test images make the small set, in their official
order; of the test images that follow, the first two of each class become the PNGs. So the choice is random, has no
seed to forget, and does not depend on anyone's random number generator.
"""

import gzip
import hashlib
import io
import struct
import sys
import zlib
from pathlib import Path

TRAIN_IMAGES = 10_000
TEST_IMAGES = 2_000
PNGS_PER_CLASS = 2

# MD5 of the official files, uncompressed: another data set with these file names is refused.
OFFICIAL_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


def read_official(folder, name):
    """The bytes of one official file, uncompressed and verified."""
    plain, gzipped = folder / name, folder / f"{name}.gz"
    if plain.exists():
        content = plain.read_bytes()
    elif gzipped.exists():
        content = gzip.decompress(gzipped.read_bytes())
    else:
        sys.exit(f"make_assets.py: {folder} has neither {name} nor {name}.gz.")
    if hashlib.md5(content).hexdigest() != OFFICIAL_MD5[name]:
        sys.exit(f"make_assets.py: {folder / name} is not the official MNIST file (its MD5 differs).")
    return content


def read_split(folder, prefix):
    """The images (bytes of 28 x 28 pixels each, row by row) and the labels of a split."""
    images = read_official(folder, f"{prefix}-images-idx3-ubyte")
    labels = read_official(folder, f"{prefix}-labels-idx1-ubyte")
    magic, count, rows, columns = struct.unpack(">IIII", images[:16])
    assert (magic, rows, columns) == (2051, 28, 28) and struct.unpack(">II", labels[:8]) == (2049, count)
    size = rows * columns
    return [images[16 + i * size : 16 + (i + 1) * size] for i in range(count)], list(labels[8:])


def shuffled(split, count):
    """The positions of a split, in the order of the digests of their names."""
    return sorted(range(count), key=lambda position: hashlib.sha256(f"{split} {position}".encode()).digest())


def write_gzip(path, content):
    """Without a time or a name inside, so that equal content is an equal file."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", fileobj=buffer, mode="wb", compresslevel=9, mtime=0) as file:
        file.write(content)
    path.write_bytes(buffer.getvalue())


def write_idx(folder, prefix, images, labels, positions):
    """The chosen images and labels, in the official form and under the official file names."""
    pixels = b"".join(images[position] for position in positions)
    header = struct.pack(">IIII", 2051, len(positions), 28, 28)
    write_gzip(folder / f"{prefix}-images-idx3-ubyte.gz", header + pixels)
    header = struct.pack(">II", 2049, len(positions))
    write_gzip(folder / f"{prefix}-labels-idx1-ubyte.gz", header + bytes(labels[position] for position in positions))


def write_png(path, pixels):
    """A 28 x 28 PNG in 8-bit grey."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + pixels[row * 28 : (row + 1) * 28] for row in range(28))
    header = struct.pack(">IIBBBBB", 28, 28, 8, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    )


def main(mnist, assets):
    mini, digits = assets / "mnist-mini", assets / "digits"
    mini.mkdir(parents=True, exist_ok=True)
    digits.mkdir(parents=True, exist_ok=True)

    images, labels = read_split(mnist, "train")
    order = shuffled("train", len(images))
    write_idx(mini, "train", images, labels, sorted(order[:TRAIN_IMAGES]))

    images, labels = read_split(mnist, "t10k")
    order = shuffled("test", len(images))
    write_idx(mini, "t10k", images, labels, sorted(order[:TEST_IMAGES]))
    written = [0] * 10
    for position in order[TEST_IMAGES:]:
        label = labels[position]
        if written[label] < PNGS_PER_CLASS:
            write_png(digits / f"{label}-{'ab'[written[label]]}.png", images[position])
            written[label] += 1


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or sys.argv[1].startswith("-"):
        print(__doc__)
        sys.exit(0 if sys.argv[1:] in (["--help"], ["-h"]) else 2)
    repository = Path(__file__).resolve().parent.parent
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else repository / "assets")
