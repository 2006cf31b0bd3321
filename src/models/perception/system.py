"""Depth (DPT) and saliency (U2-Net) of an image, inputs of RFNet."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MeanMetric, Metric
from torchmetrics.functional.regression import spearman_corrcoef

from src.data.batch import Batch
from src.models.layers import IMAGENET_MEAN, IMAGENET_STD, resize
from src.models.perception.dpt import aligned, depth_loss, new_dpt, pretrained_dpt
from src.models.perception.u2net import WIDTHS as U2NET_WIDTHS
from src.models.perception.u2net import saliency_loss, u2net
from src.runtime.checkpoint import CONFIG, load, located, read_weights
from src.runtime.finite import require_finite
from src.runtime.system import System

RANK_SIZE = 64  # size of the maps for Spearman: torchmetrics overflows above 2^16 tied pixels


def unit_range(maps: Tensor) -> Tensor:
    """Each map (batch, 1, height, width) shifted and scaled to [0, 1]; constant maps become 0."""
    low, high = maps.amin(dim=(1, 2, 3), keepdim=True), maps.amax(dim=(1, 2, 3), keepdim=True)
    return (maps - low) / (high - low).clamp_min(1e-6)


class MaxFBeta(Metric):
    """Maximum F-beta over the 256 thresholds of an 8-bit map; precision and recall are averaged over images.

    Achanta et al. 2009. In [0, 1], higher is better; beta^2 = 0.3 as usual for saliency. Target pixels above 1/2 are
    salient. Images without salient pixels are ignored; NaN if there are no others. The precision of an empty prediction
    is 1.
    """

    precision: Tensor
    recall: Tensor
    count: Tensor

    def __init__(self, beta2: float = 0.3) -> None:
        super().__init__()
        self.beta2 = beta2
        for name, size in (("precision", 256), ("recall", 256), ("count", 1)):
            self.add_state(name, torch.zeros(size), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Both (batch, 1, height, width) in [0, 1]."""
        levels = (prediction * 255).round().long().flatten(1)
        for level, salient in zip(levels, target.flatten(1) > 0.5, strict=True):
            if salient.any():
                chosen = (
                    torch.bincount(level, minlength=256).flip(0).cumsum(0).flip(0)
                )  # pixels at or above each threshold
                hit = torch.bincount(level[salient], minlength=256).flip(0).cumsum(0).flip(0)
                self.precision += torch.where(chosen > 0, hit / chosen.clamp_min(1), 1.0)
                self.recall += hit / salient.sum()
                self.count += 1

    def compute(self) -> Tensor:
        precision, recall = self.precision / self.count, self.recall / self.count
        weighted = self.beta2 * precision + recall
        return ((1 + self.beta2) * precision * recall / weighted.where(weighted > 0, 1)).max()


