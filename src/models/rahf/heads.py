"""RAHF's heads on the feature map of the fused image tokens (arXiv 2312.10240, section 4.2)."""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

RARE = -3.0  # initial logit of the heat maps, which are mostly 0


def conv(inputs: int, outputs: int, kernel: int = 3, padding: int = 1) -> nn.Sequential:
    """Convolution, layer norm over channels, ReLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, padding=padding), LayerNorm2d(outputs), nn.ReLU())


class Upsample(nn.Module):
    """(batch, inputs, h, w) to (batch, outputs, 2h, 2w): a deconvolution, then a residual pair of convolutions."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.up = nn.Sequential(
            nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1),
            LayerNorm2d(outputs),
            nn.ReLU(),
        )
        self.pair = nn.Sequential(
            conv(outputs, outputs), nn.Conv2d(outputs, outputs, 3, padding=1), LayerNorm2d(outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        return F.relu(x + self.pair(x))


class HeatMapHead(nn.Sequential):
    """Logits (batch, maps, h * 2^n, w * 2^n) of feature maps (batch, width, h, w), for n deconvolutions."""

    def __init__(self, width: int, convs: Sequence[int], deconvs: Sequence[int], maps: int = 1) -> None:
        widths = [width, *convs, *deconvs]
        read = nn.Conv2d(widths[-1], maps, 3, padding=1)
        nn.init.constant_(read.bias, RARE)  # pyright: ignore[reportArgumentType]
        super().__init__(
            *(conv(*pair) for pair in pairwise([width, *convs])),
            *(Upsample(*pair) for pair in pairwise(widths[len(convs) :])),
            conv(widths[-1], widths[-1]),
            read,
        )


class ScoreHead(nn.Sequential):
    """Logits (batch, scores) of feature maps (batch, width, grid, grid): 2x2 convolutions and dense layers."""

    def __init__(self, width: int, grid: int, convs: Sequence[int], dense: Sequence[int], scores: int = 1) -> None:
        if (rest := grid - len(convs)) < 1:
            raise ValueError(f"score head: {len(convs)} convolutions need a grid of {len(convs) + 1}, not {grid}.")
        widths = [convs[-1] * rest**2, *dense]
        super().__init__(
            *(conv(*pair, 2, 0) for pair in pairwise([width, *convs])),
            nn.Flatten(),
            *(nn.Sequential(nn.Linear(*pair), nn.ReLU()) for pair in pairwise(widths)),
            nn.Linear(widths[-1], scores),
        )
