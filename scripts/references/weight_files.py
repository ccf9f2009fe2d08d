"""Small weight files of every form that PyTorch writes, and what is in them: tests/fixtures/weights and its expected.json.

    python scripts/references/weight_files.py tests/fixtures/weights

Written with torch 2.13 and safetensors 0.8. Some are damaged or hostile on purpose; nothing here loads those.
"""

import argparse
import collections
import json
import os
import pickle
import sys
import zipfile
from pathlib import Path

import numpy
import torch
from safetensors.torch import save_file
from torch import nn

DTYPES = [
    "float64", "float32", "float16", "bfloat16",
    "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz",
    "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool",
    "complex32", "complex64", "complex128",
]  # fmt: skip


def every_dtype(names):
    tensors = {}
    for name in names:
        dtype = getattr(torch, name)
        if dtype.is_complex:
            values = torch.tensor([1.5 - 2j, 0.25j, -3 + 1j], dtype=torch.complex128)
        elif dtype.is_floating_point:
            values = torch.tensor([1.5, -0.25, 3.0], dtype=torch.float64)
        else:
            values = torch.tensor([1, 0, 100])
        tensors[name] = values.to(dtype)
    return tensors


def plain():
    return collections.OrderedDict(
        weight=torch.arange(6, dtype=torch.float32).view(2, 3) / 4, bias=torch.tensor([0.5, -0.5])
    )


def views():
    """Storages with several users, offsets, strides, values repeated by strides of 0, and tensors without values."""
    base = torch.arange(24, dtype=torch.float32)
    return {
        "base": base,
        "transposed": base.view(4, 6).t(),
        "part": base.view(4, 6)[1:3, 2:5],
        "every_second": base[1::2],
        "alone": torch.arange(12, dtype=torch.float64).view(3, 4).t(),
        "alone_part": torch.arange(100, 120, dtype=torch.int32)[5:9],
        "repeated": torch.tensor([[7.0]]).expand(3, 2),
        "scalar": torch.tensor(4.0),
        "empty": torch.zeros(0, 3),
        "tied": base,
    }


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, bias=False)
        self.layers = nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 1, 1))
        self.register_buffer("scale", torch.tensor([2.0]))

    def forward(self, x):
        return self.layers(self.conv(x)) * self.scale


def network():
    torch.manual_seed(5)
    return Net().eval()


def describe(tensors):
    """Type, shape and values of each tensor; complex values as pairs, all as float64."""
    described = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        values = torch.view_as_real(tensor.to(torch.complex128)) if tensor.is_complex() else tensor
        described[name] = {
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
            "values": values.to(torch.float64).flatten().tolist(),
        }
    return described


class Hostile:
    """Unpickled, it would create a file."""

    def __reduce__(self):
        return (os.system, ("touch created-by-a-pickle",))


class Builder:
    def __init__(self, folder):
        self.folder = folder
        self.expected = {}

    def expect(self, name, form, tensors, container="", prefix=""):
        self.expected[name] = {
            "format": form, "container": container, "prefix": prefix, "tensors": describe(tensors),
        }  # fmt: skip

    def both(self, name, content, tensors, container="", prefix=""):
        """The same content in the zip form and in the form before it."""
        torch.save(content, self.folder / f"{name}.pth")
        self.expect(f"{name}.pth", "pytorch-zip", tensors, container, prefix)
        torch.save(content, self.folder / f"{name}_legacy.pth", _use_new_zipfile_serialization=False)
        self.expect(f"{name}_legacy.pth", "pytorch-legacy", tensors, container, prefix)