class Perception(System):
    """Predicts a map (batch, 1, height, width) in [0, 1] from images (batch, 3, height, width) in [0, 1].

    Images are resized to `image_size` squared and normalized with `mean` and `std`, and the map is resized back; all
    steps are differentiable.
    """

    target: str  # the batch field that is predicted
    fields: frozenset[str]
    targets: frozenset[str]
    metrics: nn.ModuleDict  # one ModuleDict of metrics for each of "val" and "test"
    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, image_size: int, mean: Sequence[float], std: Sequence[float],
                 lr: float, weight_decay: float, warmup: float) -> None:  # fmt: skip
        super().__init__()
        self.net = net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.image_size = image_size
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.lr, self.weight_decay, self.warmup = lr, weight_decay, warmup
        self.metrics = nn.ModuleDict({split: nn.ModuleDict(self.new_metrics()) for split in ("val", "test")})

    @abstractmethod
    def raw(self, images: Tensor) -> Tensor:
        """The network's output (batch, maps, image_size, image_size), float32, for normalized images of that size."""

    @abstractmethod
    def finish(self, raw: Tensor, size: Sequence[int]) -> Tensor:
        """The map (batch, 1, *size) in [0, 1] from the network's output."""

    @abstractmethod
    def loss(self, raw: Tensor, target: Tensor) -> Tensor:
        """The loss of the network's output, a scalar; the target has the same height and width."""

    @abstractmethod
    def new_metrics(self) -> dict[str, Metric]: ...

    @abstractmethod
    def update(self, metrics: nn.ModuleDict, prediction: Tensor, target: Tensor) -> None:
        """Adds finished maps and targets, both (batch, 1, height, width) in [0, 1], to the metrics."""

    def checked_raw(self, images: Tensor) -> Tensor:
        """`raw` of images (batch, 3, height, width) in [0, 1], resized and normalized."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be (batch, 3, height, width), got {tuple(images.shape)}")
        images = (resize(images, (self.image_size, self.image_size)) - self.mean) / self.std
        return self.raw(images.contiguous(memory_format=torch.channels_last)).float()

    def forward(self, images: Tensor) -> Tensor:
        return self.finish(self.checked_raw(images), images.shape[-2:])

    def _step(self, batch: Batch, split: str) -> Tensor:
        images, target = batch["image"], batch[self.target]
        raw = self.checked_raw(images)
        loss = self.loss(raw, resize(target, raw.shape[-2:]))
        self.log(f"{split}/loss", loss, batch_size=len(images), prog_bar=split == "train")
        if split != "train":
            metrics: Any = self.metrics[split]
            maps = require_finite(self.finish(raw, target.shape[-2:]), f"{self.target} maps", batch["key"])
            self.update(metrics, maps, target)
            for name, metric in metrics.items():
                self.log(f"{split}/{name}", metric, on_step=False, on_epoch=True, batch_size=len(images))
        return loss

    def training_step(self, batch: Batch) -> Tensor:
        return self._step(batch, "train")

    def evaluation_step(self, batch: Batch, split: str) -> None:
        self._step(batch, split)


class Depth(Perception):
    """Relative inverse depth by DPT (Ranftl et al. 2021): 1 = nearest, 0 = farthest point of each image.

    Either `pretrained`, a hub id or folder with weights ("Intel/dpt-large"), or `config`, arguments of `DPTConfig` for
    training from scratch.
    """

    target = "depth"
    fields = frozenset({"image", "depth"})
    targets = frozenset({"depth"})
    monitor = ("val/spearman", "max")
    card: ClassVar = {
        "use": "Depth input of RFNet for images without depth; differentiable in the image.",
        "limits": "Relative inverse depth only: no meters, and the nearest point of every image is 1. A small network "
        "for rooms like those below; for photographs use a published DPT (`model.pretrained=`).",
    }

    def __init__(
        self,
        pretrained: str | None = None,
        config: dict[str, Any] | None = None,
        image_size: int = 384,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        gradient_weight: float = 0.5,
        lr: float = 1e-5,
        weight_decay: float = 0.01,
        warmup: float = 0.1,
    ) -> None:
        if (pretrained is None) == (config is None):
            raise ValueError(
                f"Depth takes either pretrained or config, got pretrained={pretrained!r} and config={config!r}"
            )
        net = new_dpt(config) if config is not None else pretrained_dpt(str(pretrained))
        super().__init__(net, image_size, mean, std, lr, weight_decay, warmup)
        self.gradient_weight = gradient_weight
        self.save_hyperparameters()

    def raw(self, images: Tensor) -> Tensor:
        return self.net(images).predicted_depth[:, None]

    def finish(self, raw: Tensor, size: Sequence[int]) -> Tensor:
        return unit_range(resize(raw, size))

    def loss(self, raw: Tensor, target: Tensor) -> Tensor:
        return depth_loss(raw, target, self.gradient_weight)

    def new_metrics(self) -> dict[str, Metric]:
        """`mae` of the map, `aligned_mae` after least-squares alignment, and `spearman` rank correlation.

        AbsRel and delta_1 divide by the target and are undefined for relative inverse depth, which contains 0.
        """
        return {"mae": MeanAbsoluteError(), "aligned_mae": MeanAbsoluteError(), "spearman": MeanMetric("error")}

    def update(self, metrics: nn.ModuleDict, prediction: Tensor, target: Tensor) -> None:
        near, truth = (resize(maps, (RANK_SIZE, RANK_SIZE)).flatten(1) for maps in (prediction, target))
        values: dict[str, Any] = dict(metrics.items())
        values["mae"].update(prediction, target)
        values["aligned_mae"].update(aligned(prediction, target), target)
        values["spearman"].update(torch.stack([spearman_corrcoef(*pair) for pair in zip(near, truth, strict=True)]))

    def assets(self, folder: Path) -> dict[str, Any]:
        """The full configuration instead of the hub id, so that loading the folder needs no download."""
        net: Any = self.net
        return {"pretrained": None, "config": net.config.to_diff_dict()}


class Saliency(Perception):
    """Saliency of each pixel in [0, 1] by U2-Net (Qin et al. 2020).

    `size`: "full" (44.0 M parameters), "small" (U2-NetP, 1.1 M) or "tiny" (0.1 M).
    """

    target = "saliency"
    fields = frozenset({"image", "saliency"})
    targets = frozenset({"saliency"})
    monitor = ("val/max_f", "max")
    card: ClassVar = {
        "use": "Saliency input of RFNet for images without saliency; differentiable in the image.",
        "limits": "A small network for rooms like those below; for photographs use the authors' U2-Net weights.",
    }

    def __init__(
        self,
        size: str = "small",
        image_size: int = 320,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        warmup: float = 0.1,
    ) -> None:
        super().__init__(u2net(size), image_size, mean, std, lr, weight_decay, warmup)
        self.save_hyperparameters()

    def raw(self, images: Tensor) -> Tensor:
        return self.net(images)

    def finish(self, raw: Tensor, size: Sequence[int]) -> Tensor:
        return resize(raw[:, :1], size).sigmoid()

    def loss(self, raw: Tensor, target: Tensor) -> Tensor:
        return saliency_loss(raw, target)

    def new_metrics(self) -> dict[str, Metric]:
        return {"mae": MeanAbsoluteError(), "max_f": MaxFBeta()}

    def update(self, metrics: nn.ModuleDict, prediction: Tensor, target: Tensor) -> None:
        for metric in metrics.values():
            metric.update(prediction, target)  # pyright: ignore[reportCallIssue]


def load_perception(name: str | Path, kind: str) -> Depth | Saliency:
    """The frozen network of `kind` "depth" or "saliency" in eval mode, on the CPU.

    `name`: a checkpoint folder of this project; or the authors' `u2net.pth` or `u2netp.pth` (saliency); or a hub id or
    folder of a transformers DPT (depth). Raises ValueError for anything else.
    """
    kinds: dict[str, type[Depth | Saliency]] = {"depth": Depth, "saliency": Saliency}
    if kind not in kinds:
        raise ValueError(f"perception {kind!r}: choose one of {', '.join(kinds)}")
    path = located(name)
    if (path / CONFIG).is_file():  # without its weights too: `load` says so
        system = load(path, kinds[kind])
    elif kind == "depth" and (path.exists() or not path.parent.is_dir() or path.parent == Path()):
        system = Depth(pretrained=str(path))
    elif path.is_file():
        system = official_saliency(path)
    else:
        other = {"saliency": "the authors' u2net.pth or u2netp.pth", "depth": "a folder or hub id of a DPT"}[kind]
        raise ValueError(f"{kind} from {name}: neither a checkpoint folder nor {other}")
    return system.eval().requires_grad_(False)


def official_saliency(path: Path) -> Saliency:
    """U2-Net with the weights of the authors' .pth file at 320 px; the size is inferred from the weights."""
    state = read_weights(path)
    for size, (encoder, _) in U2NET_WIDTHS.items():
        if "side6.weight" in state and state["side6.weight"].shape[1] == encoder[5][1]:
            system = Saliency(size=size)
            system.net.load_state_dict(state, strict=True)
            return system
    raise ValueError(f"{path} holds no U2-Net of a known size ({', '.join(U2NET_WIDTHS)})")
