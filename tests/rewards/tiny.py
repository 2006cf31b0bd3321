"""Tiny fresh nets: a function named after a reward's YAML makes them in a folder and gives the arguments to set."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from src.build import build
from src.rewards.head import LinearHead
from src.runtime.checkpoint import ABOUT, save
from tests.rewards import published

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
CLIP = {  # open_clip's layout: 3 blocks in each tower, 32 px
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 3},
        "text_cfg": {
            "context_length": 24, "vocab_size": 320, "hf_tokenizer_name": "tiny", "width": 32, "heads": 2, "layers": 3,
            "pool_type": "eos", "eos_id": 1,
        },
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


def clip_folder(folder: Path, vision: dict[str, Any] | None = None) -> str:
    """A folder in open_clip's layout with a tiny configuration and the showroom's tokenizer, without weights."""
    shutil.copytree("src/data/showroom/clip", folder)
    model = {**CLIP["model_cfg"], "vision_cfg": vision or CLIP["model_cfg"]["vision_cfg"]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    return str(folder)


def on_clip(folder: Path, target: str, **arguments: Any) -> dict[str, Any]:
    """The node of a system on a tiny CLIP, whose configuration is written to the folder."""
    backbone = {"_target_": "src.rewards.clip_net.ClipSettings", "name": clip_folder(folder)}
    return {"_target_": f"src.models.{target}", "backbone": backbone, **arguments}


def clip(folder: Path) -> dict[str, str]:
    made = checkpoint(folder / "clip", on_clip(folder / "config", "clip.system.ClipSystem"))
    return {"name": made, "weights": made}


def pickscore(folder: Path) -> dict[str, Any]:
    published.clip().save_pretrained(folder / "weights")
    return {"weights": str(folder / "weights"), "name": clip_folder(folder / "clip")}


def aesthetic(folder: Path) -> dict[str, Any]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(LinearHead(CLIP["model_cfg"]["embed_dim"]).state_dict(), folder / "head.pth")
    made = clip(folder)
    return {"head": str(folder / "head.pth"), "name": made["name"], "weights": made["weights"]}


def imagereward(folder: Path) -> dict[str, Any]:
    torch.save(published.blip(), folder / "ImageReward.pt")
    return {"weights": str(folder), "tokenizer": "src/data/showroom/text", "sizes": published.BLIP}


def vlm(folder: Path) -> dict[str, Any]:
    return {"name": published.qwen(folder)}


def hps(folder: Path) -> dict[str, str]:
    return {"checkpoint": checkpoint(folder / "hps", on_clip(folder / "config", "hps.system.HPSSystem"))}


def mix(folder: Path) -> dict[str, Any]:
    first = rfnet(folder)
    other = checkpoint(folder / "second", {**RFNET, "inputs": ["image", "title"]}, seed=1)
    return {"rewards": {"first": first, "second": {**first, "checkpoint": other}}, "weights": None}
