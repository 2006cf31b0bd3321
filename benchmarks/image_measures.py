"""Measures of a table of images: Frechet distance to others, means of rewards, the share that a judge accepts."""

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from src.data.ads import Folder, Table
from src.metrics.frechet import FrechetDistance
from src.models.features import features
from src.rewards.base import Reward
from src.score import Chunk, judged, read

JUDGE = "availability"  # the reward of which the share of accepted images is measured


def chunks(place: Path, fields: frozenset[str], size: int) -> Iterator[Chunk]:
    """The rows of a table or folder of images. Raises ValueError naming one that cannot be read."""
    ads = Folder(place, fields) if place.is_dir() else Table(place, fields)
    rows = iter(ads)
    while some := list(islice(rows, size)):
        chunk = read(ads, some, None, False)
        for failed in chunk.failed:
            raise ValueError(f"{place}, row {failed.row} ({failed.key}): {failed.file}: {failed.reason}.")
        yield chunk


def values(reward: Reward, place: Path, device: torch.device, size: int = 32) -> Tensor:
    """The reward's values of the images, (images,), not in order."""
    found = [
        scores["value"].cpu()
        for chunk in chunks(place, reward.fields, size)
        for _, _, scores in judged(reward, chunk, device)
    ]
    return torch.cat(found)


def features_of(net: nn.Module, place: Path, device: torch.device, size: int = 32) -> Tensor:
    """The features of the images, (images, width), not in order."""
    found = [
        features(net, batch["image"].to(device))
        for chunk in chunks(place, frozenset(), size)
        for _, batch in chunk.batches
    ]
    return torch.cat(found)


def measured(
    place: Path, rewards: Mapping[str, Reward], net: nn.Module, reference: Tensor, device: torch.device, size: int = 32
) -> dict[str, float]:
    """The measures by name: "frechet", the name of each reward, and `JUDGE`, if it is among them.

    reference: features of the reference images by `net`, (images, width). Raises ValueError for values that are NaN or
    infinite.
    """
    distance = FrechetDistance(reference.shape[1])
    distance.update(reference, real=True)
    distance.update(features_of(net, place, device, size), real=False)
    found = {"frechet": float(distance.compute())}
    for name, reward in rewards.items():
        each = values(reward, place, device, size)
        if not each.isfinite().all():
            raise ValueError(f"{place}: {int((~each.isfinite()).sum())} values of {name} are NaN or infinite.")
        if name != JUDGE:
            found[name] = float(each.mean())
            continue
        if (least := reward.threshold) is None:
            raise ValueError(f"the judge {type(reward).__name__} states no threshold; give it one.")
        found[name] = float((each >= least).float().mean())
    return found
