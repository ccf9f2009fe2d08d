"""What the reference scripts read of a run folder of the suite, and the network that its recipe stands for."""

import json
import sys
from pathlib import Path

# The networks are kept with the benchmarks, which use them too.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benches" / "pytorch"))
from networks import LeNet5  # noqa: E402


def read_recipe(run):
    return json.loads((Path(run) / "recipe.json").read_text())


def weights_file(run, checkpoint):
    """The weights that the suite predicts with: the moving average where the run has one."""
    folder = Path(run) / "checkpoints" / checkpoint
    average = folder / "ema.safetensors"
    return average if average.is_file() else folder / "model.safetensors"


def build(recipe):
    """The recipe's network with fresh weights from PyTorch's default generator."""
    model = recipe["model"]
    if model["name"] != "lenet5":
        sys.exit(f"the recipe's model is {model['name']}: there is a PyTorch form of lenet5 only")
    return LeNet5(model["in_channels"], model["image_size"], model["num_classes"], model["dropout"])
