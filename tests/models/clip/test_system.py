"""Training of a CLIP: its loss by hand, retrieval, and a checkpoint that open_clip reads."""

import math
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import open_clip
import pytest
import torch

from src.build import build
from src.config import compose
from src.data.module import AdData
from src.data.splits import Source
from src.models.clip.system import contrastive_loss
from src.runtime.checkpoint import ABOUT, load, round_weights, save
from tests.data.records import Records
from tests.models.stepping import QUIET
from tests.rewards.tiny import on_clip

COLOURS = {"red": (200, 30, 30), "green": (30, 180, 30), "navy": (20, 20, 120), "white": (230, 230, 230)}


class Walls(Source):
    """Images of one color, which their prompts name."""

    classes = ()
    fields = frozenset({"key", "image", "prompt"})

    def split(self, name: str) -> Records:
        rng = np.random.default_rng(len(name))
        return Records(self.record(f"{name}{row}", list(COLOURS)[row % 4], rng) for row in range(32))

    def record(self, key: str, colour: str, rng: np.random.Generator) -> dict:
        image = rng.normal(0, 12, (3, 32, 32)) + np.array(COLOURS[colour])[:, None, None]
        return {"key": key, "image": image.clip(0, 255).astype(np.uint8), "prompt": f"a room, {colour} wall"}


def test_the_loss_by_hand_and_images_of_one_prompt_are_no_negatives():
    logits = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]])  # images 0 and 1 have prompt 0
    place = torch.tensor([0, 0, 1])

    def surprise(own: float, *others: float) -> float:
        return -math.log(math.exp(own) / sum(map(math.exp, (own, *others))))

    of_images = surprise(2, 0) + surprise(1, 0) + surprise(3, 0)
    of_prompts = surprise(2, 0) + surprise(1, 0) + surprise(3, 0, 0)
    assert contrastive_loss(logits, place).item() == pytest.approx((of_images + of_prompts) / 6, abs=1e-6)


def test_with_different_prompts_the_loss_is_that_of_open_clip():
    images, texts = (torch.nn.functional.normalize(torch.randn(5, 8), dim=-1) for _ in range(2))
    expected = open_clip.ClipLoss()(images, texts, torch.tensor(7.0))
    torch.testing.assert_close(contrastive_loss(7.0 * images @ texts.T, torch.arange(5)), expected)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory):
    L.seed_everything(0, verbose=False)
    node = on_clip(tmp_path_factory.mktemp("clip") / "config", "clip.system.ClipSystem", lr=3e-3)
    system, data = build(node), AdData(Walls(), batch_size=8, num_workers=0)
    trainer = L.Trainer(**QUIET, max_steps=60, limit_val_batches=0)
    trainer.fit(system, data)
    (metrics,) = trainer.test(system, data, verbose=False)
    return system.eval(), node, metrics


def test_it_learns_which_prompt_an_image_has(trained):
    assert trained[2]["test/retrieval_at_1"] > 0.95
    assert trained[2]["test/retrieval_at_10"] == 1


def test_the_checkpoint_is_self_contained_and_open_clip_reads_it(trained, tmp_path: Path, monkeypatch):
    system, node, _ = trained
    folder = tmp_path / "saved"
    round_weights(system.net, "float16")  # as src.fit does; the mask of the text encoder is not rounded
    save(folder, system, node, {}, dict.fromkeys(ABOUT, "a test"), "float16")
    moved = folder.rename(tmp_path / "moved")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    other: Any = load(moved)
    theirs: Any = open_clip.create_model(f"local-dir:{moved}").float().eval()
    images, prompts = torch.rand(2, 3, 32, 32), ["red wall", "white wall"]
    tokens = open_clip.get_tokenizer(f"local-dir:{moved}")(prompts)
    with torch.no_grad():
        found = system.clip(images, prompts)
        assert torch.equal(other.clip(images, prompts), found)
        both = theirs.encode_image(system.clip.preprocess(images), normalize=True), theirs.encode_text(tokens, True)
        torch.testing.assert_close((both[0] * both[1]).sum(dim=-1), found)


def test_the_scale_stays_at_most_100(trained):
    system = trained[0]
    before = system.net.logit_scale.detach().clone()
    system.net.logit_scale.data.fill_(9.0)
    system.on_train_batch_end()
    assert system.clip.scale.item() == pytest.approx(100)
    system.net.logit_scale.data.copy_(before)


def test_the_yaml_fits_the_showroom():
    config = compose("fit", ["model=clip"])
    system, data = build(config.model), build(config.data)
    data.require(system)
    assert sum(weight.numel() for weight in system.net.parameters()) * 2 <= 5e6, "5 MB in float16"