def honest(build):
    build.both("plain", plain(), plain())
    build.both("dtypes", every_dtype(DTYPES), every_dtype(DTYPES))
    build.both("views", views(), views())
    build.both("data_parallel", {f"module.{name}": tensor for name, tensor in plain().items()}, plain(), prefix="module.")
    compiled = {f"_orig_mod.module.{name}": tensor for name, tensor in plain().items()}
    build.both("compiled", compiled, plain(), prefix="_orig_mod.module.")
    marked = torch.tensor([3.0])
    marked.note = "an attribute"
    parameters = {"parameter": nn.Parameter(torch.tensor([1.0, 2.0])), "marked": marked}
    build.both("parameters", parameters, parameters)
    average = {name: tensor * 2 for name, tensor in plain().items()}
    checkpoint = {
        "epoch": 3,
        "arch": "small",
        "args": argparse.Namespace(lr=0.1, layers=[1, 2]),
        "best": numpy.float64(0.5),
        "history": numpy.arange(3),
        "shape": torch.Size([1, 2]),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "names": {"a", "b"},
        "counts": collections.defaultdict(list, a=[1]),
        "bytes": b"\x00\xff",
        "large": 1 << 80,
        "negative": -5,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]},
        "model": {"state_dict": plain()},
        "model_ema": average,
    }
    build.both("checkpoint", checkpoint, plain(), container="model.state_dict")
    build.expected["checkpoint.pth#model_ema"] = dict(
        build.expected["checkpoint.pth"], container="model_ema", tensors=describe(average)
    )
    parts = {"encoder": plain(), "heads": [torch.tensor([1.0]), torch.tensor([2.0])], "optimizer": checkpoint["optimizer"]}
    named = {f"encoder.{name}": tensor for name, tensor in plain().items()}
    build.both("parts", parts, named | {"heads.0": parts["heads"][0], "heads.1": parts["heads"][1]})

    # Other protocols than torch.save's own.
    for protocol in (1, 3, 4, 5):
        name = f"protocol_{protocol}.pth"
        torch.save(plain(), build.folder / name, pickle_protocol=protocol)
        build.expect(name, "pytorch-zip", plain())

    module = network()
    state = module.state_dict()
    torch.jit.script(module).save(build.folder / "scripted.pt")
    build.expect("scripted.pt", "torchscript", state)
    traced = torch.jit.trace(module, torch.zeros(1, 1, 4, 4))
    traced.save(build.folder / "traced.pt")
    build.expect("traced.pt", "torchscript", state)
    frozen = torch.jit.freeze(torch.jit.script(module))
    frozen.save(build.folder / "frozen.pt")
    constants = [
        node.t("value") for node in frozen.graph.nodes() if node.kind() == "prim::Constant" and node.output().type().isSubtypeOf(torch._C.TensorType.get())
    ]
    build.expect("frozen.pt", "torchscript", {f"CONSTANTS.c{n}": tensor for n, tensor in enumerate(constants)})

    stored = every_dtype([name for name in DTYPES if name not in ("complex32", "complex128")])
    save_file(stored, build.folder / "dtypes.safetensors", metadata={"format": "pt", "made": "here"})
    build.expect("dtypes.safetensors", "safetensors", stored)

    # Shards, as transformers writes them.
    for kind, index in (("safetensors", "model.safetensors.index.json"), ("bin", "pytorch_model.bin.index.json")):
        folder = build.folder / f"sharded_{kind}"
        folder.mkdir(exist_ok=True)
        stem = "model" if kind == "safetensors" else "pytorch_model"
        names = {}
        for number, (name, tensor) in enumerate(plain().items(), 1):
            shard = f"{stem}-{number:05}-of-00002.{kind}"
            if kind == "bin":
                torch.save({name: tensor}, folder / shard)
            else:
                save_file({name: tensor.clone()}, folder / shard, metadata={"format": "pt"})
            names[name] = shard
        (folder / index).write_text(json.dumps({"metadata": {"total_size": 32}, "weight_map": names}))
        (folder / "config.json").write_text("{}")
        build.expect(f"sharded_{kind}", "pytorch-zip" if kind == "bin" else "safetensors", plain())


def hostile(folder):
    """What must be refused."""
    evil = {"weight": torch.ones(2), "extra": Hostile()}
    torch.save(evil, folder / "hostile.pth")
    torch.save(evil, folder / "hostile_legacy.pth", _use_new_zipfile_serialization=False)
    (folder / "hostile.pkl").write_bytes(pickle.dumps(Hostile(), 2))
    torch.save(network(), folder / "whole_module.pth")
    with zipfile.ZipFile(folder / "plain.pth") as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(folder / "compressed.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), b"\0" * 1_000_000 if "/data/" in name else content, zipfile.ZIP_DEFLATED)
    for name, path in (("dots", "plain/../../outside"), ("absolute", "/tmp/outside")):
        with zipfile.ZipFile(folder / f"{name}.pth", "w") as archive:
            for member, content in members:
                archive.writestr(zipfile.ZipInfo(member), content)
            archive.writestr(zipfile.ZipInfo(path), b"outside")


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    build = Builder(folder)
    honest(build)
    hostile(folder)
    (folder / "expected.json").write_text(json.dumps(build.expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
