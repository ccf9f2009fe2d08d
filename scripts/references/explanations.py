"""Grad-CAM, integrated gradients and occlusion by captum on torchvision's networks: tests/fixtures/explanations.json.

    python scripts/references/explanations.py tests/fixtures/explanations.json

Written with captum 0.9, torch 2.13 and torchvision 0.28. Weights and images are the formula's of image_models.py. Of each map every fifth value of every
fifth row is kept.
"""

import json
import sys
from pathlib import Path

import torch
import torchvision
from captum.attr import IntegratedGradients, LayerAttribution, LayerGradCam, Occlusion
from image_models import fill, formula

SIDE, CLASS, POINTS, WINDOW, STRIDE = 64, 7, 16, 12, 8
LAYERS = {"resnet18": lambda model: model.layer4, "mobilenet_v2": lambda model: model.features}


def kept(values):
    return values[::5, ::5].flatten().tolist()


def main():
    cases = {}
    for name, layer in LAYERS.items():
        model = getattr(torchvision.models, name)(num_classes=10).eval()
        fill(model)
        images = formula(3 * SIDE * SIDE, 1000).view(1, 3, SIDE, SIDE)
        cam = LayerGradCam(model, layer(model)).attribute(images, target=CLASS, relu_attributions=True)
        gradients = IntegratedGradients(model).attribute(
            images, torch.zeros_like(images), target=CLASS, n_steps=POINTS, method="riemann_middle"
        )
        occlusion = Occlusion(model).attribute(images, (3, WINDOW, WINDOW), strides=(3, STRIDE, STRIDE), baselines=0, target=CLASS)
        cases[name] = {
            "grad-cam": kept(LayerAttribution.interpolate(cam, (SIDE, SIDE), "bilinear")[0, 0]),
            "integrated-gradients": kept(gradients[0].sum(0)),
            "occlusion": kept(occlusion[0, 0]),
        }
    head = {"side": SIDE, "class": CLASS, "points": POINTS, "window": WINDOW, "stride": STRIDE}
    Path(sys.argv[1]).write_text(json.dumps({**head, "models": cases}) + "\n")


if __name__ == "__main__":
    main()
