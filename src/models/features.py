"""Features of whole images, to compare sets of them by the Frechet distance (`src/metrics/frechet.py`)."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import timm
import torch
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from src.models.inception import WEIGHTS, Inception
from src.rewards.pixels import channels, fitted
from src.runtime.checkpoint import CONFIG, load, located
from src.runtime.weights import fill_all, state_dict


@runtime_checkable
class HasFeatures(Protocol):
    """A system with features of images, such as `AttributeReader` and `ClipSystem`."""

    def features(self, images: Tensor) -> Tensor:
        """(batch, width) of images (batch, 3, height, width) in [0, 1]."""
        ...


class SystemFeatures(nn.Module):
    """Features (batch, width) of images (batch, 3, height, width) in [0, 1] by the system of a checkpoint folder.

    Raises ValueError naming the folder if its system has none.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        system = load(folder)
        if not isinstance(system, HasFeatures):
            raise ValueError(f"{folder} holds {type(system).__name__}, which has no features of images.")
        self.system: Any = system
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.system.features(images)


class TimmFeatures(nn.Module):
    """Features (batch, width) of images (batch, 3, height, width) in [0, 1]: those before the classifier of a network.

    Images are stretched to the network's size, antialiased, and normalized as timm lists for it.

    Args:
        name: of timm, such as resnet50 or vit_base_patch14_dinov2.lvd142m.
        weights: a file of them, with or without the classifier; None: those that timm publishes, downloaded at the
            first use, not before.

    Raises ValueError for an unknown name, and for weights that cannot be read or do not match.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, weights: str | Path | None = None) -> None:
        super().__init__()
        if not timm.is_model(name.partition(".")[0]):
            near = ", ".join(get_close_matches(name, timm.list_models())) or "see timm.list_models()"
            raise ValueError(
                f"features={name}: no checkpoint folder, not inception, and no network of timm; similar names: {near}."
            )
        net: Any = timm.create_model(name, num_classes=0)
        self.net, self.name, self.waits = net, name, weights is None
        if weights is not None:
            file, head = located(weights), f"{net.pretrained_cfg.get('classifier')}."
            fill_all(net, {key: value for key, value in state_dict(file).items() if not key.startswith(head)}, file)
        config = resolve_model_data_config(net)
        self.size: int = config["input_size"][-1]
        self.filter = "bilinear" if config["interpolation"] == "bilinear" else "bicubic"
        for statistic in ("mean", "std"):
            self.register_buffer(statistic, channels(config[statistic]), persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        if self.waits:
            self.fetch()
        return self.net((fitted(images, self.size, "squash", self.filter, True) - self.mean) / self.std)

    def fetch(self) -> None:
        """Downloads the published weights, or reads them if they were downloaded before."""
        try:
            published = timm.create_model(self.name, pretrained=True, num_classes=0)
        except (OSError, RuntimeError, ValueError) as error:
            told = " ".join(str(error).split())[:200]
            raise ValueError(f"{self.name}: the published weights cannot be fetched: {told}") from None
        self.net.load_state_dict(published.state_dict())
        self.waits = False


def feature_net(name: str | Path, weights: str | Path | None = None) -> nn.Module:
    """A frozen network that gives features (batch, width) of images (batch, 3, height, width) in [0, 1].

    name: a checkpoint folder of an attribute reader, a CLIP or an HPS; "inception", the network of published FIDs,
    with its file as `weights`; or a network of timm, with a file or the published weights. Nothing is downloaded here.
    Raises ValueError if there is no such network, or no such weights.
    """
    if (located(name) / CONFIG).is_file():
        if weights is not None:
            raise ValueError(f"features={name} is a checkpoint folder with weights of its own, not {weights}.")
        return SystemFeatures(name)
    if str(name) == "inception":
        if weights is None:
            raise ValueError(f"features=inception needs its weights, a file such as {WEIGHTS} of pytorch-fid.")
        return Inception(weights)
    return TimmFeatures(str(name), weights)


@torch.no_grad()
def features(net: nn.Module, images: Tensor, batch_size: int = 64) -> Tensor:
    """Features (images, width), float32 on the CPU, of images (images, 3, height, width), uint8 or in [0, 1]."""
    found = []
    for some in images.split(batch_size):
        some = some.float().div(255) if some.dtype == torch.uint8 else some
        found.append(net(some).float().cpu())
    return torch.cat(found)
