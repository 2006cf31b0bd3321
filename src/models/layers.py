"""Layers that several systems share: resizing and the encoder of images to tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def resize(picture: Tensor, size: Sequence[int]) -> Tensor:
    """`picture` at (height, width) `size`, bilinear with antialiasing; itself if it has that size already."""
    if tuple(picture.shape[-2:]) == tuple(size):
        return picture
    return F.interpolate(picture, size=tuple(size), mode="bilinear", align_corners=False, antialias=True)


class PictureEncoder(nn.Module):
    """Tokens (batch, grid * grid, width), row by row, of each of some (batch, channels, height, width) in [0, 1].

    A timm net gives the map of its stage `stage` (-1: the last); a 1x1 convolution and a layer norm make tokens of it.
    All kinds go through the net together: its batch norms then see in training what they see in use.

    Args:
        name: timm's name of the net; `options` go to `timm.create_model`.
        pretrained: with timm's published weights, from the network or its cache.
        channels: 3, or 4 with the product's alpha.
        size: side in pixels to which pictures are resized, bilinear with antialiasing.
        grid: tokens a side, to which the map is averaged; 1 is a pooled vector, None takes the map as it is.
        unshuffle: u x u pixels become one with u * u times the channels before the net.

    Raises ValueError if timm has no such net or `unshuffle` does not divide `size`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        width: int,
        channels: int = 3,
        size: int = 384,
        pretrained: bool = False,
        options: Mapping[str, Any] | None = None,
        stage: int = -1,
        grid: int | None = None,
        unshuffle: int = 1,
    ) -> None:
        super().__init__()
        if name not in timm.list_models():
            near = ", ".join(timm.list_models(f"*{name[:6]}*")[:5]) or "see timm.list_models()"
            raise ValueError(f"image encoder {name!r}: timm has no such net; near: {near}")
        if size % unshuffle:
            raise ValueError(f"unshuffle={unshuffle} does not divide the picture size {size}.")
        self.size, self.unshuffle = size, unshuffle
        net: Any = timm.create_model(
            name,
            pretrained=pretrained,
            features_only=True,
            out_indices=(stage,),
            in_chans=channels * unshuffle**2,
            **(options or {}),
        )
        self.net = net.to(memory_format=torch.channels_last)
        self.grid: int = grid or -(-size // (unshuffle * net.feature_info.reduction()[-1]))
        self.project = nn.Conv2d(net.feature_info.channels()[-1], width, 1)
        self.norm = nn.LayerNorm(width)
        rest = channels - 3  # alpha
        self.register_buffer("mean", torch.tensor([*IMAGENET_MEAN, *[0.5] * rest]).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([*IMAGENET_STD, *[0.5] * rest]).view(-1, 1, 1), persistent=False)

    def forward(self, kinds: Sequence[Tensor]) -> list[Tensor]:
        x = torch.cat([resize(pictures, (self.size, self.size)) for pictures in kinds])
        x = (x - self.mean) / self.std
        if self.unshuffle > 1:
            x = F.pixel_unshuffle(x, self.unshuffle)
        x = self.net(x.contiguous(memory_format=torch.channels_last))[0]  # (batch, features, h, w)
        x = F.adaptive_avg_pool2d(self.project(x), self.grid)  # (batch, width, grid, grid)
        return list(self.norm(x.flatten(2).transpose(1, 2)).chunk(len(kinds)))
