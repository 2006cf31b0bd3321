"""Scores of images by the packages of the authors, for test_rewards.py: run by an interpreter that has them.

    python official.py PACKAGE WEIGHTS PROMPT IMAGE ...

WEIGHTS is "published", then the packages download theirs, or a file in the layout of the published one. Prints a list
of numbers as JSON.
"""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType


def imagereward(weights: str, prompt: str, files: list[str]) -> list[float]:
    if weights == "published":
        import ImageReward  # pyright: ignore[reportMissingImports]

        model = ImageReward.load("ImageReward-v1.0", device="cpu")
        return [model.score(prompt, file) for file in files]
    import torch

    found = find_spec("ImageReward")
    assert found is not None and found.submodule_search_locations is not None  # noqa: PT018
    for name in ("ImageReward", "ImageReward.models"):  # without their __init__, which need clip and training code
        sys.modules[name] = ModuleType(name)
        parts = name.split(".")[1:]
        sys.modules[name].__path__ = [str(Path(place, *parts)) for place in found.submodule_search_locations]
    from ImageReward.ImageReward import ImageReward as Net  # pyright: ignore[reportMissingImports]

    net = Net(med_config=str(Path(weights).with_name("med_config.json")), device="cpu")
    net.load_state_dict(torch.load(weights, weights_only=True), strict=True)
    net.eval()
    return [net.score(prompt, file) for file in files]


def hpsv2(weights: str, prompt: str, files: list[str], version: str = "v2.1") -> list[float]:
    if weights == "published":
        import hpsv2  # pyright: ignore[reportMissingImports]

        return [float(hpsv2.score(file, prompt, hps_version=version)[0]) for file in files]
    from hpsv2 import img_score  # pyright: ignore[reportMissingImports]
    from hpsv2.src.open_clip import create_model_and_transforms  # pyright: ignore[reportMissingImports]

    net, _, preprocess = create_model_and_transforms(
        "ViT-H-14", None, precision="amp", device="cpu", light_augmentation=True, aug_cfg={}, output_dict=True
    )  # as img_score.initialize_model does, without the download of weights that the file replaces
    img_score.model_dict.update(model=net, preprocess_val=preprocess)
    return [float(value) for value in img_score.score(files, prompt, cp=weights)]


def imscore(weights: str, prompt: str, files: list[str], kind: str) -> list[float]:
    import importlib

    import numpy as np
    import torch
    from PIL import Image

    assert weights == "published"
    module, name, hub = {
        "pickscore": ("pickscore", "PickScorer", "RE-N-Y/pickscore"),
        "aesthetic": ("aesthetic", "LAIONAestheticScorer", "RE-N-Y/laion-aesthetic"),
        "imagereward": ("imreward", "ImageReward", "RE-N-Y/ImageReward"),
        "hps": ("hps", "HPSv2", "RE-N-Y/hpsv21"),
    }[kind]
    model = getattr(importlib.import_module(f"imscore.{module}.model"), name).from_pretrained(hub)
    values = []
    for file in files:
        pixels = torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            values.append(float(model.score(pixels, [prompt])))
    return values


def main() -> None:
    package, weights, prompt, *files = sys.argv[1:]
    name, _, kind = package.partition(":")
    print(json.dumps(globals()[name](weights, prompt, files, *([kind] if kind else []))))


if __name__ == "__main__":
    main()
