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
from src.runtime.system import System

RANK_SIZE = 64  # Spearman ranks maps of this height and width: torchmetrics' sums overflow above 2^16 tied pixels


def unit_range(maps: Tensor) -> Tensor:
    """Each map (batch, 1, height, width) shifted and scaled to least value 0, greatest 1; a constant one is all 0."""
    low, high = maps.amin(dim=(1, 2, 3), keepdim=True), maps.amax(dim=(1, 2, 3), keepdim=True)
    return (maps - low) / (high - low).clamp_min(1e-6)


class MaxFBeta(Metric):
    """Largest F-beta over the 256 thresholds of an 8-bit map, of precision and recall averaged over images.

    Achanta et al. 2009. In [0, 1], larger is better; beta^2 = 0.3 as is usual for saliency. A pixel is salient in the
    target above 1/2. Images with no salient pixel have no recall and are left out; if all are, the value is nan.
    Precision of an empty prediction is 1.
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
    """A net that turns images (batch, 3, height, width) in [0, 1] into one map (batch, 1, height, width) in [0, 1].

    The image is resized to `image_size` squared and normalised by `mean` and `std` for the net, the map resized back;
    all of it is differentiable. `lr` is the peak of `src.runtime.schedules.pace`.
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
        """The net's float32 output (batch, maps, image_size, image_size) for normalised images of that size."""

    @abstractmethod
    def finish(self, raw: Tensor, size: Sequence[int]) -> Tensor:
        """The map in [0, 1], (batch, 1, *size), of the net's output."""

    @abstractmethod
    def loss(self, raw: Tensor, target: Tensor) -> Tensor:
        """A scalar, of the net's output and the target of the same height and width."""

    @abstractmethod
    def new_metrics(self) -> dict[str, Metric]: ...

    @abstractmethod
    def update(self, metrics: nn.ModuleDict, prediction: Tensor, target: Tensor) -> None:
        """Adds finished maps and targets, both (batch, 1, height, width) in [0, 1], to the metrics."""

    def checked_raw(self, images: Tensor) -> Tensor:
        """`raw` of images (batch, 3, height, width) in [0, 1], resized and normalised."""
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
        self.log(f"{split}/loss", loss, batch_size=len(images), prog_bar=split == "train", sync_dist=split != "train")
        if split != "train":
            metrics: Any = self.metrics[split]
            self.update(metrics, self.finish(raw, target.shape[-2:]), target)
            for name, metric in metrics.items():
                self.log(f"{split}/{name}", metric, on_step=False, on_epoch=True, batch_size=len(images))
        return loss

    def training_step(self, batch: Batch) -> Tensor:
        return self._step(batch, "train")

    def evaluation_step(self, batch: Batch, split: str) -> None:
        self._step(batch, split)


class Depth(Perception):
    """Relative inverse depth by DPT (Ranftl et al. 2021): 1 = nearest, 0 = farthest point of each image.

    `pretrained` is a hub id or folder with weights ("Intel/dpt-large"); or else `config` holds `DPTConfig`'s arguments
    of a net that starts from nothing. Exactly one is given.
    """

    target = "depth"
    fields = frozenset({"image", "depth"})
    targets = frozenset({"depth"})
    monitor = ("val/spearman", "max")
    card: ClassVar = {
        "use": "RFNet's depth input where an image comes without one; differentiable in the image.",
        "limits": "Relative inverse depth only: no metres, and the nearest point of every image is 1. A net this "
        "small knows rooms like those below; for photographs use a published DPT (`model.pretrained=`).",
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
        """`mae` of the map as RFNet gets it, `aligned_mae` after least squares, `spearman` of near before far.

        AbsRel and delta_1 are for metric depth: relative inverse depth has a 0 in every image, by which they divide.
        """
        return {"mae": MeanAbsoluteError(), "aligned_mae": MeanAbsoluteError(), "spearman": MeanMetric()}

    def update(self, metrics: nn.ModuleDict, prediction: Tensor, target: Tensor) -> None:
        near, truth = (resize(maps, (RANK_SIZE, RANK_SIZE)).flatten(1) for maps in (prediction, target))
        values: dict[str, Any] = dict(metrics.items())
        values["mae"].update(prediction, target)
        values["aligned_mae"].update(aligned(prediction, target), target)
        values["spearman"].update(torch.stack([spearman_corrcoef(*pair) for pair in zip(near, truth, strict=True)]))

    def assets(self, folder: Path) -> dict[str, Any]:
        """The net's full configuration in place of the hub id, so that the folder needs no network."""
        net: Any = self.net
        return {"pretrained": None, "config": net.config.to_diff_dict()}


class Saliency(Perception):
    """How much each pixel stands out, 1 = salient, by U2-Net (Qin et al. 2020).

    `size` is "full" (44.0 M weights), "small" (U2-NetP, 1.1 M) or "tiny" (0.1 M).
    """

    target = "saliency"
    fields = frozenset({"image", "saliency"})
    targets = frozenset({"saliency"})
    monitor = ("val/max_f", "max")
    card: ClassVar = {
        "use": "RFNet's saliency input where an image comes without one; differentiable in the image.",
        "limits": "A net this small knows rooms like those below; for photographs take the authors' U2-Net weights, "
        "which load unchanged.",
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
    """The frozen net of `kind` "depth" or "saliency" in eval mode, on the CPU.

    `name` is one of our checkpoint folders; the authors' `u2net.pth` or `u2netp.pth` (saliency); or a hub id or folder
    of transformers' DPT (depth). ValueError if it is of the other kind or not one of these.
    """
    kinds: dict[str, type[Depth | Saliency]] = {"depth": Depth, "saliency": Saliency}
    if kind not in kinds:
        raise ValueError(f"perception {kind!r}: choose one of {', '.join(kinds)}")
    path = located(name)
    if (path / CONFIG).is_file():  # without its weights too: `load` says so
        system = load(path)
        if not isinstance(system, kinds[kind]):
            raise ValueError(f"{path} holds {type(system).__name__}, not {kinds[kind].__name__} as asked for")
    elif kind == "depth" and (path.exists() or not path.parent.is_dir() or path.parent == Path()):
        system = Depth(pretrained=str(path))
    elif path.is_file():
        system = official_saliency(path)
    else:
        other = {"saliency": "the authors' u2net.pth or u2netp.pth", "depth": "a folder or hub id of a DPT"}[kind]
        raise ValueError(f"{kind} from {name}: neither a checkpoint folder nor {other}")
    return system.eval().requires_grad_(False)


def official_saliency(path: Path) -> Saliency:
    """U2-Net with the weights of the authors' .pth file, its size told from their shapes, at their 320 px."""
    state = read_weights(path)
    for size, (encoder, _) in U2NET_WIDTHS.items():
        if "side6.weight" in state and state["side6.weight"].shape[1] == encoder[5][1]:
            system = Saliency(size=size)
            system.net.load_state_dict(state, strict=True)
            return system
    raise ValueError(f"{path} holds no U2-Net of a known size ({', '.join(U2NET_WIDTHS)})")
