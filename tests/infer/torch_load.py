"""torch_load.py MODEL EXPORT: checks that PyTorch and safetensors read the same bits from an export as from its model.

EXPORT is a public folder (checkpoints/*.pt) or a model directory, sharded or not; MODEL is a model directory.
"""
import json
import pathlib
import sys

import torch
from safetensors.torch import load_file


def load_directory(path):
    """A model directory's tensors, as Hugging Face's loaders find them."""
    index = path / "model.safetensors.index.json"
    if not index.exists():
        return load_file(path / "model.safetensors")
    weight_map = json.loads(index.read_text())["weight_map"]
    shards = {name: load_file(path / name) for name in sorted(set(weight_map.values()))}
    return {name: shards[shard][name] for name, shard in weight_map.items()}


def load_public(path):
    """The .pt file's tensors under the model directory's names; the public code's nesting is part of the check."""
    for file in ("config.json", "dataset_statistics.json"):
        json.loads((path / file).read_text())
    (checkpoint,) = (path / "checkpoints").glob("*.pt")
    whole = torch.load(checkpoint, map_location="cpu", weights_only=True)
    mapped = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    assert list(whole) == ["model"], list(whole)
    expected = ["vision_backbone", "projector", "llm_backbone", "x_embedder", "proprio_embedder", "t_embedder", "final_layer"]
    assert list(whole["model"]) == expected, list(whole["model"])
    tensors = {}
    for module, state in whole["model"].items():
        for name, tensor in state.items():
            assert torch.equal(tensor, mapped["model"][module][name]), name
            assert tensor.is_contiguous() and not tensor.requires_grad, name
            tensors[f"{module}.{name}"] = tensor
    return tensors


def main():
    model, export = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    wanted = load_directory(model)
    found = load_public(export) if (export / "checkpoints").is_dir() else load_directory(export)
    assert sorted(wanted) == sorted(found), set(wanted) ^ set(found)
    for name, tensor in found.items():
        expected = wanted[name].to(tensor.dtype)  # PyTorch rounds to nearest even too
        assert tensor.shape == expected.shape, name
        assert torch.equal(tensor.view(torch.int8), expected.view(torch.int8)), name
    dtypes = sorted({str(tensor.dtype) for tensor in found.values()})
    print(f"{export.name}: {len(found)} tensors, {', '.join(dtypes)}")


main()
