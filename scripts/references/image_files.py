#!/usr/bin/env python3
"""Small image files of many kinds and what Pillow makes of them: tests/fixtures/images/ with pixels.json.

    image_files.py      (needs Pillow and numpy)

pixels.json has for each file its height and width after the EXIF orientation is applied, its pixels as
ImageOps.exif_transpose and convert("RGB") give them (hexadecimal, rows from above, red green blue), and by how much a decoder
may differ in a value: 0 for lossless files; for lossy ones what other roundings in the inverse transform and the colour
conversion make. Of 16 bits to a value Pillow keeps the upper 8 or cuts off at 255; the pixels of these files are
round(value / 257), as torchvision's to_dtype scales.
"""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "images"
HEIGHT, WIDTH = 8, 12
LOSSY = 2
# At the right edge, where the last block of a picture of 12 pixels ends, decoders interpolate chroma of half the resolution differently.
HALF_CHROMA = 6


def picture():
    """No rotation or mirroring leaves it as it is, and it is smooth, so that lossy coding changes little."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    red = 255 * x / (WIDTH - 1)
    green = 255 * y / (HEIGHT - 1)
    blue = 255 * np.exp(-((x - 3) ** 2 + (y - 2) ** 2) / 8)
    return np.stack([red, green, blue], axis=-1).round().astype(np.uint8)


def encoded(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def orientation(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def png16(values, color_type):
    """A PNG of 16 bits to a value, which Pillow cannot write in colour."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def main():
    pixels = picture()
    color = Image.fromarray(pixels)
    grey = color.convert("L")
    palette = color.quantize(32)
    alpha = Image.fromarray(np.dstack([pixels, np.tile(np.arange(WIDTH) * 20, (HEIGHT, 1)).astype(np.uint8)]))
    other = Image.fromarray(255 - pixels)
    wide = pixels.astype(np.uint16) * 257 + np.arange(WIDTH, dtype=np.uint16)[None, :, None] % 7
    wide_grey = wide[..., 0]
    # name: (content, allowed difference, pixels if not Pillow's)
    files = {
        "color.jpg": (encoded(color, "JPEG", quality=90), HALF_CHROMA, None),
        "full-chroma.jpg": (encoded(color, "JPEG", quality=95, subsampling=0), LOSSY, None),
        "progressive.jpg": (encoded(color, "JPEG", quality=90, progressive=True), HALF_CHROMA, None),
        "grey.jpg": (encoded(grey, "JPEG", quality=90), LOSSY, None),
        "cmyk.jpg": (encoded(color.convert("CMYK"), "JPEG", quality=95), LOSSY, None),
        "color.png": (encoded(color, "PNG"), 0, None),
        "palette.png": (encoded(palette, "PNG"), 0, None),
        "transparent-palette.png": (encoded(palette, "PNG", transparency=3), 0, None),
        "alpha.png": (encoded(alpha, "PNG"), 0, None),
        "grey.png": (encoded(grey, "PNG"), 0, None),
        "grey-alpha.png": (encoded(Image.merge("LA", [grey, alpha.getchannel("A")]), "PNG"), 0, None),
        "one-bit.png": (encoded(color.convert("1"), "PNG"), 0, None),
        "turned.png": (encoded(color, "PNG", exif=orientation(6)), 0, None),
        "grey-16.png": (png16(wide_grey, 0), 0, np.repeat((wide_grey / 257).round()[..., None], 3, axis=-1)),
        "color-16.png": (png16(wide, 2), 0, (wide / 257).round()),
        "color.bmp": (encoded(color, "BMP"), 0, None),
        "palette.bmp": (encoded(palette, "BMP"), 0, None),
        "lossless.webp": (encoded(color, "WEBP", lossless=True), 0, None),
        "lossy.webp": (encoded(color, "WEBP", quality=90), LOSSY, None),
        "alpha.webp": (encoded(alpha, "WEBP", lossless=True, exact=True), 0, None),
        "animated.gif": (encoded(palette, "GIF", save_all=True, append_images=[other.quantize(32)], duration=100), 0, None),
        "transparent.gif": (encoded(palette, "GIF", transparency=3), 0, None),
    }
    for value in range(1, 9):
        content = encoded(color, "JPEG", quality=95, subsampling=0, exif=orientation(value))
        files[f"orientation-{value}.jpg"] = (content, LOSSY, None)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for old in FOLDER.iterdir():
        old.unlink()
    expected = {}
    for name, (content, difference, known) in files.items():
        (FOLDER / name).write_bytes(content)
        if known is None:
            known = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))
        expected[name] = {
            "size": list(known.shape[:2]),
            "difference": difference,
            "rgb": known.astype(np.uint8).tobytes().hex(),
        }
    (FOLDER / "pixels.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
