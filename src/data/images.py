"""Image files as the batch needs them: uint8 (channels, size, size), whatever the file's mode and shape."""

import io
import re
import struct
import zlib
from contextlib import suppress

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")  # whatever the file's name; Pillow would also run PostScript
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")  # of the files that are read
FITS = ("squash", "pad")
CHANNELS = {"image": "RGB", "product": "RGBA", "depth": "L", "saliency": "L"}
BROKEN = (OSError, SyntaxError, ValueError, struct.error, zlib.error, EOFError, Image.DecompressionBombError)
VISIBLE = 128  # alpha from which a pixel belongs to the product
COLORED = 16  # of 255: a map in color mode whose channels differ by more is not gray
TOLERANCE = 0.01  # by which the aspect ratios of an image and its product may differ (rounded sizes)


def opened(data: bytes, field: str) -> Image.Image:
    """The image as it is meant to be seen, its header read and checked, its pixels not yet decoded.

    An image with an EXIF orientation, as of a camera held upright, is decoded and turned. Raises one of BROKEN when it
    is no image of FORMATS, and ValueError for a product without alpha.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"cannot identify image file as {', '.join(FORMATS)}") from None
    if field == "product" and not image.has_transparency_data:
        raise ValueError(f"a product needs an alpha channel, this one is {image.mode}")
    orientation = 1
    with suppress(*BROKEN):  # of damaged EXIF data: the pixels may be whole
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)  # PNG's own would decode them
    return image if orientation == 1 else ImageOps.exif_transpose(image)


def reason(error: BaseException) -> str:
    """What is wrong with a file, in one line that is the same every time."""
    if isinstance(error, OSError) and error.strerror:
        return "no such file" if isinstance(error, FileNotFoundError) else error.strerror
    told = re.sub(r" ?<_io\.BytesIO.*?>", "", " ".join(str(error).split()))  # an address, which is never the same
    return told.rstrip(".") or type(error).__name__


def check_canvas(field: str, size: tuple[int, int], canvas: tuple[int, int]) -> None:
    """Raises ValueError if a product or map, which is to be resized, does not have the image's aspect ratio."""
    (width, height), (across, down) = size, canvas
    off = abs(width * down - height * across)
    rounding = 0.5 * max(width, height, across, down)  # a side may be rounded by half a pixel
    if off > max(TOLERANCE * height * across, rounding):
        raise ValueError(f"{field} is {width}x{height}, but its image is {across}x{down}: not the same canvas")


def decoded(image: Image.Image, field: str, size: int, fit: str) -> np.ndarray:
    """uint8 (channels, size, size): RGB, RGBA for a product, gray for depth and saliency.

    fit: "squash" stretches both sides to `size`; "pad" keeps the shape, centers it and fills the rest with white in the
    image, with 0 (transparent, far, not salient) elsewhere. Both reduce with an antialiased bilinear filter, products
    with premultiplied alpha, so that the color of transparent pixels never bleeds. 16-bit grays are scaled to 8 bits;
    an image with alpha is laid on white.

    Raises one of BROKEN, ValueError for pixels that are neither 8 nor 16 bits.
    """
    if field == "image":
        image.draft("RGB", (2 * size, 2 * size))  # a JPEG far larger than needed is decoded at a fraction of its size
    image = in_mode(image, CHANNELS[field])
    if fit == "pad":
        scale = size / max(image.size)
        inner = tuple(max(1, round(side * scale)) for side in image.size)
        canvas = Image.new(image.mode, (size, size), "white" if field == "image" else 0)
        canvas.paste(resized(image, inner), ((size - inner[0]) // 2, (size - inner[1]) // 2))
        image = canvas
    else:
        image = resized(image, (size, size))
    return channels_first(image)


def squared(image: Image.Image, size: int, fit: str) -> np.ndarray:
    """uint8 (3, size, size): an image as models of the CLIP family are trained on it, antialiased and bicubic.

    fit: "pad" brings the longer side to `size` and centers the image on black (HPS v1 in training, HPSv2); "crop" the
    shorter side, and cuts out the center (OpenAI's CLIP, PickScore, ImageReward). Transparency is laid on white.

    Raises one of BROKEN.
    """
    image = in_mode(image, "RGB")
    if fit == "pad":
        width, height = (max(1, round(side * size / max(image.size))) for side in image.size)
        canvas = Image.new("RGB", (size, size))
        inner = image.resize((width, height), Image.Resampling.BICUBIC)
        canvas.paste(inner, ((size - width) // 2, (size - height) // 2))
        return channels_first(canvas)
    spans = []  # along x and y of the source: only what is seen is computed, however long the image is
    for side in image.size:
        inner = int(side * size / min(image.size))
        start = round((inner - size) / 2)
        spans.append((side * start / inner, side * (start + size) / inner))
    (left, right), (top, bottom) = spans
    return channels_first(image.resize((size, size), Image.Resampling.BICUBIC, (left, top, right, bottom)))


def channels_first(image: Image.Image) -> np.ndarray:
    """The pixels as uint8 (channels, height, width)."""
    pixels = np.asarray(image)
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def unfitted(values: np.ndarray, canvas: tuple[int, int], fit: str) -> np.ndarray:
    """A map (size, size) of an image that `decoded` has fitted, in the shape of its `canvas` (width, height).

    Its longer side is `size`; fitted again it is the map it was, but for the resampling.
    """
    size = len(values)
    inner = [max(1, round(side * size / max(canvas))) for side in canvas]
    if fit == "pad":
        left, top = (size - inner[0]) // 2, (size - inner[1]) // 2
        return np.ascontiguousarray(values[top : top + inner[1], left : left + inner[0]])
    return np.asarray(resized(Image.fromarray(values), tuple(inner)))


def resized(image: Image.Image, size: tuple[int, ...]) -> Image.Image:
    """The image at (width, height): antialiased, bilinear, in premultiplied alpha where it has alpha."""
    return image if image.size == size else image.resize((size[0], size[1]), Image.Resampling.BILINEAR)


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """The image decoded to "RGB", "RGBA" or "L", 8 bits per channel.

    Raises ValueError for a map in colors ("L") and a product that shows nothing ("RGBA").
    """
    image = _in_mode(image, mode)
    if mode == "RGBA" and int(np.asarray(image)[..., 3].max()) < VISIBLE:
        raise ValueError(f"its alpha is empty: nowhere above {VISIBLE - 1} of 255")
    return image


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode[0] in "IF":  # I;16, I;16B, I, F: convert() would clip these at 255
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError(f"its pixels ({image.mode}) are neither 8 nor 16 bits")
        image = Image.fromarray(np.round(values / 257).astype(np.uint8))
    if image.mode == mode:
        image.load()
        return image
    if mode == "RGB" and image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    if mode == "L" and np.ptp(np.asarray(image.convert("RGB")).astype(np.int16), axis=2).max() > COLORED:
        raise ValueError(f"a map must be gray, this one is in colors ({image.mode})")
    return image.convert(mode)
