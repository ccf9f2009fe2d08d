"""Images changed by torchvision's functions, and mixed batches with their losses: tests/fixtures/augmentations.json.

    python scripts/references/augmentations.py tests/fixtures/augmentations.json

Written with torchvision 0.28 and Pillow 13. The images are a formula that the test computes too; torchvision works on them as Pillow images.
"""

import json
import sys
from pathlib import Path

import numpy
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, RandAugment, TrivialAugmentWide, v2
from torchvision.transforms import functional as F
from torchvision.transforms.autoaugment import _apply_op

HEIGHT, WIDTH = 13, 16
NEAREST, BILINEAR = InterpolationMode.NEAREST, InterpolationMode.BILINEAR


def pixels(channels, height, width):
    channel, row, column = numpy.indices((channels, height, width))
    waves = 20 + 14 * row + 9 * column + 31 * channel + (row * column * (channel + 3)) % 23
    edges = (row // 4 + column // 5 + channel) % 3 * 45
    return ((waves + edges) % 256).astype(numpy.uint8)


def picture(channels, height=HEIGHT, width=WIDTH):
    planes = pixels(channels, height, width)
    return Image.fromarray(planes[0], "L") if channels == 1 else Image.fromarray(planes.transpose(1, 2, 0), "RGB")


def planes(image):
    array = numpy.asarray(image)
    return (array if array.ndim == 2 else array.transpose(2, 0, 1)).tobytes().hex()


def affine(lookup, angle=0.0, translate=(0, 0), scale=1.0, shear=(0.0, 0.0), center=None):
    operation = {"name": "affine", "lookup": "bilinear" if lookup is BILINEAR else "nearest", "affine": {
        "angle": angle, "translate": list(translate), "scale": scale, "shear": list(shear), "center": center,
    }}  # fmt: skip
    act = lambda image: F.affine(image, angle, list(translate), scale, list(shear), lookup, center=center)
    return operation, act


def rotate(lookup, angle):
    operation = {"name": "rotate", "angle": angle, "lookup": "bilinear" if lookup is BILINEAR else "nearest"}
    return operation, lambda image: F.rotate(image, angle, lookup)


def simple(name, act, **parameters):
    return {"name": name, **parameters}, act


def operations():
    for factor in (0.0, 0.35, 1.0, 1.6):
        yield simple("brightness", lambda image: F.adjust_brightness(image, factor), factor=factor)
        yield simple("contrast", lambda image: F.adjust_contrast(image, factor), factor=factor)
        yield simple("saturation", lambda image: F.adjust_saturation(image, factor), factor=factor)
        yield simple("sharpness", lambda image: F.adjust_sharpness(image, factor), factor=factor)
    for shift in (-0.5, -0.2, 0.07, 0.4):
        yield simple("hue", lambda image: F.adjust_hue(image, shift), shift=shift)
    for bits in (2, 5, 8):
        yield simple("posterize", lambda image: F.posterize(image, bits), bits=bits)
    for threshold in (0.0, 100.5, 255.0):
        yield simple("solarize", lambda image: F.solarize(image, threshold), threshold=threshold)
    yield simple("auto-contrast", F.autocontrast)
    yield simple("equalize", F.equalize)
    yield simple("invert", F.invert)
    yield simple("grayscale", lambda image: F.rgb_to_grayscale(image, 3) if image.mode == "RGB" else image)
    yield simple("flip-vertically", F.vflip)
    for size, sigma in ((3, 0.5), (5, 1.7), (9, 2.0)):
        blur = lambda image: F.gaussian_blur(image, [size, size], [sigma, sigma])
        yield simple("blur", blur, kernel_size=size, sigma=sigma)
    for lookup in (NEAREST, BILINEAR):
        for angle in (0.0, 17.5, -33.0, 90.0, 180.0):
            yield rotate(lookup, angle)
        yield affine(lookup, translate=(3, -2))
        yield affine(lookup, scale=1.3)
        yield affine(lookup, angle=25.0, translate=(1, 2), scale=0.8, shear=(10.0, -5.0))
        yield affine(lookup, shear=(16.7, 0.0), center=[0, 0])
        yield affine(lookup, shear=(0.0, 16.7), center=[0, 0])


def policies():
    for name, policy, level in (
        ("rand-augment", RandAugment(), 9),
        ("rand-augment", RandAugment(), 30),
        ("trivial-augment", TrivialAugmentWide(), 21),
    ):
        space = policy._augmentation_space
        space = space(31, (HEIGHT, WIDTH)) if name == "rand-augment" else space(31)
        kinds = {}
        for kind, (magnitudes, _) in space.items():
            magnitude = float(magnitudes[level]) if magnitudes.ndim > 0 else 0.0
            kinds[kind] = planes(_apply_op(picture(3), kind, magnitude, NEAREST, None))
        yield {"policy": name, "level": level, "pixels": kinds}


def crops():
    for interpolation in (BILINEAR, InterpolationMode.BICUBIC):
        for top, left, height, width, size in ((3, 5, 20, 31, [14, 14]), (0, 0, 9, 30, [24, 20]), (11, 2, 8, 8, [8, 8])):
            image = F.resized_crop(picture(3, 31, 40), top, left, height, width, size, interpolation, antialias=True)
            part = {"top": top, "left": left, "height": height, "width": width}
            yield {"part": part, "size": size, "interpolation": interpolation.value, "pixels": planes(image)}


class Fixed:
    """In place of the distribution that weights are drawn from."""

    def __init__(self, weight):
        self.weight = weight

    def sample(self, shape):
        return torch.tensor(self.weight, dtype=torch.float64)


def mixtures():
    batch = torch.from_numpy(numpy.stack([pixels(3, 8, 10) + 7 * n for n in range(4)])).float() / 255
    labels = torch.tensor([2, 0, 1, 1])
    logits = torch.sin(torch.arange(12.0)).view(4, 3) * 2
    weights = torch.tensor([0.5, 1.0, 3.0])
    for name, transform, weight, seed in (
        ("mixup", v2.MixUp(num_classes=3), 0.3, 0), ("mixup", v2.MixUp(num_classes=3), 0.85, 0),
        ("cutmix", v2.CutMix(num_classes=3), 0.4, 1), ("cutmix", v2.CutMix(num_classes=3), 0.9, 5),
    ):  # fmt: skip
        transform._dist = Fixed(weight)
        torch.manual_seed(seed)
        column, row = torch.randint(10, (1,)).item(), torch.randint(8, (1,)).item()
        torch.manual_seed(seed)
        images, targets = transform(batch, labels)
        losses = [
            {"label_smoothing": smoothing, "class_weights": None if weight is None else weight.tolist(),
             "loss": torch.nn.CrossEntropyLoss(weight=weight, label_smoothing=smoothing)(logits, targets).item()}
            for smoothing in (0.0, 0.1) for weight in (None, weights)
        ]  # fmt: skip
        yield {
            "name": name, "weight": weight, "row": row, "column": column, "images": images.flatten().tolist(),
            "targets": targets.flatten().tolist(), "logits": logits.flatten().tolist(), "losses": losses,
        }  # fmt: skip


def main():
    cases = []
    for channels in (3, 1):
        for operation, act in operations():
            cases.append({"channels": channels, "operation": operation, "pixels": planes(act(picture(channels)))})
    result = {
        "operations": cases, "policies": list(policies()), "crops": list(crops()), "mixtures": list(mixtures()),
    }  # fmt: skip
    Path(sys.argv[1]).write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
