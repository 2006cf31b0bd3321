import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.data.ads import read_image
from src.data.images import decoded, opened, squared
from src.data.product_prompts import placed


def file(image: Image.Image, path: Path) -> bytes:
    image.save(path)
    return path.read_bytes()


def test_every_mode_becomes_the_batch_s(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    deep = opened(file(Image.fromarray(ramp), tmp_path / "deep.png"), "depth")
    assert deep.mode.startswith("I")
    assert np.array_equal(decoded(deep, "depth", 8, "squash")[0], np.round(ramp / 257))
    for mode in ("L", "P", "CMYK", "RGBA", "1"):
        suffix = "tif" if mode == "CMYK" else "png"
        image = opened(file(Image.new("RGB", (8, 8), "white").convert(mode), tmp_path / f"{mode}.{suffix}"), "image")
        assert image.mode == mode
        assert (decoded(image, "image", 4, "squash") == 255).all()
    clear = opened(file(Image.new("RGBA", (8, 8), (255, 0, 0, 0)), tmp_path / "clear.png"), "image")
    assert (decoded(clear, "image", 4, "squash") == 255).all()  # on white, not the red that is hidden
    grey = opened(file(Image.new("LA", (8, 8), (90, 255)), tmp_path / "la.png"), "product")
    assert decoded(grey, "product", 4, "squash")[:, 0, 0].tolist() == [90, 90, 90, 255]
    with pytest.raises(ValueError, match=r"neither 8 nor 16 bits"):
        decoded(opened(file(Image.new("F", (8, 8)), tmp_path / "float.tif"), "depth"), "depth", 4, "squash")


def test_fit_squashes_or_pads(tmp_path):
    wide = Image.new("RGB", (40, 20), "black")
    assert decoded(wide, "image", 10, "squash").sum() == 0
    padded = decoded(wide, "image", 10, "pad")
    assert padded.shape == (3, 10, 10)
    assert (padded[:, :2] == 255).all()
    assert (padded[:, 3:7] == 0).all()
    product = decoded(Image.new("RGBA", (20, 40), (9, 9, 9, 255)), "product", 10, "pad")
    assert product[3, 5].tolist() == [0, 0, *[255] * 5, 0, 0, 0]
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (64, 32)))
    assert np.ptp(decoded(stripes, "depth", 8, "squash").astype(int)) <= 64  # aliasing would leave 0 or 255


def test_hidden_color_does_not_bleed_into_the_product():
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[..., 0] = 255  # red where transparent
    pixels[:, 10:22] = (0, 0, 255, 255)
    red, _, blue, alpha = decoded(Image.fromarray(pixels), "product", 8, "squash")
    assert ((alpha > 0) & (alpha < 255)).any()
    assert red[alpha > 0].max() <= 2
    assert blue[alpha > 0].min() >= 253


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_its_orientation_says(kind, orientation):
    upright = np.zeros((24, 16, 3), np.uint8)
    upright[:8, :8] = (255, 0, 0)
    upright[16:, 8:] = (0, 0, 255)
    turns = [None, None, 0, 3, 1, 5, 2, 6, 4]  # PIL's transpositions that make the stored image of the upright one
    stored = Image.fromarray(upright)
    if turns[orientation] is not None:
        stored = stored.transpose(Image.Transpose(turns[orientation]))
    exif = Image.Exif()
    exif[274] = orientation
    data = io.BytesIO()
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    stored.save(data, kind, exif=exif, **options.get(kind, {}))
    image = opened(data.getvalue(), "image")
    assert image.size == (16, 24)
    seen = decoded(image, "image", 24, "pad")[:, :, 4:20].transpose(1, 2, 0)
    assert np.abs(seen.astype(int) - upright).max() <= 8  # JPEG is lossy
    assert seen[4, 4].argmax() == 0
    assert seen[20, 12].argmax() == 2


def test_damaged_exif_data_cost_no_image():
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, "JPEG", exif=b"Exif\0\0broken")
    assert opened(data.getvalue(), "image").size == (8, 8)


@pytest.mark.parametrize("shape", [(40, 30), (31, 64), (7, 90), (300, 5), (1, 9), (33, 33)])
@pytest.mark.parametrize("size", [16, 35])
def test_a_cropped_square_is_the_center_of_the_whole_image_resized(shape, size):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8))
    image = noise.resize(shape, Image.Resampling.BICUBIC)
    inner = [int(side * size / min(shape)) for side in shape]
    left, top = (round((side - size) / 2) for side in inner)
    whole = image.resize((inner[0], inner[1]), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    difference = np.abs(np.asarray(whole).transpose(2, 0, 1).astype(int) - squared(image, size, "crop"))
    assert difference.mean() < 0.5  # rounded between the passes along x and y, whose order Pillow chooses by the size
    assert difference.max() <= 8


def test_a_padded_square_has_the_image_between_black():
    wide = Image.new("RGB", (40, 20), "white")
    found = squared(wide, 10, "pad")
    assert (found[:, 2:7] == 255).all()
    assert (found[:, :2] == 0).all()
    assert (found[:, 7:] == 0).all()
    assert (squared(Image.new("RGBA", (4, 4)), 8, "pad") == 255).all()  # laid on white
    assert squared(Image.new("L", (4000, 3), 9), 16, "pad")[0, 7].tolist() == [9] * 16


def test_a_file_is_read_as_an_image_of_the_formats_that_are_known_whatever_its_name(tmp_path):
    data = file(Image.new("RGB", (8, 8)), tmp_path / "script.eps")
    with pytest.raises(ValueError, match=r"cannot identify image file as PNG, JPEG, WEBP, BMP, TIFF, GIF$"):
        opened(data, "image")


def test_a_product_that_shows_nothing_is_refused_by_every_reader(tmp_path):
    data = file(Image.new("RGBA", (8, 8), (9, 9, 9, 127)), tmp_path / "empty.png")
    readers = (
        lambda: decoded(opened(data, "product"), "product", 8, "squash"),
        lambda: read_image(tmp_path / "empty.png", "product"),
        lambda: placed(tmp_path / "empty.png", 8),
    )
    for read in readers:
        with pytest.raises(ValueError, match="its alpha is empty: nowhere above 127 of 255"):
            read()
