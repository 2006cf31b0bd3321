"""One image in every form has the same pixels; images of extreme shapes stay small."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from src.rewards.pixels import LONGEST, fitted, pixels


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "I;16"])
def test_a_file_and_its_pil_image_have_the_same_pixels(tmp_path: Path, mode: str):
    levels = np.random.default_rng(0).integers(0, 256, (12, 9, 4)).astype(np.uint8)
    picture = Image.fromarray(levels).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)
    picture.save(tmp_path / "a.png")
    found = pixels(tmp_path / "a.png")
    assert found.shape == (3, 12, 9)
    assert (found.min() >= 0) & (found.max() <= 1)
    assert torch.equal(found, pixels(picture))
    assert torch.equal(found, pixels((found * 255).round().byte()))


def test_the_orientation_of_a_photo_is_applied(tmp_path: Path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 16, 3)).astype(np.uint8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    picture.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as opened:
        assert pixels(opened).shape == (3, 16, 8)
        assert torch.equal(pixels(opened), pixels(str(tmp_path / "a.png")))


def test_a_product_keeps_its_alpha_and_what_is_missing_is_told(tmp_path: Path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 200)).save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png", "product").shape == (4, 4, 4)
    with pytest.raises(ValueError, match="no such file"):
        pixels(tmp_path / "b.png")


@pytest.mark.parametrize("size", [(3, 4000), (4000, 3), (1, 1)])
def test_extreme_shapes_are_cut_before_they_grow(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch):
    made, resize = [], torch.nn.functional.interpolate

    def watched(images: torch.Tensor, sides: list[int], **options) -> torch.Tensor:
        made.append(sides)
        return resize(images, sides, **options)

    monkeypatch.setattr("src.rewards.pixels.F.interpolate", watched)
    image = torch.linspace(0, 1, max(size)).expand(3, min(size), max(size))
    image = (image if size[1] >= size[0] else image.transpose(1, 2))[None].clone()
    found = fitted(image, 32)
    assert found.shape == (1, 3, 32, 32)
    assert max(made[0]) <= LONGEST * 32
    assert (found.mean() - image.mean()).abs() < 0.01, "the center"
