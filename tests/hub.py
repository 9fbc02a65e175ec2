"""Tiny networks of timm in the layout of the hub: config.json and model.safetensors, in a folder or in its cache."""

import json
import shutil
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

# One network of each family, with arguments that make it small.
_TRANSFORMER = {"embed_dim": 32, "depth": 1, "num_heads": 2}
FAMILIES = {
    "vit_small_patch14_dinov2.lvd142m": _TRANSFORMER,
    "vit_small_patch16_dinov3.lvd1689m": _TRANSFORMER,
    "vit_base_patch16_clip_224.openai": _TRANSFORMER,
    "vit_base_patch16_siglip_224.v2_webli": _TRANSFORMER,
    "vit_base_patch16_224.augreg2_in21k_ft_in1k": _TRANSFORMER,
    "convnext_tiny.in12k_ft_in1k": {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]},
    "tf_efficientnet_lite0.in1k": {},
    "resnet50.tv2_in1k": {"layers": [1, 1, 1, 1]},
}


def save(folder: Path, name: str, **arguments) -> Path:
    """Write a network with random weights as ``hf download --local-dir`` would; return the folder."""
    folder.mkdir(parents=True)
    torch.manual_seed(1)
    network = timm.create_model(name, pretrained=False, **arguments)
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, folder / "model.safetensors")
    described = timm.models.get_pretrained_cfg(name).to_dict(remove_source=True, remove_null=True)
    content = {"architecture": described["architecture"], "pretrained_cfg": described, "model_args": arguments}
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def into_cache(cache: Path, repository: str, folder: Path, commit: str = "0123456789abcdef0123456789abcdef01234567"):
    """Copy a folder to where the client of the hub keeps the newest commit of a repository."""
    place = cache / f"models--{repository.replace('/', '--')}"
    shutil.copytree(folder, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
