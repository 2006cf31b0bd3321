"""Layers shared by several systems: resizing and the image encoder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.build import loadable
from src.runtime.checkpoint import WEIGHTS, fill, located, read_weights

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def resize(image: Tensor, size: Sequence[int]) -> Tensor:
    """`image` resized to (height, width), bilinear with antialiasing; unchanged if it already has that size."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return F.interpolate(image, size=tuple(size), mode="bilinear", align_corners=False, antialias=True)


@loadable
@dataclass(frozen=True)
class ImageEncoderSettings:
    """Settings of an `ImageEncoder`.

    Args:
        name: a timm network, with the tag of its weights if not the default's (`vit_base_patch16_224.augreg_in21k`);
            `options` are arguments of `timm.create_model`.
        pretrained: load timm's published weights.
        weights: checkpoint folder of any system with an image encoder of the same network, to start from its weights.
        stage: index of the feature map; -1: the last.
        size: height and width in px to which images are resized.
        unshuffle: factor u of a pixel unshuffle before the network, with u * u times the channels.
        grid: tokens per side, by average pooling; 1: a single vector; None: one token per feature.
        alpha: images have a fourth channel.
    """

    name: str = "resnet50"
    options: Mapping[str, Any] | None = None
    pretrained: bool = False
    weights: str | None = None
    stage: int = -1
    size: int = 384
    unshuffle: int = 1
    grid: int | None = None
    alpha: bool = False

    def saved(self) -> "ImageEncoderSettings":
        """The settings in a checkpoint folder, which has the weights."""
        return replace(self, pretrained=False, weights=None)


class ImageEncoder(nn.Module):
    """Tokens (batch, grid * grid, width) of each of several image batches (batch, channels, height, width) in [0, 1].

    A feature map of a timm network, a 1x1 convolution and a layer norm. All inputs go through the network in one batch,
    so that batch norm sees the same mix of inputs in training and evaluation. Images are normalized by the mean and
    standard deviation that timm lists for the network, pretrained or not.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, settings: ImageEncoderSettings, width: int) -> None:
        super().__init__()
        name, size, unshuffle = settings.name, settings.size, settings.unshuffle
        if not timm.is_model(name):
            near = ", ".join(get_close_matches(name, timm.list_models())) or "see timm.list_models()"
            raise ValueError(f"image encoder {name!r}: not a timm network; similar names: {near}")
        if size % unshuffle:
            raise ValueError(f"size={size} is not a multiple of unshuffle={unshuffle}.")
        self.size, self.unshuffle, self.alpha = size, unshuffle, settings.alpha
        net: Any = timm.create_model(
            name,
            pretrained=settings.pretrained,
            features_only=True,
            out_indices=(settings.stage,),
            in_chans=(3 + self.alpha) * unshuffle**2,
            **(settings.options or {}),
        )
        if settings.weights:
            file = located(settings.weights) / WEIGHTS
            fill(net, part_of(read_weights(file), net, file), file)
        self.net = net.to(memory_format=torch.channels_last)
        self.grid: int = settings.grid or -(-size // (unshuffle * net.feature_info.reduction()[-1]))
        self.project = nn.Conv2d(net.feature_info.channels()[-1], width, 1)
        self.norm = nn.LayerNorm(width)
        published: Any = timm.get_pretrained_cfg(name)
        for statistic in ("mean", "std"):
            values = torch.tensor([*getattr(published, statistic), *[0.5] * self.alpha]).view(-1, 1, 1)
            self.register_buffer(statistic, values, persistent=False)

    def forward(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        x = torch.cat([resize(images, (self.size, self.size)) for images in inputs])
        x = (x - self.mean) / self.std
        if self.unshuffle > 1:
            x = F.pixel_unshuffle(x, self.unshuffle)
        x = self.net(x.contiguous(memory_format=torch.channels_last))[0]  # (batch, features, h, w)
        x = F.adaptive_avg_pool2d(self.project(x), self.grid)  # (batch, width, grid, grid)
        return list(self.norm(x.flatten(2).transpose(1, 2)).chunk(len(inputs)))


def part_of(state: Mapping[str, Tensor], net: nn.Module, file: Path) -> dict[str, Tensor]:
    """The weights of the one part of a system's state dict that has all keys of `net`, without the part's name.

    Raises ValueError naming the file if there is no such part, or several.
    """
    keys = net.state_dict().keys()
    first = next(iter(keys))
    parts = [key.removesuffix(first) for key in state if key.endswith(f".{first}")]
    parts = [part for part in parts if all(part + key in state for key in keys)]
    if len(parts) != 1:
        raise ValueError(f"{file} has {len(parts)} image encoders like this one; exactly one is needed.")
    return {key: state[parts[0] + key] for key in keys}
