#!/usr/bin/env python3
"""Small TorchScript modules with what they compute. Needs torch==2.13.0 and safetensors.

    python3 scripts/references/torchscript_modules.py tests/fixtures/torchscript

nested.pt takes and returns values of every kind; stateful.pt carries a state from call to call; classifier.pt is a network with batch
normalisation and dropout for grey images of 16 x 16 pixels; tokens.pt reads tokens below 500 step by step, rows.pt rows of four numbers; unregistered.pt calls an operator that no libtorch has.
"""
import io
import pathlib
import sys
import zipfile
from typing import Dict, List, Optional, Tuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn


class Nested(nn.Module):
    def forward(self, x: Tensor, groups: Dict[str, List[Tensor]], pair: Tuple[int, Optional[str]], scale: float = 2.0) -> Dict[str, Tensor]:
        total = x * scale + pair[0]
        for name in groups:
            for member in groups[name]:
                total = total + member.sum()
        suffix = pair[1]
        found: Dict[str, Tensor] = {"total": total}
        if suffix is not None:
            found[suffix] = -total
        return found

    @torch.jit.export
    def mixed(self, counts: Dict[int, bool], rows: List[List[float]]) -> Tuple[Tensor, List[int], str, Optional[Tensor], float]:
        keys: List[int] = []
        for key in counts:
            if counts[key]:
                keys.append(key)
        total = 0.0
        for row in rows:
            for value in row:
                total += value
        return torch.tensor(rows), keys, "text", None, total

    @torch.jit.export
    def fails(self, x: Tensor) -> Tensor:
        return x.view(7, -1)


class Stateful(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros(1))

    def forward(self, x: Tensor) -> Tuple[Tensor, int]:
        sums = x.cumsum(1) + self.total
        self.total = sums[:, -1:].detach()
        return sums, x.size(1)

    @torch.jit.export
    def reset(self) -> None:
        self.total = torch.zeros(1)


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.1))
        self.fc = nn.Linear(8, 4)

    @torch.jit.export
    def features(self, x: Tensor) -> Tensor:
        return self.body(x).mean([2, 3])

    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        features = self.features(x)
        return self.fc(features), features


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(500, 8)
        self.cell = nn.Linear(16, 8)
        self.scores = nn.Linear(8, 2)

    @torch.jit.export
    def states(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)
        state = torch.zeros_like(x[:, 0])
        states: List[Tensor] = []
        for step in range(x.size(1)):
            state = torch.tanh(self.cell(torch.cat([x[:, step], state], 1)))
            states.append(state)
        return torch.stack(states, 1)

    @torch.jit.export
    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Dict[str, Tensor]:
        return {"hidden": self.states(input_ids) * attention_mask.unsqueeze(2)}

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        states = self.states(tokens)
        inside = torch.arange(tokens.size(1), device=tokens.device).unsqueeze(0) < lengths.to(tokens.device).unsqueeze(1)
        return self.scores((states * inside.unsqueeze(2)).sum(1))


class Rows(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(4, 6)
        self.value = nn.Linear(6, 1)

    @torch.jit.export
    def features(self, rows: Tensor) -> Tensor:
        return torch.tanh(self.hidden(rows))

    def forward(self, rows: Tensor) -> Tensor:
        return self.value(self.features(rows)).squeeze(1)


def main():
    folder = pathlib.Path(sys.argv[1])
    torch.manual_seed(0)
    torch.jit.script(Nested()).save(folder / "nested.pt")
    torch.jit.script(Stateful()).save(folder / "stateful.pt")
    module = torch.jit.script(Classifier())
    module.save(folder / "classifier.pt")
    torch.jit.freeze(module.eval()).save(folder / "frozen.pt")
    x = torch.randn(3, 1, 16, 16)
    scores, features = module(x)
    save_file({"x": x, "output.0": scores.detach(), "output.1": features.detach()}, folder / "classifier.safetensors")
    torch.jit.script(Tokens()).save(folder / "tokens.pt")
    torch.jit.script(Rows()).save(folder / "rows.pt")
    with zipfile.ZipFile(folder / "nested.pt") as source, zipfile.ZipFile(folder / "unregistered.pt", "w") as target:
        # Records for debuggers name the folder that the script ran in.
        for name in [name for name in source.namelist() if not name.endswith(".debug_pkl")]:
            content = source.read(name)
            if name.endswith(".py"):
                content = content.replace(b"torch.neg(", b"ops.nowhere.neg(")
            target.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)


if __name__ == "__main__":
    main()
