"""How fast images are scored by a ViT-H/14 beside the package hpsv2: `python -m benchmarks.scoring [KEY=VALUE ...]`.

Random weights in the layout of HPS v2.1 (4 GB in a temporary folder), one prompt, image files of `side` px, one CPU
thread. Values are compared before anything is timed. Prints a table and writes `benchmarks/results/scoring.json`: CPU
seconds per image, the median of the repeats, and the ratio to ours.

    ours                 HPSReward on batches of `batch`, files read and resized
    ours, gradients      the same on batches of `slopes`, with the gradient of the sum in the images
    hpsv2, resident      hpsv2.img_score.score on all files, with the model kept
    hpsv2                the same as it is: each call reads the file of weights again; one call for an image

It needs hpsv2: `pip install --no-deps hpsv2==1.2.0 clint args`, and open_clip's file bpe_simple_vocab_16e6.txt.gz in
its folder src/open_clip, which its wheel lacks. Words: num=8 batch=8 slopes=2 repeats=3 side=512.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from src.models.hps.reward import HPSReward
from src.rewards.clip_net import Clip, ClipSettings
from src.rewards.pixels import pixels
from src.runtime.device import machine

WORDS = {"num": "8", "batch": "8", "slopes": "2", "repeats": "3", "side": "512"}
RESULTS = Path(__file__).parent / "results" / "scoring.json"
PROMPT = "product photo of an oak chair in a room with a red wall"
FILE = "HPS_v2.1_compressed.pt"


def write_images(folder: Path, num: int, side: int) -> list[str]:
    """Smooth random images as JPEG files."""
    files = [str(folder / f"{number}.jpg") for number in range(num)]
    for number, file in enumerate(files):
        rough = np.random.default_rng(number).integers(0, 256, (9, 9, 3)).astype(np.uint8)
        Image.fromarray(rough).resize((side, side), Image.Resampling.BICUBIC).save(file, quality=95)
    return files


def scores(reward: HPSReward, files: list[str], batch: int, gradients: bool = False) -> list[float]:
    """The values of image files of one size, in batches; with `gradients`, also those of their sum in the images."""
    values: list[float] = []
    for start in range(0, len(files), batch):
        images = torch.stack([pixels(file) for file in files[start : start + batch]]).requires_grad_(gradients)
        with torch.set_grad_enabled(gradients):
            found = reward(images, {"prompt": [PROMPT] * len(images)}).value
        if gradients:
            found.sum().backward()
        values += found.tolist()
    return values


def seconds(call: Callable[[], object], images: int, repeats: int) -> float:
    """CPU seconds per image, the median of the repeats."""
    spent = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        spent.append(time.process_time() - start)
    return float(np.median(spent)) / images


def main() -> int:
    words = WORDS | dict(word.split("=", 1) for word in sys.argv[1:])
    if foreign := words.keys() - WORDS.keys():
        raise SystemExit(f"scoring: no word {', '.join(sorted(foreign))}; there are {', '.join(WORDS)}")
    num, batch, slopes, repeats, side = (int(words[name]) for name in WORDS)
    try:
        from hpsv2 import img_score  # pyright: ignore[reportMissingImports]
        from hpsv2.src.open_clip import create_model_and_transforms  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise SystemExit(f"scoring: {error}; hpsv2 is needed: see python -m pydoc benchmarks.scoring") from None
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        files = write_images(Path(folder), num, side)
        weights = str(Path(folder) / FILE)
        torch.manual_seed(0)
        torch.save({"state_dict": Clip(ClipSettings("ViT-H-14")).net.state_dict()}, weights)
        reward = HPSReward("v2.1", weights)
        net, _, preprocess = create_model_and_transforms(
            "ViT-H-14", None, precision="amp", device="cpu", light_augmentation=True, aug_cfg={}, output_dict=True
        )  # as img_score does, without the download of weights that the file replaces
        img_score.model_dict.update(model=net, preprocess_val=preprocess)
        expected = [100 * float(value) for value in img_score.score(files, PROMPT, cp=weights)]
        found = scores(reward, files, batch)
        if (difference := max(abs(a - b) for a, b in zip(found, expected, strict=True))) > 0.05:
            raise SystemExit(f"scoring: the values differ by {difference}: {found} {expected}")
        spent = {"ours": seconds(lambda: scores(reward, files, batch), num, repeats)}
        few = files[:slopes]
        plain = seconds(lambda: scores(reward, few, slopes), slopes, repeats)
        spent["ours, gradients"] = seconds(lambda: scores(reward, few, slopes, True), slopes, repeats)
        with patch.object(torch, "load", return_value={"state_dict": {}}), patch.object(net, "load_state_dict"):
            spent["hpsv2, resident"] = seconds(lambda: img_score.score(files, PROMPT, cp=weights), num, repeats)
        spent["hpsv2"] = seconds(lambda: img_score.score(files[:1], PROMPT, cp=weights), 1, repeats)
    results = {
        "machine": f"{machine(torch.device('cpu'))}, torch {torch.__version__}, 1 thread",
        "date": date.today().isoformat(),
        "versions": {name: version(name) for name in ("torch", "open_clip_torch")},
        "words": words,
        "largest difference": difference,
        "range of the values": [min(expected), max(expected)],
        "CPU s per image": spent,
        "relative to ours": {name: value / spent["ours"] for name, value in spent.items()},
        "gradients relative to without": spent["ours, gradients"] / plain,
    }
    for name, value in spent.items():
        print(f"{name:<18} {value:8.2f} s of CPU per image, {value / spent['ours']:6.2f} times ours")
    print(f"gradients cost {results['gradients relative to without']:.2f} times the pass without them")
    print(f"largest difference of the values: {difference:.1e}")
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
