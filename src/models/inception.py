"""The Inception v3 of the FID, whose features published values are computed with (Heusel et al. 2017)."""

from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.inception import Inception3, InceptionA, InceptionC, InceptionE

from src.runtime.checkpoint import located
from src.runtime.weights import fill_all, state_dict

SIZE = 299  # px
WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"  # on GitHub: mseitzer/pytorch-fid, releases, fid_weights
COUNTER = "num_batches_tracked"  # of batch norms, which the file may lack


class Inception(nn.Module):
    """Features (batch, 2048) of images (batch, 3, height, width) in [0, 1]: those before the classifier.

    The network of 2015 in TensorFlow, which differs from torchvision's in its pooling. Images are resized to 299 px,
    bilinear without antialiasing, as by pytorch-fid; clean-fid resizes with antialiasing, and its values differ.

    Args:
        weights: the file of pytorch-fid (`WEIGHTS`; torch-fidelity has the same), or one with these names.

    Raises ValueError if there is no such file, or it does not match.
    """

    def __init__(self, weights: str | Path) -> None:
        super().__init__()
        self.net = network()
        file = located(weights)
        counters = {name: value for name, value in self.net.state_dict().items() if name.endswith(COUNTER)}
        fill_all(self.net, counters | state_dict(file), file)
        self.net.fc = nn.Identity()
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        if tuple(images.shape[-2:]) != (SIZE, SIZE):
            images = F.interpolate(images, (SIZE, SIZE), mode="bilinear", align_corners=False)
        return self.net(2 * images - 1)


def network() -> Any:
    """torchvision's Inception v3 with 1008 classes and the pooling of TensorFlow's, random weights."""
    net: Any = Inception3(num_classes=1008, aux_logits=False, init_weights=False)
    for name, channels, pooled in (("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)):
        setattr(net, f"Mixed_{name}", _A(channels, pooled))
    for name, inner in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        setattr(net, f"Mixed_{name}", _C(768, inner))
    net.Mixed_7b, net.Mixed_7c = _E(1280), _LastE(2048)
    return net


def inside(x: Tensor) -> Tensor:
    """The mean of each 3 x 3 neighbourhood, of the pixels inside the image only; torchvision counts zeros outside."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class _A(InceptionA):
    def _forward(self, x: Tensor) -> list[Tensor]:
        return [*super()._forward(x)[:-1], self.branch_pool(inside(x))]


class _C(InceptionC):
    def _forward(self, x: Tensor) -> list[Tensor]:
        return [*super()._forward(x)[:-1], self.branch_pool(inside(x))]


class _E(InceptionE):
    def _forward(self, x: Tensor) -> list[Tensor]:
        return [*super()._forward(x)[:-1], self.branch_pool(inside(x))]


class _LastE(InceptionE):
    def _forward(self, x: Tensor) -> list[Tensor]:
        return [*super()._forward(x)[:-1], self.branch_pool(F.max_pool2d(x, 3, stride=1, padding=1))]
