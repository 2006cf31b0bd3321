"""The image encoder that systems share: its statistics, and weights from another system's checkpoint."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from src.build import build
from src.models.layers import ImageEncoder, ImageEncoderSettings
from src.runtime.checkpoint import ABOUT, load, save

SMALL = ImageEncoderSettings("test_resnet", size=32, grid=2)
NODE: dict[str, Any] = {
    "_target_": "src.models.rahf.regressor.Regressor",
    "image_encoder": {"_target_": "src.models.layers.ImageEncoderSettings", "name": "test_resnet", "size": 32},
    "width": 8, "deconvs": [8],
}  # fmt: skip


def shipped(folder: Path) -> dict[str, torch.Tensor]:
    system = build(NODE)
    save(folder, system, NODE, {}, dict.fromkeys(ABOUT, "a test"))
    return system.net.encoder.net.state_dict()


def test_images_are_normalized_by_the_statistics_of_the_network():
    for name, mean, std in (
        ("test_resnet", [0.5] * 3, [0.5] * 3), ("resnet10t", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ):  # fmt: skip
        encoder = ImageEncoder(replace(SMALL, name=name), 8)
        torch.testing.assert_close(encoder.mean.flatten(), torch.tensor(mean))
        torch.testing.assert_close(encoder.std.flatten(), torch.tensor(std))


def test_an_encoder_starts_from_the_weights_of_another_systems_checkpoint(tmp_path):
    weights = shipped(tmp_path / "first")
    encoder = ImageEncoder(replace(SMALL, weights=str(tmp_path / "first")), 16)
    assert all(torch.equal(value, weights[key]) for key, value in encoder.net.state_dict().items())
    node = NODE | {"image_encoder": NODE["image_encoder"] | {"weights": str(tmp_path / "first")}}
    save(tmp_path / "second", build(node), node, {}, dict.fromkeys(ABOUT, "a test"))
    (tmp_path / "first/model.safetensors").unlink()
    found: Any = load(tmp_path / "second")  # which does not need the first
    assert all(torch.equal(value, weights[key]) for key, value in found.net.encoder.net.state_dict().items())


def test_a_checkpoint_without_such_an_encoder_is_refused(tmp_path):
    shipped(tmp_path)
    with pytest.raises(ValueError, match=r"model\.safetensors has 0 image encoders like this one"):
        ImageEncoder(replace(SMALL, name="test_efficientnet", weights=str(tmp_path)), 8)
    with pytest.raises(ValueError, match=r"another shape for .*weight \(\d+, 3, .* instead of \(\d+, 12, "):
        ImageEncoder(replace(SMALL, unshuffle=2, weights=str(tmp_path)), 8)
