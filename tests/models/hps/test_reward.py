"""Rewards on a CLIP: no graph without gradient, copies alike, published versions and their preprocessing."""

from pathlib import Path
from typing import Any

import pytest
import torch

from src.models.hps import reward as module
from src.models.hps.reward import PUBLISHED, HPSReward
from src.models.rfft.regularizers import NoRegularizer
from src.models.rfft.steps import LateRandom
from src.models.rfft.system import RFFT
from src.rewards.base import Reward
from src.rewards.clip import ClipReward
from src.rewards.clip_net import Clip, ClipSettings
from tests.diffusion import tiny as painters
from tests.models.stepping import one_step
from tests.rewards import tiny


@pytest.fixture(scope="module", params=["clip", "hps"])
def reward(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reward:
    kinds: Any = {"clip": ClipReward, "hps": HPSReward}
    return kinds[request.param](**getattr(tiny, request.param)(tmp_path_factory.mktemp("reward")))


@pytest.mark.parametrize("size", [(32, 32), (50, 70)])
def test_copies_are_scored_alike(reward, size):
    image, prompt = torch.rand(1, 3, *size), "a red chair"
    alone = reward(image, {"prompt": [prompt]}).value
    for copies in (2, 5):
        values = reward(image.repeat(copies, 1, 1, 1), {"prompt": [prompt] * copies}).value
        torch.testing.assert_close(values, alone.repeat(copies), atol=1e-5, rtol=1e-5)
    others = torch.cat([image, torch.rand(3, 3, *size)])
    mixed = reward(others, {"prompt": [prompt, "an oak bench in a very classic room", prompt, ""]}).value
    torch.testing.assert_close(mixed[:1], alone, atol=1e-5, rtol=1e-5)


def test_no_graph_without_gradient(reward):
    image = torch.rand(1, 3, 32, 32)
    assert reward(image, {"prompt": ["chair"]}).value.grad_fn is None
    with torch.no_grad():
        assert reward(image.requires_grad_(), {"prompt": ["chair"]}).value.grad_fn is None
    assert reward(image, {"prompt": ["chair"]}).value.grad_fn is not None


def test_it_drives_rfft(reward):
    system = RFFT(painters.generator(), reward, NoRegularizer(), LateRandom(1 / 3), rank=2, trainable="unet")
    before = {name: weight.clone() for name, weight in reward.named_parameters()}
    step = one_step(system, painters.ads(2))
    assert step.gradients
    assert all(gradient.isfinite().all() for gradient in step.gradients.values())
    assert any(gradient.abs().max() > 0 for gradient in step.gradients.values())
    assert all(torch.equal(weight, before[name]) for name, weight in reward.named_parameters())


def test_published_versions_are_preprocessed_as_released(monkeypatch, tmp_path: Path):
    folder = tiny.clip_folder(tmp_path / "clip")
    weights = tiny.checkpoint(tmp_path / "own", tiny.on_clip(tmp_path / "config", "clip.system.ClipSystem"))
    file = f"{weights}/model.safetensors"
    names = {version: settings.name for version, settings in PUBLISHED.items()}
    assert names == {"v1": "ViT-L-14-quickgelu", "v2": "ViT-H-14", "v2.1": "ViT-H-14"}
    for version, (resize, clamp) in {"v1": ("shortest", True), "v2": ("longest", False)}.items():
        settings = PUBLISHED[version]
        monkeypatch.setitem(module.PUBLISHED, version, ClipSettings(folder, None, settings.resize, settings.clamp))
        reward = HPSReward(version, file)
        assert (reward.clip.resize, reward.clip.clamp) == (resize, clamp)
        assert HPSReward(version, file, resize="squash").clip.resize == "squash"
        state = Clip(ClipSettings(folder, file)).net.state_dict()
        torch.save({"state_dict": state}, tmp_path / module.FILES[version])
        assert HPSReward(version, str(tmp_path)).clip.resize == resize, "the file's own name, in a folder"


def test_what_cannot_be_loaded_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"HPS v1 needs weights=FILE: its file hpc.pt is on OneDrive"):
        HPSReward("v1")
    with pytest.raises(ValueError, match="There is no checkpoint folder"):
        HPSReward(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"weights=x.pt are for the published v1, v2, v2.1, not for checkpoints/hps"):
        HPSReward(weights="x.pt")
    with pytest.raises(ValueError, match="ClipSystem, not HPSSystem"):
        HPSReward(tiny.clip(tmp_path)["name"])
