#!/usr/bin/env python3
"""Recurrent layers and networks under torch.manual_seed. Needs torch==2.13.0.

    python3 scripts/references/recurrent.py

writes tests/fixtures/recurrent.json: initial weights of the networks of `rnn` (shape, first values as raw bits, CRC-32 of all, sum), and what plain
recurrent layers and a projected LSTM make of a formula's input: outputs, states, gradients of sum(output * probe), a packed run.
"""
import json
import pathlib
import zlib

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


def describe(tensor):
    values = tensor.detach().contiguous().flatten()
    return {
        "shape": list(tensor.shape),
        "first_bits": [value & 0xFFFFFFFF for value in values[:4].view(torch.int32).tolist()],
        "crc32": zlib.crc32(values.numpy().astype("<f4").tobytes()),
        "sum": values.double().sum().item(),
    }


class LanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(65, 24)
        self.lstm = nn.LSTM(24, 16, 2, batch_first=True, dropout=0.3)
        self.output = nn.Linear(16, 65)


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 12)
        self.gru = nn.GRU(12, 10, 1, batch_first=True, bidirectional=True)
        self.attention = nn.Linear(20, 1)
        self.output = nn.Linear(20, 3)


class Forecaster(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.RNN(7, 20, 1, batch_first=True)
        self.output = nn.Linear(20, 24 * 7)


def formula(*shape):
    count = torch.Size(shape).numel()
    return torch.sin(torch.arange(count, dtype=torch.float64) * 0.7).float().view(shape)


def numbers(tensor):
    return [round(value, 9) for value in tensor.detach().flatten().tolist()]


def layers(name, module):
    x = formula(3, 5, 3).requires_grad_()
    output, state = module(x)
    probe = torch.cos(torch.arange(output.numel(), dtype=torch.float64) * 0.3).float().view(output.shape)
    (output * probe).sum().backward()
    lengths = torch.tensor([2, 5, 3])
    packed, packed_state = module(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
    packed_output, _ = pad_packed_sequence(packed, batch_first=True)
    states = state if isinstance(state, tuple) else (state,)
    packed_states = packed_state if isinstance(packed_state, tuple) else (packed_state,)
    return {
        "name": name,
        "output": numbers(output),
        "state": [numbers(tensor) for tensor in states],
        "gradients": {key: numbers(value.grad) for key, value in module.named_parameters()},
        "input_gradient": numbers(x.grad),
        "packed_output": numbers(packed_output),
        "packed_state": [numbers(tensor) for tensor in packed_states],
    }


def main():
    networks = []
    for name, build in [("lm", LanguageModel), ("classify", Classifier), ("forecast", Forecaster)]:
        torch.manual_seed(11)
        parameters = {key: describe(value) for key, value in build().state_dict().items()}
        networks.append({"name": name, "parameters": parameters})
    cases = []
    for name, arguments, build in [
        ("rnn-tanh", {"bidirectional": False}, lambda: nn.RNN(3, 4, 2, batch_first=True)),
        ("rnn-tanh", {"bidirectional": True}, lambda: nn.RNN(3, 4, 2, batch_first=True, bidirectional=True)),
        ("rnn-relu", {"bidirectional": True}, lambda: nn.RNN(3, 4, 2, nonlinearity="relu", batch_first=True, bidirectional=True)),
        ("gru", {"bidirectional": False}, lambda: nn.GRU(3, 4, 2, batch_first=True)),
        ("lstm", {"bidirectional": True, "projection": 2}, lambda: nn.LSTM(3, 4, 2, batch_first=True, bidirectional=True, proj_size=2)),
    ]:
        torch.manual_seed(5)
        cases.append({**layers(name, build()), **arguments})
    content = {"torch": torch.__version__.split("+")[0], "networks": networks, "layers": cases}
    path = pathlib.Path(__file__).parents[2] / "tests/fixtures/recurrent.json"
    path.write_text(json.dumps(content) + "\n")
    print(f"wrote {path.name}")


if __name__ == "__main__":
    main()
