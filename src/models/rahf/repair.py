"""Repair of implausible regions: heat map, mask, inpainting, choice (arXiv 2312.10240, section 6)."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from src.data.batch import Record, collate, to_float
from src.diffusion.generator import Generator
from src.diffusion.recurrent import attempt_seed
from src.models.layers import resize
from src.models.rahf.system import RAHFSystem
from src.runtime.finite import require_finite


@dataclass(frozen=True)
class RepairSettings:
    """How images are repaired.

    threshold: of the implausibility map, in [0, 1], above which a pixel is generated anew. dilation: distance by which
    that region grows, as a share of the image's height, in [0, 1). candidates: number per image. seed: of their noise.
    Raises ValueError naming the value that is out of its range.
    """

    threshold: float
    dilation: float = 0.03
    candidates: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if type(self.threshold) not in (int, float) or not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold} must be a number in [0, 1].")
        if type(self.dilation) not in (int, float) or not 0 <= self.dilation < 1:
            raise ValueError(f"dilation={self.dilation} must be a number in [0, 1).")
        if type(self.candidates) is not int or self.candidates < 1:
            raise ValueError(f"candidates={self.candidates} must be a whole number, at least 1.")


@dataclass(frozen=True)
class Repaired:
    """What became of an image.

    image: uint8 (3, height, width); the one given if nothing was found or no candidate was better. mask: bool (height,
    width), the region that was generated again. peak: the largest implausibility. before: plausibility of the image
    given; values: of the candidates; best: the index of the one that was kept, None if the image was left as it was.
    """

    image: Tensor
    mask: Tensor
    peak: float
    before: float
    values: list[float]
    best: int | None


def flaw_mask(heat: Tensor, threshold: float, dilation: float, product: Tensor | None) -> Tensor:
    """Where the image is generated again, bool (height, width).

    heat: implausibility (height, width) in [0, 1]. dilation: the distance, as a share of the height, by which the
    region above `threshold` grows. product: alpha (height, width) in [0, 1]; no pixel that it covers is in the mask.
    """
    radius = round(dilation * heat.shape[0])
    wide = F.max_pool2d((heat > threshold).float()[None, None], 2 * radius + 1, stride=1, padding=radius)[0, 0] > 0
    return wide & (product == 0) if product is not None else wide


@torch.no_grad()
def repair(generator: Generator, rahf: RAHFSystem, record: Record, settings: RepairSettings) -> Repaired:
    """Generates the implausible region of an image again, and keeps the most plausible of several candidates.

    record: key, prompt, image uint8 (3, height, width), and product (4, height, width) if there is one. Everything
    outside the mask, and the product, stays as it is to the bit. Raises ValueError for an image whose sides are not
    multiples of the generator's.
    """
    device, candidates = rahf.device, settings.candidates
    original = torch.from_numpy(record["image"])
    height, width = original.shape[1:]
    if height % generator.cell or width % generator.cell:
        raise ValueError(f"the image is {width}x{height}; this generator needs multiples of {generator.cell} px.")
    given = move_data_to_device(to_float(collate([record])), device)
    key = [record["key"]]
    heat, before = plausibility(rahf, given["image"], [record["prompt"]])
    require_finite(heat, "implausibility map", key)
    require_finite(before, "plausibility", key)
    heat = resize(heat[:, None], (height, width))[0, 0]
    alpha = given["product"][0, 3] if "product" in given else None
    mask = flaw_mask(heat, settings.threshold, settings.dilation, alpha)
    found: dict[str, Any] = {"mask": mask.cpu(), "peak": float(heat.max()), "before": float(before[0])}
    if not mask.any():
        return Repaired(original, **found, values=[], best=None)
    batch = move_data_to_device(to_float(collate([record] * candidates)), device)
    batch.setdefault("product", batch["image"].new_zeros(candidates, 4, height, width))
    conditions = generator.masked(batch, batch["image"], mask.expand(candidates, 1, -1, -1), [
        attempt_seed(settings.seed, number) for number in range(candidates)
    ])  # fmt: skip
    samples = require_finite(generator.sample(conditions), "generated image", key * candidates)
    painted = (samples * 255).round().byte().cpu()
    images = torch.where(mask.cpu(), painted, original)  # (candidates, 3, height, width)
    _, after = plausibility(rahf, images.to(device).float() / 255, [record["prompt"]] * candidates)
    values = require_finite(after, "plausibility", key * candidates).tolist()
    best = max(range(candidates), key=values.__getitem__)
    if values[best] <= found["before"]:
        return Repaired(original, **found, values=values, best=None)
    return Repaired(images[best], **found, values=values, best=best)


def plausibility(rahf: RAHFSystem, images: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Implausibility maps (batch, h, w) and plausibility scores (batch,)."""
    maps, scores = rahf.assess(images, prompts)
    return maps["implausibility"], scores["plausibility"]
