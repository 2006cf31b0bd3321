"""Rewards against the packages of their authors, and imscore's own port of them.

The packages need older versions of others, so each has an interpreter of its own, named in a variable; docs/rewards.md
tells how. With published weights, which both sides download, 2 to 8 GB for each test; and with random weights of the
same sizes in the same layout, which need no network: 5 GB of disk.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from src.build import build
from src.config import compose
from src.models.hps.reward import HPSReward
from src.rewards.clip_net import Clip, ClipSettings
from src.rewards.imagereward import Blip, ImageReward, Sizes

pytestmark = pytest.mark.parity
OFFICIAL = Path(__file__).with_name("official.py")
PROMPT = "product photo of an oak chair in a room with a red wall"
UNUSED_SHAPES = {
    "blip.vision_proj.weight": (256, 1024), "blip.vision_proj.bias": (256,), "blip.text_proj.weight": (256, 768),
    "blip.text_proj.bias": (256,),
}  # fmt: skip
MED = {  # the text encoder's configuration, which is published beside the weights
    "architectures": ["BertModel"], "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072,
    "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert", "num_attention_heads": 12,
    "num_hidden_layers": 12, "pad_token_id": 0, "add_type_embeddings": False, "vocab_size": 30524,
    "encoder_width": 1024, "add_cross_attention": True,
}  # fmt: skip
SIZES = ((224, 224), (512, 512), (300, 200), (200, 301))
# Reward, changes, package, its variable, factor of its values, tolerance. imscore resizes as it likes: its own errors,
# which it states as 0.17 to 0.76 %, are part of the tolerance.
CASES = [
    ("imagereward", [], "imagereward", "IMAGEREWARD_PYTHON", 1, 0.02),
    ("hps", ["reward.checkpoint=v2.1"], "hpsv2", "HPSV2_PYTHON", 100, 0.1),
    ("pickscore", [], "imscore:pickscore", "IMSCORE_PYTHON", 1, 0.2),
    ("aesthetic", [], "imscore:aesthetic", "IMSCORE_PYTHON", 1, 0.1),
    ("imagereward", [], "imscore:imagereward", "IMSCORE_PYTHON", 1, 0.1),
    ("hps", ["reward.checkpoint=v2.1"], "imscore:hps", "IMSCORE_PYTHON", 100, 0.5),
]


def pictures(folder: Path) -> list[str]:
    """Smooth random pictures of several shapes."""
    files = []
    for number, size in enumerate(SIZES):
        rough = np.random.default_rng(number).integers(0, 256, (9, 13, 3)).astype(np.uint8)
        files.append(str(folder / f"{number}.png"))
        Image.fromarray(rough).resize(size, Image.Resampling.BICUBIC).save(files[-1])
    return files


def official(python: str, package: str, weights: str, files: list[str], folder: Path) -> list[float]:
    words = [python, str(OFFICIAL), package, weights, PROMPT, *files]
    run = subprocess.run(words, capture_output=True, text=True, check=False, cwd=folder)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize(("name", "words", "package", "variable", "factor", "tolerance"), CASES)
def test_scores_are_those_of_the_package(
    tmp_path: Path, name: str, words: list[str], package: str, variable: str, factor: float, tolerance: float
):
    if not (python := os.environ.get(variable)):
        pytest.skip(f"{variable} is not set: docs/rewards.md")
    files = pictures(tmp_path)
    expected = [factor * value for value in official(python, package, "published", files, tmp_path)]
    reward: Any = build(compose("score", [f"reward={name}", "table=any.csv", *words]).reward)
    fields = {"prompt": PROMPT} if "prompt" in reward.fields else {}
    found = [reward.rate(file, **fields) for file in files]
    assert found == pytest.approx(expected, abs=tolerance)


def interpreter(variable: str) -> str:
    return os.environ.get(variable) or pytest.skip(f"{variable} is not set: docs/rewards.md")


def test_hps_with_random_weights_scores_as_hpsv2(tmp_path: Path):
    python, files = interpreter("HPSV2_PYTHON"), pictures(tmp_path)
    torch.manual_seed(0)
    clip = Clip(ClipSettings("ViT-H-14"))
    torch.save({"state_dict": clip.net.state_dict()}, tmp_path / "HPS_v2.1_compressed.pt")
    expected = official(python, "hpsv2", str(tmp_path / "HPS_v2.1_compressed.pt"), files, tmp_path)
    reward = HPSReward("v2.1", str(tmp_path / "HPS_v2.1_compressed.pt"))
    found = [reward.rate(file, prompt=PROMPT) for file in files]
    assert np.ptp(found) > 1e-3
    assert found == pytest.approx([100 * value for value in expected], abs=1e-2)


def test_imagereward_with_random_weights_scores_as_image_reward(tmp_path: Path):
    python, files = interpreter("IMAGEREWARD_PYTHON"), pictures(tmp_path)
    torch.manual_seed(0)
    state = {name: torch.randn(shape) for name, shape in UNUSED_SHAPES.items()}
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(512)[None]
    torch.save(Blip(Sizes()).state_dict() | state, tmp_path / "ImageReward.pt")
    (tmp_path / "med_config.json").write_text(json.dumps(MED))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set(PROMPT.split()))]
    words += [f"[unused{number}]" for number in range(30522 - len(words))]
    tokenizer = tmp_path / "bert-base-uncased"  # the name by which the package looks for it
    tokenizer.mkdir()
    (tokenizer / "vocab.txt").write_text("\n".join(words) + "\n")
    (tokenizer / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    expected = official(python, "imagereward", str(tmp_path / "ImageReward.pt"), files, tmp_path)
    reward = ImageReward(str(tmp_path / "ImageReward.pt"), tokenizer=str(tokenizer))
    found = [reward.rate(file, prompt=PROMPT) for file in files]
    assert np.ptp(found) > 1e-5
    assert found == pytest.approx(expected, abs=5e-3 * np.ptp(found))  # PIL rounds pixels when it resizes
