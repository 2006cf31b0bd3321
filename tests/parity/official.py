"""Scores of images by the packages of the authors, for test_rewards.py: run by an interpreter that has them.

    python official.py PACKAGE PROMPT IMAGE ...

Prints a list of numbers as JSON. The packages download their weights.
"""

import json
import sys


def imagereward(prompt: str, files: list[str]) -> list[float]:
    import ImageReward  # pyright: ignore[reportMissingImports]

    model = ImageReward.load("ImageReward-v1.0", device="cpu")
    return [model.score(prompt, file) for file in files]


def hpsv2(prompt: str, files: list[str], version: str = "v2.1") -> list[float]:
    import hpsv2  # pyright: ignore[reportMissingImports]

    return [float(hpsv2.score(file, prompt, hps_version=version)[0]) for file in files]


def imscore(kind: str, prompt: str, files: list[str]) -> list[float]:
    import importlib

    import numpy as np
    import torch
    from PIL import Image

    module, name, weights = {
        "pickscore": ("pickscore", "PickScorer", "RE-N-Y/pickscore"),
        "aesthetic": ("aesthetic", "LAIONAestheticScorer", "RE-N-Y/laion-aesthetic"),
        "imagereward": ("imreward", "ImageReward", "RE-N-Y/ImageReward"),
        "hps": ("hps", "HPSv2", "RE-N-Y/hpsv21"),
    }[kind]
    model = getattr(importlib.import_module(f"imscore.{module}.model"), name).from_pretrained(weights)
    values = []
    for file in files:
        pixels = torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            values.append(float(model.score(pixels, [prompt])))
    return values


def main() -> None:
    package, prompt, *files = sys.argv[1:]
    name, _, kind = package.partition(":")
    values = imscore(kind, prompt, files) if name == "imscore" else globals()[name](prompt, files)
    print(json.dumps(values))


if __name__ == "__main__":
    main()
