"""Networks that give features of images: by folder, by name, and without a download."""

from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants

from src.models.features import TimmFeatures, feature_net, features
from src.runtime.checkpoint import load
from tests.rewards import tiny


def test_a_checkpoint_folder_by_its_systems_features():
    net, reader = feature_net("checkpoints/reader"), load("checkpoints/reader")
    images = torch.rand(2, 3, 128, 128)
    found = features(net, images, batch_size=1)
    assert found.shape == (2, 128)
    with torch.no_grad():
        torch.testing.assert_close(found, reader.net.features(images), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="is a checkpoint folder with weights of its own, not other"):
        feature_net("checkpoints/reader", "other")
    with pytest.raises(ValueError, match="checkpoints/depth holds Depth, which has no features of images"):
        feature_net("checkpoints/depth")


def test_a_clip_gives_unit_vectors(tmp_path: Path):
    folder = tiny.clip(tmp_path)["name"]
    found = features(feature_net(folder), torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))


def test_a_network_of_timm_with_a_file(tmp_path: Path):
    torch.manual_seed(0)
    whole = timm.create_model("test_resnet").eval()
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    net = feature_net("test_resnet", tmp_path / "weights.pth")
    assert isinstance(net, TimmFeatures)
    images = torch.rand(2, 3, net.size, net.size)
    with torch.no_grad():
        expected = whole.forward_head(whole.forward_features((images - net.mean) / net.std), pre_logits=True)  # pyright: ignore
    torch.testing.assert_close(features(net, images), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="does not fit"):
        feature_net("test_vit", tmp_path / "weights.pth")


def test_published_weights_are_fetched_at_the_first_use_and_not_before(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    net = feature_net("test_resnet.r160_in1k")
    with pytest.raises(ValueError, match=r"test_resnet\.r160_in1k: the published weights cannot be fetched: "):
        net(torch.rand(1, 3, 32, 32))


def test_an_unknown_name_is_told_with_similar_ones():
    with pytest.raises(ValueError, match=r"features=resnet5: no checkpoint folder, .* similar names: .*resnet50"):
        feature_net("resnet5")
