"""Tiny fresh nets: a function named after a reward's YAML makes them in a folder and gives the arguments to set."""

from pathlib import Path
from typing import Any

import torch

from src.build import build
from src.runtime.checkpoint import ABOUT, save

DEPTH = {
    "_target_": "src.models.perception.system.Depth",
    "config": {
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "backbone_out_indices": [0, 1, 2, 3],
        "reassemble_factors": [2, 1, 0.5, 0.25],
        "neck_hidden_sizes": [8, 8, 8, 8],
        "fusion_hidden_size": 8,
    },
    "image_size": 32,
}
SALIENCY = {"_target_": "src.models.perception.system.Saliency", "size": "tiny", "image_size": 32}
RFNET = {
    "_target_": "src.models.rfnet.system.RFNetSystem",
    "image_encoder": {"_target_": "src.models.layers.ImageEncoderSettings", "name": "test_resnet", "size": 32},
    "text_encoder": {"_target_": "src.models.rfnet.layers.TextEncoderSettings", "max_tokens": 16},
    "fusion": {
        "_target_": "src.models.rfnet.net.FusionSettings",
        "width": 16, "num_heads": 2, "num_layers": 1, "feedforward": 16,
    },
}  # fmt: skip
RAHF = {
    "_target_": "src.models.rahf.system.RAHFSystem",
    "image_encoder": {
        "_target_": "src.models.layers.ImageEncoderSettings", "name": "test_resnet", "size": 32, "grid": 4,
    },
    "prompt_model": {
        "_target_": "src.models.rahf.net.PromptModelSettings", "name": "src/data/showroom/t5", "max_tokens": 24,
        "options": {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_decoder_layers": 1},
    },
    "heads": {
        "_target_": "src.models.rahf.net.HeadSettings",
        "map_convs": [16], "map_deconvs": [16, 16], "score_convs": [16], "score_dense": [16],
    },
}  # fmt: skip


def checkpoint(folder: Path, model: dict[str, Any], seed: int = 0) -> str:
    """A checkpoint folder of the system `model` describes, with fresh weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        save(folder, build(model), model, {}, dict.fromkeys(ABOUT, "a test"))
    return str(folder)


def rfnet(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "checkpoint": checkpoint(folder / "rfnet", {**RFNET, **changes}),
        "depth": checkpoint(folder / "depth", DEPTH),
        "saliency": checkpoint(folder / "saliency", SALIENCY),
    }


def rahf(folder: Path) -> dict[str, Any]:
    return {"checkpoint": checkpoint(folder / "rahf", RAHF)}


def mix(folder: Path) -> dict[str, Any]:
    first = rfnet(folder)
    other = checkpoint(folder / "second", {**RFNET, "inputs": ["image", "title"]}, seed=1)
    return {"rewards": {"first": first, "second": {**first, "checkpoint": other}}, "weights": None}
