"""U2-Net: saliency maps of images.

Qin et al., "U2-Net: Going Deeper with Nested U-Structure for Salient Object Detection", Pattern Recognition 2020. A
U-Net whose eleven stages are U-Nets themselves. The state dict has the names of the authors' files, so `u2net.pth`
(full, 176 MB) and `u2netp.pth` (small, 4.7 MB) load with `strict=True`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Widths = Sequence[Sequence[int]]  # one (inner, output) pair of channels per stage

# Encoder stages 1..6, then decoder stages 5..1 (Qin et al., table 1).
WIDTHS: dict[str, tuple[Widths, Widths]] = {
    "full": (
        ((32, 64), (32, 128), (64, 256), (128, 512), (256, 512), (256, 512)),
        ((256, 512), (128, 256), (64, 128), (32, 64), (16, 64)),
    ),
    "small": (((16, 64),) * 6, ((16, 64),) * 5),
    "tiny": (((4, 8), *((8, 16),) * 5), (*((8, 16),) * 4, (4, 8))),
}
DEPTHS = (7, 6, 5, 4, 4, 4)  # levels inside stages 1..6; stages 5 and 6 are dilated instead of pooled


def resize_like(image: Tensor, other: Tensor) -> Tensor:
    """`image` at the height and width of `other`, bilinear."""
    if image.shape[-2:] == other.shape[-2:]:
        return image
    return F.interpolate(image, size=other.shape[-2:], mode="bilinear", align_corners=False)


def downsampled(image: Tensor) -> Tensor:
    """Half the height and width, rounded up, so that no border is lost at odd sizes."""
    return F.max_pool2d(image, 2, stride=2, ceil_mode=True)


class ConvUnit(nn.Module):
    """3x3 convolution, batch norm, ReLU; keeps height and width."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv_s1 = nn.Conv2d(in_channels, out_channels, 3, padding=dilation, dilation=dilation)
        self.bn_s1 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn_s1(self.conv_s1(x)))


class ResidualUBlock(nn.Module):
    """RSU-`depth`: a U-Net of `depth` levels added to its own first convolution; RSU-4F when `dilated`.

    Qin et al., figure 2. The deepest level is dilated by 2 instead of pooled; in a dilated block level n is dilated by
    2^(n-1).
    """

    def __init__(self, depth: int, in_channels: int, inner: int, out_channels: int, dilated: bool = False) -> None:
        super().__init__()
        self.depth, self.dilated = depth, dilated
        self.rebnconvin = ConvUnit(in_channels, out_channels)
        for level in range(1, depth + 1):
            dilation = 2 ** (level - 1) if dilated else 2 if level == depth else 1
            self.add_module(f"rebnconv{level}", ConvUnit(out_channels if level == 1 else inner, inner, dilation))
        for level in range(depth - 1, 0, -1):
            dilation = 2 ** (level - 1) if dilated else 1
            unit = ConvUnit(2 * inner, out_channels if level == 1 else inner, dilation)
            self.add_module(f"rebnconv{level}d", unit)

    def forward(self, x: Tensor) -> Tensor:
        entry = x = self.rebnconvin(x)
        skips = []
        for level in range(1, self.depth):
            if level > 1 and not self.dilated:
                x = downsampled(x)
            x = getattr(self, f"rebnconv{level}")(x)
            skips.append(x)
        x = getattr(self, f"rebnconv{self.depth}")(x)
        for level in range(self.depth - 1, 0, -1):
            skip = skips.pop()
            x = getattr(self, f"rebnconv{level}d")(torch.cat([resize_like(x, skip), skip], dim=1))
        return x + entry


class U2Net(nn.Module):
    """Saliency logits (batch, 7, height, width) of normalized images (batch, 3, height, width) of any size.

    Channel 0 is the result; channels 1 to 6 are the side maps of decoder stages 1..5 and encoder stage 6, used only by
    the loss. The authors' module returns the sigmoid of the same maps. `encoder`, `decoder`: channels, see `WIDTHS`.
    """

    def __init__(self, encoder: Widths, decoder: Widths) -> None:
        super().__init__()
        if [len(encoder), len(decoder)] != [6, 5]:
            raise ValueError(f"U2Net takes 6 encoder and 5 decoder stages, got {len(encoder)} and {len(decoder)}")
        channels = [3, *(out for _, out in encoder)]
        for stage, (depth, (inner, out)) in enumerate(zip(DEPTHS, encoder, strict=True), start=1):
            block = ResidualUBlock(depth, channels[stage - 1], inner, out, dilated=stage >= 5)
            self.add_module(f"stage{stage}", block)
        sides = [channels[6]]  # of stage 6, 5d, 4d, ..., 1d
        for stage, (inner, out) in zip(range(5, 0, -1), decoder, strict=True):
            block = ResidualUBlock(DEPTHS[stage - 1], sides[-1] + channels[stage], inner, out, dilated=stage == 5)
            self.add_module(f"stage{stage}d", block)
            sides.append(out)
        for stage, width in enumerate(reversed(sides), start=1):
            self.add_module(f"side{stage}", nn.Conv2d(width, 1, 3, padding=1))
        self.outconv = nn.Conv2d(6, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        features = []
        x = images
        for stage in range(1, 7):
            x = getattr(self, f"stage{stage}")(downsampled(x) if stage > 1 else x)
            features.append(x)
        sides = [self.get_submodule("side6")(x)]
        for stage in range(5, 0, -1):
            skip = features[stage - 1]
            x = getattr(self, f"stage{stage}d")(torch.cat([resize_like(x, skip), skip], dim=1))
            sides.insert(0, getattr(self, f"side{stage}")(x))
        maps = torch.cat([resize_like(side, images) for side in sides], dim=1)  # (batch, 6, height, width)
        return torch.cat([self.outconv(maps), maps], dim=1)


def u2net(size: str) -> U2Net:
    """U2-Net of the size "full" (44.0 M parameters), "small" (U2-NetP, 1.1 M) or "tiny" (0.1 M, not in the paper)."""
    if size not in WIDTHS:
        raise ValueError(f"U2-Net size {size!r}: choose one of {', '.join(WIDTHS)}")
    return U2Net(*WIDTHS[size])


def saliency_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of all seven maps with the target in [0, 1], summed over the maps; a scalar.

    Qin et al., eq. 1 with weights 1. `logits` is (batch, 7, height, width), `target` (batch, 1, height, width).
    """
    each = F.binary_cross_entropy_with_logits(logits, target.expand_as(logits), reduction="none")
    return each.mean(dim=(0, 2, 3)).sum()
